"""Train a model in a run directory, and take its ledger."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bitsback.data import Dataset, Examples
from bitsback.errors import ConfigError
from bitsback.files import write_tensors, write_text
from bitsback.ledger import Ledger
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, evaluate, posterior_tensors, take_ledger
from bitsback.model.accounting import check_point_grid, default_grid_step
from bitsback.posterior import PointPosterior
from bitsback.training.beta import Beta
from bitsback.training.checkpoint import load_checkpoint, save_checkpoint
from bitsback.training.loggers import Bar, JsonLines, Logger, Metrics, TensorBoard
from bitsback.training.loop import Fit
from bitsback.training.optimise import make_optimizer, make_schedule
from bitsback.training.settings import LedgerSettings, LoggingSettings, TrainingSettings

SMALL_MODEL_WEIGHTS = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """What a training ends with."""

    ledger: Ledger
    test_error: float | None
    error_name: str
    training_seconds: float
    epochs: int
    threads: int


def train(
    model: BayesianModel,
    likelihood: Likelihood,
    dataset: Dataset,
    *,
    directory: Path | None = None,
    config_text: str | None = None,
    training: TrainingSettings | None = None,
    ledger: LedgerSettings | None = None,
    logging: LoggingSettings | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> Outcome:
    """Lower the total description length of the training targets, then take the ledger.

    Args:
        model, likelihood, dataset: what is trained, in place, and on what; test examples only measure.
        directory: where the run's files go (see the README); None writes nothing.
        config_text: written to ``directory/config.yaml`` once everything is known to be usable.
        training, ledger, logging: settings; defaults where left out.
        seed: of batches and draws. Equal seed, threads and machine give equal bits.
        resume: continue from ``directory``'s checkpoint, to the same end, bit for bit, as without the interruption.
        progress: show the bar.

    Raises:
        TrainingError: when the loss is not finite; the last good checkpoint stays.
        ConfigError, RunError, DataError: with the fix.

    >>> from bitsback.data.digits import DigitsSettings
    >>> from bitsback.likelihoods import CategoricalLikelihood
    >>> from bitsback.model import bayesianize
    >>> model = bayesianize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    >>> settings = TrainingSettings(epochs=20)
    >>> outcome = train(model, CategoricalLikelihood(10), DigitsSettings().load(), training=settings, progress=False)
    >>> outcome.ledger.net_bits < outcome.ledger.uniform_bits
    True
    """
    training, ledger = training or TrainingSettings(), ledger or LedgerSettings()
    logging = logging or LoggingSettings()
    for examples in (dataset.train, dataset.test):
        if examples is not None:
            likelihood.check_targets(examples.targets, examples.name)
    _check_grid(model, ledger)
    device, dtype = _device(training.device), torch.float64 if training.precision == "float64" else torch.float32
    model.to(device, dtype)
    likelihood.to(device, dtype)
    data, test = dataset.train.to(device, dtype), dataset.test and dataset.test.to(device, dtype)
    with threads(training, model):
        fit = _start(model, likelihood, data, training, seed)
        if directory is not None and config_text is not None and not resume:
            write_text(directory / "config.yaml", config_text)
        session = _Session(fit, test, directory, logging, progress, resume)
        session.run()
        model.update_priors()
        book = take_ledger(
            model, likelihood, data, samples=ledger.samples, grid_step=ledger.grid_step, seed=seed, progress=progress
        )
        draws = ledger.samples if book.refund_bits else 0
        error = evaluate(model, likelihood, test, samples=draws, seed=seed + 1).error if test else None
        outcome = Outcome(book, error, likelihood.error_name, session.seconds, fit.epoch, torch.get_num_threads())
    if directory is not None:
        session.save(finished=True)
        _write_results(directory, model, outcome)
    return outcome


def _check_grid(model: BayesianModel, ledger: LedgerSettings) -> None:
    """Refuse a grid that is too coarse for a point estimate before training, not after."""
    for weight in model.weights:
        if isinstance(weight.posterior, PointPosterior):
            step = ledger.grid_step or weight.posterior.grid_step
            if step is not None:
                check_point_grid(weight, step, "ledger.grid_step" if ledger.grid_step else "posterior.grid_step")


def _start(model: BayesianModel, likelihood: Likelihood, data: Examples, settings: TrainingSettings, seed: int) -> Fit:
    optimizer = make_optimizer([model, likelihood], settings.optimizer)
    steps = -(-len(data) // settings.batch_size)
    schedule = make_schedule(optimizer, settings.schedule, settings.epochs, steps)
    return Fit(model, likelihood, data, settings, seed, optimizer, schedule, Beta(settings, steps))


class _Session:
    """The epochs of one training: logs, checkpoints, early stop."""

    def __init__(
        self, fit: Fit, test: Examples | None, directory: Path | None, logging: LoggingSettings, progress: bool, resume: bool
    ) -> None:
        self.fit, self.test, self.directory, self.logging = fit, test, directory, logging
        self.seconds, self.best_bits, self.best_epoch, self.finished = 0.0, float("inf"), 0, False
        self._test_error: float | None = None
        if resume and directory is not None:
            state = load_checkpoint(self.checkpoint, fit)
            self.seconds, self.best_epoch, self.finished = state["seconds"], state["best_epoch"], state["finished"]
            self.best_bits = float("inf") if state["best_bits"] is None else state["best_bits"]
        self.loggers: list[Logger] = [Bar(fit.settings.epochs, fit.epoch, shown=progress)]
        if directory is not None:
            self.loggers.append(JsonLines(directory / "metrics.jsonl", keep_epochs=fit.epoch))
        if logging.tensorboard:
            if directory is None:
                raise ConfigError("logging.tensorboard needs a run directory to write to")
            self.loggers.append(TensorBoard(directory / "tensorboard"))

    @property
    def checkpoint(self) -> Path:
        assert self.directory is not None
        return self.directory / "checkpoint" / "state.safetensors"

    def run(self) -> None:
        """Epochs until the last, or until the net bits no longer fall."""
        if self.directory is not None and self.fit.epoch == 0:
            self.save()
        began, saved = time.perf_counter() - self.seconds, time.perf_counter()
        try:
            while self.fit.epoch < self.fit.settings.epochs and not self.finished:
                metrics = self._metrics(*self.fit.run_epoch())
                self.seconds = metrics["seconds"] = time.perf_counter() - began
                for logger in self.loggers:
                    logger.log(metrics)
                self._watch(metrics["net_bits"])
                if self.directory is not None and time.perf_counter() - saved >= self.fit.settings.checkpoint_seconds:
                    self.save()
                    saved = time.perf_counter()
        finally:
            for logger in self.loggers:
                logger.close()

    def _metrics(self, data_bits: float, net_weight_bits: float) -> Metrics:
        fit = self.fit
        if self.test is not None and (fit.epoch % self.logging.test_every == 0 or fit.epoch == fit.settings.epochs):
            self._test_error = evaluate(fit.model, fit.likelihood, self.test, samples=0).error
        hyperparameter_bits = sum(charge.bits for charge in [*fit.model.charges(), *fit.likelihood.charges()])
        grid_step = default_grid_step(fit.model)
        refund_bits = float(fit.model.refund_bits(grid_step))
        if fit.model.smallest_std() is None:  # a penalty is a density: on the grid it costs more
            net_weight_bits -= np.log2(grid_step) * sum(q.weights for q in fit.model.posteriors())
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
        rule = self.fit.settings.early_stop
        if rule is None:
            return
        if net_bits < self.best_bits - rule.min_improvement_bits:
            self.best_bits, self.best_epoch = net_bits, self.fit.epoch
        self.finished = self.fit.epoch - self.best_epoch >= rule.patience_epochs

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint."""
        best = None if self.best_bits == float("inf") else self.best_bits
        state = {"seconds": self.seconds, "best_bits": best, "best_epoch": self.best_epoch, "finished": finished}
        save_checkpoint(self.checkpoint, self.fit, state)


def _write_results(directory: Path, model: BayesianModel, outcome: Outcome) -> None:
    write_tensors(directory / "posterior.safetensors", *posterior_tensors(model))
    summary = {
        "sentence": outcome.ledger.sentence(),
        "net_bits": outcome.ledger.net_bits,
        f"test_{outcome.error_name}": outcome.test_error,
        "training_seconds": outcome.training_seconds,
        "epochs": outcome.epochs,
        "threads": outcome.threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    write_text(directory / "summary.json", json.dumps(summary, indent=2))
    write_text(directory / "ledger.json", outcome.ledger.to_json())


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as fault:
        reason = str(fault).splitlines()[0]
        raise ConfigError(f"training.device: '{name}' cannot be used here ({reason}); use cpu or auto") from fault
    return device


@contextmanager
def threads(settings: TrainingSettings, model: torch.nn.Module) -> Iterator[None]:
    """Use the threads that the settings ask for, and restore what was."""
    before = torch.get_num_threads()
    small = sum(p.numel() for p in model.parameters()) < 2 * SMALL_MODEL_WEIGHTS
    wanted = (1 if small else before) if settings.threads == "auto" else settings.threads
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
