"""TensorBoard and Weights & Biases: scalars, histograms of the weights, and the run's settings."""

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
"""Scalars of epochs that the HPARAMS tab compares."""
LEDGER = ("ledger/net", "ledger/gross", "ledger/refund", "ledger/data", "ledger/test_error")
"""Scalars of the final ledger."""
TOLD_APART_BY = ("network.kind", "posterior.", "prior.", "prior_overrides.", "seed")
"""Beginnings of the settings that are columns of the HPARAMS tab, which first shows five of them in alphabetical order."""

TRAINED_WITH = ("batch_size", "beta.", "budget_bits", "draws", "epochs", "objective.kind", "optimizer.")
"""Beginnings of the ``training`` settings that are columns as well."""
BINS = 64
"""Bins of a histogram at W&B."""


@dataclass
class Subject:
    """Facts about a training that dashboards show beside the metrics.

    Attributes:
        model: whose weights are drawn in histograms.
        settings: the run's settings, under dotted names.
        every: epochs between histograms; 0 for none.
        final: numbers of the ledger, empty until it has been taken.
    """

    model: BayesianModel
    settings: dict[str, Plain] = field(default_factory=dict)
    every: int = 10
    final: dict[str, float] = field(default_factory=dict)


def subject_of(
    model: BayesianModel, logging: LoggingSettings, sections: Mapping[str, Settings], seed: int, config_text: str | None
) -> Subject:
    """Collect the facts that dashboards show.

    Args:
        model: the trained model.
        logging: which dashboards there are.
        sections: settings by section, used if there is no configuration.
        seed: of the training.
        config_text: configuration as YAML, or None.

    Returns:
        the subject; its settings are empty if no dashboard is on.
    """
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
    """Return the ledger's totals by tag.

    Args:
        ledger: of the training targets.
        test_error: or None.

    Returns:
        numbers under ``ledger/``.

    >>> final_numbers(Ledger(entries=(), model_weights=0, data_bits=30.0, uniform_bits=100.0, examples=10), 0.1)["ledger/net"]
    30.0
    """
    totals = {tag: float(getattr(ledger, tag.removeprefix("ledger/") + "_bits")) for tag in LEDGER[:-1]}
    return totals if test_error is None else {**totals, LEDGER[-1]: test_error}


def check_dashboards(logging: LoggingSettings, directory: Path | None) -> None:
    """Check, before files are written, that the dashboards can be used.

    Args:
        logging: which dashboards are wanted.
        directory: of the run, or None.

    Raises:
        RunError: if there is no directory.
        MissingExtraError: if a dashboard is not installed.
    """
    for name, wanted in (("tensorboard", logging.tensorboard), ("wandb", logging.wandb)):
        if wanted is False:
            continue
        if directory is None:
            raise RunError(f"logging.{name} needs a run directory to write to")
        require(name, f"logging.{name}")


def open_dashboards(
    logging: LoggingSettings, directory: Path | None, subject: Subject, *, keep_epochs: int, resume: bool
) -> list[Logger]:
    """Open the dashboards that are wanted.

    Args:
        logging: which dashboards.
        directory: of the run; None opens none.
        subject: facts to show.
        keep_epochs: epochs that a resumed training keeps.
        resume: whether the training is resumed.

    Returns:
        the open dashboards.
    """
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
    """Base class of dashboards: scalars at every epoch, histograms at some epochs and at the end."""

    def __init__(self, subject: Subject, keep_epochs: int) -> None:
        self.subject, self.epoch, self._drawn_at = subject, keep_epochs, 0

    def log(self, metrics: Metrics) -> None:
        """Write the scalars of an epoch, and histograms if they are due."""
        self.epoch, every = int(metrics["epoch"]), self.subject.every
        self._add_scalars(scalars(metrics))
        if every and self.epoch % every == 0:
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self.epoch
        self._add_histograms(histograms(self.subject.model))

    def close(self) -> None:
        """Write the ledger's numbers if there are any, and close."""
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

    The HPARAMS tab lists the run from its first epoch on, with the settings that distinguish runs.

    Args:
        directory: for the events.
        subject: facts to show.
        keep_epochs: epochs that a resumed training keeps.
    """

    def __init__(self, directory: Path, subject: Subject, keep_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        super().__init__(subject, keep_epochs)
        self._writer = SummaryWriter(str(directory), purge_step=keep_epochs + 1)
        told = {name: value for name, value in subject.settings.items() if _tells_runs_apart(name)}
        experiment, begun, self._ended = hparams(told, dict.fromkeys([*LEDGER, *COMPARED], 0.0))
        for summary in (experiment, begun):  # SummaryWriter.add_hparams would start a separate run
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
    """Return whether the HPARAMS tab shows a setting as a column; W&B shows all."""
    return name.startswith(TOLD_APART_BY) or name.removeprefix("training.").startswith(TRAINED_WITH)


class Wandb(_Dashboard):
    """Run at Weights & Biases, with epochs for steps; a resumed training continues the same run.

    Args:
        directory: of the training's run.
        subject: facts to show.
        settings: project, name, group and tags.
        keep_epochs: epochs that a resumed training keeps.
        resume: continue the run whose id is stored in the directory.

    Raises:
        RunError: with the reason, if W&B fails to start.
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
