"""Ledgers of a network with wider and narrower posteriors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsback.analysis.sources import RunSource, experiment_of
from bitsback.ledger import Ledger, shown_bits
from bitsback.model import WIDTH_FACTORS, width_curve
from bitsback.result import TableResult, text_table

__all__ = ["WidthCurve", "widen"]

COLUMNS = ("gross_weight_bits", "refund_bits", "net_weight_bits", "data_bits", "net_bits")


@dataclass(frozen=True)
class WidthCurve(TableResult):
    """Ledgers by the factor with which every posterior std is multiplied."""

    curve: dict[float, Ledger]

    @property
    def cheapest(self) -> float:
        """Factor of the lowest net bits."""
        return min(self.curve, key=lambda factor: self.curve[factor].net_bits)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each width."""
        return [{"factor": factor, **{name: getattr(book, name) for name in COLUMNS}} for factor, book in self.curve.items()]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows and the cheapest factor."""
        return {"cheapest": self.cheapest, "widths": self.records()}

    def __str__(self) -> str:
        body = []
        for row in self.records():
            mark = "cheapest" if row["factor"] == self.cheapest else ""
            weights = shown_bits(row["net_weight_bits"], row["refund_bits"])
            body.append([f"x {row['factor']:g}", *weights, f"{row['data_bits']:,.1f}", f"{row['net_bits']:,.1f}", mark])
        book = self.curve[min(self.curve)]
        table = text_table(["width", "gross weights", "refund", "net weights", "data", "net bits", ""], body)
        return (
            f"{table}\ngross and refund on the ledger's grid of {book.grid_step:g}, which is too coarse for them below x 1; "
            f"net bits with {book.hyperparameter_bits:.0f} of hyper-parameters"
        )


def widen(
    run: RunSource | str | Path,
    *,
    factors: Sequence[float] = WIDTH_FACTORS,
    samples: int | None = None,
    progress: bool = False,
) -> WidthCurve:
    """Take the ledger at each of several factors on every posterior std; the model is restored.

    Args:
        run: a run directory, an opened run, or a trained experiment.
        factors: positive factors on the trained std.
        samples: whole-network draws for each width; default: as many as in the run's ledger.
        progress: show a progress bar after two seconds.

    Returns:
        The ledger at each factor.

    Raises:
        RunError: the run has not finished.
        LedgerError: no weight has a Gaussian posterior, or a factor is not positive.

    >>> from bitsback.config import Config, Experiment
    >>> from bitsback.training import TrainingSettings
    >>> experiment = Experiment.build(Config(training=TrainingSettings(epochs=3)))
    >>> curve = widen(experiment, factors=[0.5, 1.0, 2.0], samples=2)
    >>> [row["factor"] for row in curve.records()]
    [0.5, 1.0, 2.0]
    """
    e = experiment_of(run)
    draws = samples or e.config.ledger.samples
    return WidthCurve(
        width_curve(
            e.model, e.likelihood, e.dataset.train, factors=factors, samples=draws, seed=e.config.seed, progress=progress
        )
    )
