"""Report of several runs: a table, their training curves, and the settings that differ."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from markupsafe import Markup

from bitsback.atomic_io import write_text
from bitsback.config import Config, load_run
from bitsback.errors import RunError
from bitsback.ledger import Ledger
from bitsback.ledger.rendering import shown_bits, shown_error
from bitsback.report import plots
from bitsback.report._html import render, shown
from bitsback.report._observation import Metrics, read_metrics
from bitsback.training.histograms import flat

__all__ = ["Compared", "compared", "comparison_page", "write_comparison"]

LONGEST = 120
"""Characters of a setting that are shown."""


@dataclass(frozen=True)
class Compared:
    """Data of one run for a comparison."""

    label: str
    book: Ledger
    metrics: Metrics
    summary: dict[str, Any]
    settings: dict[str, str]


def write_comparison(directories: Sequence[str | Path], to: Path) -> Path:
    """Write a report that compares several finished runs.

    Args:
        directories: run directories.
        to: HTML file to write.

    Returns:
        ``to``.

    Raises:
        RunError: a run is missing, has not finished or is given twice, or the file cannot be written.
    """
    write_text(to, comparison_page(compared(directories)))
    return to


def compared(directories: Sequence[str | Path]) -> list[Compared]:
    """Read the runs, sorted by net bits, each under a unique name; raises RunError if one is given twice."""
    if len({Path(directory).resolve() for directory in directories}) < len(directories):
        raise RunError("the same run is given twice; name each once")
    runs = [load_run(directory) for directory in directories]
    names = [run.directory.resolve().name for run in runs]
    if max(Counter(names).values()) > 1:
        names = [str(run.directory) for run in runs]
    found = [
        Compared(name, run.ledger(), read_metrics(run.directory), run.summary(), _settings(run.config))
        for name, run in zip(names, runs, strict=True)
    ]
    return sorted(found, key=lambda run: run.book.net_bits)


def comparison_page(runs: Sequence[Compared]) -> str:
    """Return the report of several runs as self-contained HTML."""
    best, books = runs[0], {run.label: run.book for run in runs}
    with plots.off_screen():
        figures = {"runs": plots.runs({run.label: run.metrics for run in runs}), "priors": plots.priors(books)}
    return render(
        "comparison.html",
        {"widths": [], "grid": [], "runs": {run.label: run.book.net_bits for run in runs}},
        title=f"{len(runs)} runs, the cheapest at {shown(best.book.net_bits)} bits",
        name=f"{len(runs)} runs",
        sentence=f"The cheapest of {len(runs)} descriptions is {best.label}: {shown(best.book.net_bits)} bits, model included.",
        rows=_rows(runs),
        notes=_notes(runs),
        warnings=[f"{run.label}: {said}" for run in runs for said in run.book.warnings],
        figures={name: Markup(plots.svg(axes, themed=True)) for name, axes in figures.items()},
        differences=_differences(runs),
    )


def _rows(runs: Sequence[Compared]) -> list[list[str]]:
    head = [
        "run",
        "prior",
        "net bits",
        "gross bits",
        "refund",
        "data bits",
        "weights net",
        "hyper-parameters",
        "test error",
        "seconds",
    ]
    rows = [head]
    for run in runs:
        book, summary = run.book, run.summary
        gross, refund, net = shown_bits(book.net_bits, book.refund_bits)
        parts = [book.data_bits, book.net_weight_bits, book.hyperparameter_bits]
        rows.append(
            [run.label, run.settings["prior.kind"], net, gross, refund, *(f"{bits:,.1f}" for bits in parts),
             _error(run), f"{summary['training_seconds']:.1f}"]
        )  # fmt: skip
    return rows


def _settings(config: Config) -> dict[str, str]:
    told = flat(config.model_dump(mode="json"))
    return {key: shorten(str(value), LONGEST, placeholder=" ...") for key, value in told.items()}


def _error(run: Compared) -> str:
    name = run.metrics[-1]["error_name"]
    error = run.summary.get(f"test_{name}")
    return "" if error is None else shown_error(name, error)


def _notes(runs: Sequence[Compared]) -> list[str]:
    """Return warnings about differences that make totals incomparable."""
    notes = []
    if len({run.book.uniform_bits for run in runs}) > 1:
        notes.append("These runs describe different labels: their totals are not to be compared.")
    if len({run.book.grid_step for run in runs}) > 1:
        notes.append("Their grids differ: compare net bits, not gross bits or refunds.")
    given = [f"{run.label} is charged given {run.book.given}." for run in runs if run.book.given]
    return notes + given


def _differences(runs: Sequence[Compared]) -> list[list[str]]:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    rows = [["setting", *(run.label for run in runs)]]
    for key in keys:
        values = [run.settings.get(key, "") for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows if len(rows) > 1 else [*rows, ["nothing", *("" for _ in runs)]]
