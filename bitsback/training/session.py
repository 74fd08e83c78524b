"""The epochs of one training: logging, checkpoints and early stopping."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

from bitsback.data import Examples
from bitsback.model import evaluate
from bitsback.model.verdict import LAST_EPOCHS, Course
from bitsback.training._loggers import Bar, JsonLines, Logger, Metrics
from bitsback.training.checkpoint import load_checkpoint, save_checkpoint
from bitsback.training.dashboards import Subject, open_dashboards
from bitsback.training.loop import Fit
from bitsback.training.settings import LoggingSettings

__all__ = ["Session", "close"]


class Session:
    """Epochs of one training, with logs, checkpoints and early stopping; a context manager that closes the dashboards on exit.

    Args:
        fit: the training.
        test: examples for the test error, or None.
        directory: of the run; None writes nothing.
        logging: settings.
        subject: facts for the dashboards; its ``final`` numbers are written on exit.
        loggers: loggers of the caller, closed after the last epoch.
        progress: show a progress bar.
        resume: continue from the checkpoint.
    """

    def __init__(
        self,
        fit: Fit,
        test: Examples | None,
        directory: Path | None,
        logging: LoggingSettings,
        subject: Subject,
        loggers: Sequence[Logger] = (),
        *,
        progress: bool,
        resume: bool,
    ) -> None:
        self.fit, self.test, self.directory, self.logging = fit, test, directory, logging
        self.seconds, self.finished = 0.0, False
        self.history: list[float] = []
        self._data_bits: list[float] = []
        self._test_error: float | None = None
        if resume and directory is not None:
            state = load_checkpoint(self.checkpoint, fit)
            self.seconds, self.history, self.finished = state["seconds"], state["history"], state["finished"]
            self._test_error = state["test_error"]
            self._data_bits = state.get("data_bits", [])
        self.dashboards = open_dashboards(logging, directory, subject, keep_epochs=fit.epoch, resume=resume)
        self.bar = Bar(fit.settings.passes, fit.epoch, shown=progress)
        self.loggers: list[Logger] = []
        if directory is not None and fit.ranks.is_first:
            self.loggers.append(JsonLines(directory / "metrics.jsonl", keep_epochs=fit.epoch))
        self.loggers += loggers

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        close(self.dashboards)

    @property
    def checkpoint(self) -> Path:
        """Return the path of the newest checkpoint."""
        assert self.directory is not None
        return self.directory / "checkpoint" / "state.safetensors"

    @property
    def course(self) -> Course:
        """Return steps and data bits of the last epochs; no bits if images are augmented, as the ledger's images are not."""
        comparable = self.fit.settings.augment is None
        return Course(self.fit.epoch * self.fit.steps_per_epoch, tuple(self._data_bits) if comparable else ())

    def run(self) -> None:
        """Run the remaining epochs, and stop early if the net bits no longer fall."""
        began, saved = time.perf_counter() - self.seconds, time.perf_counter()
        try:
            while self.fit.epoch < self.fit.settings.passes and not self.finished:
                metrics = self._metrics(*self.fit.run_epoch())
                self.seconds = metrics["seconds"] = time.perf_counter() - began
                self._data_bits = [*self._data_bits, metrics["data_bits"]][-LAST_EPOCHS:]
                for logger in [self.bar, *self.loggers, *self.dashboards]:
                    logger.log(metrics)
                self._watch(metrics["net_bits"])
                is_due = time.perf_counter() - saved >= self.fit.settings.checkpoint_seconds
                is_due, self.finished = map(bool, self.fit.ranks.of_first([is_due, self.finished]))  # one clock for all
                if self.directory is not None and is_due:
                    self.save()
                    saved = time.perf_counter()
        finally:
            close(self.loggers)

    def _metrics(self, data_bits: float, net_weight_bits: float) -> Metrics:
        fit = self.fit
        if self.test is not None and (fit.epoch % self.logging.test_every == 0 or fit.epoch == fit.settings.passes):
            self._test_error = evaluate(fit.model, fit.likelihood, self.test, samples=0).error
        hyperparameter_bits = sum(charge.bits for charge in [*fit.model.charges(), *fit.likelihood.charges()])
        grid_step = fit.model.grid_step()
        refund_bits = float(fit.model.refund_bits(grid_step))
        net_weight_bits += fit.model.deterministic_bits()
        net_bits = data_bits + net_weight_bits + hyperparameter_bits
        return {
            "epoch": fit.epoch,
            "step": fit.epoch * fit.steps_per_epoch,
            "net_bits": net_bits,
            "gross_bits": net_bits + refund_bits,
            "refund_bits": refund_bits,
            "data_bits": data_bits,
            "net_weight_bits": net_weight_bits,
            "gross_weight_bits": net_weight_bits + refund_bits,
            "hyperparameter_bits": hyperparameter_bits,
            "grid_step": grid_step,
            "beta": fit.beta.value,
            "lr": fit.optimizer.param_groups[0]["lr"],
            "test_error": self._test_error,
            "error_name": fit.likelihood.error_name,
        }

    def _watch(self, net_bits: float) -> None:
        """Apply the rule of early stopping."""
        rule = self.fit.settings.early_stop
        if rule is None:
            return
        if not self.fit.beta.settled(self.fit.epoch):  # while beta changes, net bits of epochs are not comparable
            self.history.clear()
            return
        self.history = [*self.history, net_bits][-2 * rule.patience_epochs :]
        if len(self.history) == 2 * rule.patience_epochs:
            before, lately = self.history[: rule.patience_epochs], self.history[rule.patience_epochs :]
            self.finished = fmean(lately) > fmean(before) - rule.min_improvement_bits

    def save(self, *, finished: bool = False, is_first: bool = False) -> None:
        """Write a checkpoint.

        Args:
            finished: whether training is over.
            is_first: whether existing checkpoints belong to another training, and are not kept.
        """
        state = {"seconds": self.seconds, "history": self.history, "finished": finished or self.finished}
        state |= {"test_error": self._test_error, "data_bits": self._data_bits}
        save_checkpoint(self.checkpoint, self.fit, state, is_first=is_first)


def close(loggers: Sequence[Logger]) -> None:
    """Close every logger, even if one fails."""
    with ExitStack() as stack:
        for logger in reversed(loggers):
            stack.callback(logger.close)
