"""Report of one run."""

from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from bitsback.atomic_io import write_text
from bitsback.config import Experiment, Run
from bitsback.ledger import Ledger
from bitsback.ledger.rendering import shown_bits
from bitsback.report import plots
from bitsback.report._explorers import explorers
from bitsback.report._figures import drawn
from bitsback.report._html import render, shown
from bitsback.report._observation import Observation, observe
from bitsback.report._sentences import answers, calibration_said, cards, draws_said, example_rows, fact_rows, first_title
from bitsback.torch_state import using_threads
from bitsback.training.train import threads_for

__all__ = ["page", "write_report"]

REPORT = "report.html"
TABLE_ROWS = 40


def write_report(
    run: Run | str | Path, *, to: Path | None = None, experiment: Experiment | None = None, progress: bool = False
) -> Path:
    """Write the HTML report of a finished run.

    Args:
        run: an opened run, or a run directory.
        to: file to write; default: RUN/report.html.
        experiment: the run's own, if already loaded.
        progress: show progress bars for long computations.

    Returns:
        Path of the report.

    Raises:
        RunError: the directory is not a run, the run has not finished, or the file cannot be written.
    """
    seen = observe(run, experiment=experiment, progress=progress)
    path = to if to is not None else seen.run.directory / REPORT
    with using_threads(threads_for(seen.run.config.training, seen.experiment.model)):
        write_text(path, page(seen))
    return path


def page(seen: Observation) -> str:
    """Return the report of one run as self-contained HTML."""
    book, order = seen.book, sorted(seen.other_priors, key=lambda kind: seen.other_priors[kind].net_bits)
    return render(
        "run.html",
        explorers(seen),
        title=f"{seen.name}: {shown(book.net_bits)} bits",
        name=seen.name,
        book=book,
        cards=cards(book),
        answers=answers(seen),
        ledger_rows=_ledger_rows(book),
        widths=seen.widths,
        trained=list(seen.widths.curve).index(1.0) if seen.widths else 0,
        draws_said=draws_said(seen),
        own_prior=seen.own_prior,
        prior_rows=_prior_rows(seen, order),
        best_prior=0,
        first=seen.first,
        first_title=first_title(seen),
        first_name=seen.first.name if seen.first else "",
        calibration_said=calibration_said(seen),
        example_rows=example_rows(seen, TABLE_ROWS),
        fact_rows=fact_rows(seen),
        config_text=(seen.run.directory / "config.yaml").read_text(encoding="utf-8"),
        figures={name: _themed(name, axes) for name, axes in drawn(seen)},
    )


def _themed(name: str, axes: Axes | None) -> Markup | None:
    if axes is None:
        return None
    label = name.replace("_", " ")  # the caption describes the figure
    return Markup(plots.svg(axes, themed=True).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def _ledger_rows(book: Ledger) -> list[list[str]]:
    rows = [["weights of", "count", "gross bits", "refund", "net bits", "bits per weight"]]
    for e in book.entries:
        rows.append([e.name, f"{e.weights:,}", *shown_bits(e.net_bits, e.refund_bits), f"{e.bits_per_weight:.3f}"])
    totals = [("all weights", book.net_weight_bits, book.refund_bits), ("hyper-parameters", book.hyperparameter_bits, 0.0),
              (f"data ({book.described})", book.data_bits, 0.0), ("total", book.net_bits, book.refund_bits)]  # fmt: skip
    return rows + [[name, "", *shown_bits(net, refund), ""] for name, net, refund in totals]


def _prior_rows(seen: Observation, order: list[str]) -> list[list[Any]]:
    rows = [["prior", "net bits", "weights net", "hyper-parameters"]]
    for kind in order:
        book = seen.other_priors[kind]
        name = f"{kind} (trained)" if kind == seen.own_prior else kind
        rows.append([name, shown(book.net_bits), shown(book.net_weight_bits), shown(book.hyperparameter_bits)])
    return rows
