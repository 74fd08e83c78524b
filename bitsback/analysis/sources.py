"""What a question may be asked of: a run directory, an opened run, a training that has just ended, or an experiment."""

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
    """A training that has ended: its ledger, and everything that further questions need.

    Attributes:
        ledger: what it cost.
        test_error, error_name: of the test split, where there is one, and what it is.
        training_seconds, epochs, threads: what it took.
        stopped_early: whether the net bits no longer fell.
        experiment: configuration, data, trained model and likelihood.
        directory: of the run; None when nothing was written.
        report: the page that was written, if any.
    """

    experiment: Experiment
    directory: Path | None = None
    report: Path | None = None

    @property
    def config(self) -> Config:
        """The configuration that was trained."""
        return self.experiment.config

    def records(self) -> list[dict[str, Any]]:
        """Return the ledger's entries."""
        return self.ledger.records()

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger, and the facts of the training."""
        facts = {field.name: getattr(self, field.name) for field in fields(Outcome) if field.name != "ledger"}
        return {**self.ledger.to_dict(), **facts, "directory": None if self.directory is None else str(self.directory)}

    def closing(self) -> str:
        """Return what is said below the ledger: seconds, test error, and where the run is."""
        facts = [f"Trained in {self.training_seconds:.1f} s"]
        facts[0] += f", stopped early after {self.epochs} epochs" if self.stopped_early else ""
        if self.test_error is not None:
            facts.append(f"test error {shown_error(self.error_name, self.test_error)}")
        return f"{'; '.join(facts)}." + (f" The run is in {self.directory}" if self.directory is not None else "")

    def __str__(self) -> str:
        return f"{render(self.ledger)}\n{self.closing()}"


RunSource = Run | Experiment | TrainedRun


def experiment_of(source: RunSource | str | Path) -> Experiment:
    """Return the trained experiment behind any of them.

    Raises:
        RunError: for a directory that is no run, or one that has not finished.
    """
    if isinstance(source, Experiment):
        return source
    if isinstance(source, TrainedRun):
        return source.experiment
    return (source if isinstance(source, Run) else load_run(source)).experiment()
