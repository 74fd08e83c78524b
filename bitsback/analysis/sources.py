"""Sources of an analysis: a run directory, an opened run, a finished training, or an experiment."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bitsback.config import Config, Experiment, Run, load_run
from bitsback.ledger import render, shown_error
from bitsback.result import Result
from bitsback.training import Outcome

__all__ = ["RunSource", "TrainedRun", "experiment_of"]


@dataclass(frozen=True, kw_only=True)
class TrainedRun(Outcome, Result):
    """Result of a training, from which an analysis can start.

    Attributes:
        ledger: bits of the trained model and the data.
        test_error: on the test split; None without one.
        error_name: name of the error, such as ``error`` or ``rmse``.
        training_seconds: wall time of training.
        epochs: trained epochs.
        threads: CPU threads used.
        stopped_early: whether training ended because the net bits no longer fell.
        experiment: configuration, data, trained model and likelihood.
        directory: run directory; None if nothing was written.
        report: path of the report, if one was written.
    """

    experiment: Experiment
    directory: Path | None = None
    report: Path | None = None

    @property
    def config(self) -> Config:
        """Configuration of the experiment."""
        return self.experiment.config

    def records(self) -> list[dict[str, Any]]:
        """Return the ledger's entries."""
        return self.ledger.records()

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger and the attributes of the training."""
        facts = {field.name: getattr(self, field.name) for field in fields(Outcome) if field.name != "ledger"}
        return {**self.ledger.to_dict(), **facts, "directory": None if self.directory is None else str(self.directory)}

    def closing(self) -> str:
        """Return the sentence below the ledger: seconds, test error and run directory."""
        facts = [f"Trained in {self.training_seconds:.1f} s"]
        facts[0] += f", stopped early after {self.epochs} epochs" if self.stopped_early else ""
        if self.test_error is not None:
            facts.append(f"test error {shown_error(self.error_name, self.test_error)}")
        return f"{'; '.join(facts)}." + (f" The run is in {self.directory}" if self.directory is not None else "")

    def __str__(self) -> str:
        return f"{render(self.ledger)}\n{self.closing()}"


RunSource = Run | Experiment | TrainedRun


def experiment_of(source: RunSource | str | Path) -> Experiment:
    """Return the trained experiment of a source.

    Raises:
        RunError: the directory is not a run, or has not finished.
    """
    if isinstance(source, Experiment):
        return source
    if isinstance(source, TrainedRun):
        return source.experiment
    return (source if isinstance(source, Run) else load_run(source)).experiment()
