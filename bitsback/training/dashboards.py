"""TensorBoard and Weights & Biases: scalars under ``bits/``, histograms of the weights, what the run was set to."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bitsback.atomic_io import write_text
from bitsback.errors import RunError
from bitsback.extras import require
from bitsback.ledger import Ledger
from bitsback.model import BayesianModel
from bitsback.registry import Settings
from bitsback.training._loggers import Logger, Metrics, scalars
from bitsback.training.histograms import Plain, flat, histograms
from bitsback.training.settings import LoggingSettings, WandbSettings

__all__ = ["Subject", "TensorBoard", "Wandb", "check_dashboards", "final_numbers", "open_dashboards", "subject_of"]

COMPARED = ("bits/net", "bits/gross", "bits/refund", "bits/data", "training/test_error")
LEDGER = ("ledger/net", "ledger/gross", "ledger/refund", "ledger/data", "ledger/test_error")
TOLD_APART_BY = ("network.kind", "posterior.", "prior.", "prior_overrides.", "seed")
"""What the HPARAMS tab has for columns; it opens with the first five in alphabetical order, the prior's kind among them."""

TRAINED_WITH = ("batch_size", "beta.", "budget_bits", "draws", "epochs", "objective.kind", "optimizer.")
BINS = 64


@dataclass
class Subject:
    """What a dashboard knows of a training beyond its metrics.

    Attributes:
        model: whose weights are drawn.
        settings: what the run was set to, under dotted names.
        every: epochs between histograms; 0 for none.
        final: the numbers of the ledger, empty until it has been taken.
    """

    model: BayesianModel
    settings: dict[str, Plain] = field(default_factory=dict)
    every: int = 10
    final: dict[str, float] = field(default_factory=dict)


def subject_of(
    model: BayesianModel, logging: LoggingSettings, sections: Mapping[str, Settings], seed: int, config_text: str | None
) -> Subject:
    """A training's subject, with the configuration for settings, or without one what the objects say of themselves."""
    if not (logging.tensorboard or logging.wandb):
        return Subject(model)
    if config_text is not None:
        from ruamel.yaml import YAML

        return Subject(model, flat(YAML(typ="safe", pure=True).load(config_text)), logging.histograms_every)
    known = {"prior": model.prior_settings, **sections}
    written = {name: settings.model_dump(mode="json") for name, settings in known.items()}
    told = {"network.kind": type(model.network).__name__, "seed": seed, **flat(written)}
    return Subject(model, told, logging.histograms_every)


def final_numbers(ledger: Ledger, test_error: float | None) -> dict[str, float]:
    """The ledger's totals by their place on a dashboard.

    >>> final_numbers(Ledger(entries=(), model_weights=0, data_bits=30.0, uniform_bits=100.0, examples=10), 0.1)["ledger/net"]
    30.0
    """
    totals = {tag: float(getattr(ledger, tag.removeprefix("ledger/") + "_bits")) for tag in LEDGER[:-1]}
    return totals if test_error is None else {**totals, LEDGER[-1]: test_error}


def check_dashboards(logging: LoggingSettings, directory: Path | None) -> None:
    """Raise RunError, before anything is written, when a dashboard is not installed or has nowhere to write."""
    for name, wanted in (("tensorboard", logging.tensorboard), ("wandb", logging.wandb)):
        if wanted is False:
            continue
        if directory is None:
            raise RunError(f"logging.{name} needs a run directory to write to")
        require(name, f"logging.{name}")


def open_dashboards(
    logging: LoggingSettings, directory: Path | None, subject: Subject, *, keep_epochs: int, resume: bool
) -> list[Logger]:
    """The dashboards that the settings ask for; a resumed training goes on after ``keep_epochs``."""
    opened: list[Logger] = []
    if directory is None:
        return opened
    if logging.wandb is not False:
        settings = WandbSettings() if logging.wandb is True else logging.wandb
        opened.append(Wandb(directory, subject, settings, keep_epochs=keep_epochs, resume=resume))
    if logging.tensorboard:
        opened.append(TensorBoard(directory / "tensorboard", subject, keep_epochs))
    return opened


class _Dashboard:
    """Scalars at every epoch, histograms at some and at the end."""

    def __init__(self, subject: Subject, keep_epochs: int) -> None:
        self.subject, self.epoch, self._drawn_at = subject, keep_epochs, 0

    def log(self, metrics: Metrics) -> None:
        self.epoch, every = int(metrics["epoch"]), self.subject.every
        self._add_scalars(scalars(metrics))
        if every and self.epoch % every == 0:
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self.epoch
        self._add_histograms(histograms(self.subject.model))

    def close(self) -> None:
        if self.subject.final:
            if self.subject.every and self._drawn_at != self.epoch:
                self._draw()
            self._finish(self.subject.final)
        self._close()

    def _add_scalars(self, numbers: dict[str, float]) -> None:
        raise NotImplementedError

    def _add_histograms(self, drawn: dict[str, Tensor]) -> None:
        raise NotImplementedError

    def _finish(self, final: dict[str, float]) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class TensorBoard(_Dashboard):
    """Events in one folder: scalars under ``bits/``, ``training/`` and at the end ``ledger/``, histograms under ``weights/``.

    The HPARAMS tab has the run from its first epoch on, with the settings by which runs are told apart.
    """

    def __init__(self, directory: Path, subject: Subject, keep_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        super().__init__(subject, keep_epochs)
        self._writer = SummaryWriter(str(directory), purge_step=keep_epochs + 1)
        told = {name: value for name, value in subject.settings.items() if _tells_runs_apart(name)}
        experiment, begun, self._ended = hparams(told, dict.fromkeys([*LEDGER, *COMPARED], 0.0))
        for summary in (experiment, begun):  # add_hparams of the writer would begin a run of its own
            self._writer._get_file_writer().add_summary(summary, 0)

    def _add_scalars(self, numbers: dict[str, float]) -> None:
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value, self.epoch)

    def _add_histograms(self, drawn: dict[str, Tensor]) -> None:
        for tag, values in drawn.items():
            self._writer.add_histogram(tag, values, self.epoch)

    def _finish(self, final: dict[str, float]) -> None:
        self._add_scalars(final)
        self._writer._get_file_writer().add_summary(self._ended, self.epoch)

    def _close(self) -> None:
        self._writer.close()


def _tells_runs_apart(name: str) -> bool:
    """True for the settings that the HPARAMS tab shows as columns; W&B has all."""
    return name.startswith(TOLD_APART_BY) or name.removeprefix("training.").startswith(TRAINED_WITH)


class Wandb(_Dashboard):
    """A run at Weights & Biases, of which the epoch is the step; a resumed training goes on with the same run.

    Raises:
        RunError: when W&B refuses to begin, with its reason.
    """

    def __init__(self, directory: Path, subject: Subject, settings: WandbSettings, *, keep_epochs: int, resume: bool) -> None:
        import wandb

        super().__init__(subject, keep_epochs)
        id_path = directory / "checkpoint" / "wandb-id"
        known = id_path.read_text(encoding="utf-8").strip() if resume and id_path.is_file() else ""
        number = known or secrets.token_hex(4)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name or directory.resolve().name,
                group=settings.group,
                tags=list(settings.tags) or None,
                id=number,
                resume="allow" if known else None,
                dir=str(directory),
                config=dict(subject.settings),
                settings=wandb.Settings(console="off"),
            )
        except (OSError, wandb.errors.Error) as error:
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise RunError(f"W&B cannot begin: {reason}; run `wandb login`, or set WANDB_MODE=offline") from error
        write_text(id_path, number)

    def _add_scalars(self, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=self.epoch)

    def _add_histograms(self, drawn: dict[str, Tensor]) -> None:
        import numpy as np
        import wandb

        shown: dict[str, Any] = {
            tag: wandb.Histogram(np_histogram=np.histogram(values.double().numpy(), bins=BINS)) for tag, values in drawn.items()
        }
        self._run.log(shown, step=self.epoch)

    def _finish(self, final: dict[str, float]) -> None:
        self._run.summary.update(final)

    def _close(self) -> None:
        self._run.finish(exit_code=0 if self.subject.final else 1)
