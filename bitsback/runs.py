"""Training of a configuration or a model: ``train`` and ``compare``, the run directory and its report."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from bitsback.analysis.sources import TrainedRun
from bitsback.atomic_io import file_name, new_directory
from bitsback.config import Config, Experiment, load_run
from bitsback.config.from_data import config_to_train, read_config
from bitsback.config.given_experiment import given_experiment
from bitsback.distributed import Ranks, started
from bitsback.errors import ConfigError, DataError, RunError
from bitsback.ledger import shown_bits, shown_error
from bitsback.likelihoods import Likelihood
from bitsback.locks import LOCK, InUseError, exclusive
from bitsback.model import BayesianModel
from bitsback.processes import launched_ranks
from bitsback.result import TableResult, text_table
from bitsback.training import EngineSettings, LedgerSettings, Logger, LoggingSettings, TrainingSettings

__all__ = ["Comparison", "compare", "config_of_run", "new_run", "say_no_page", "train", "write_page"]

COLUMNS = ("net_bits", "gross_bits", "refund_bits", "data_bits", "net_weight_bits", "hyperparameter_bits")


def _trained(experiment: Experiment, directory: Path | None, *, report: bool, **settings: Any) -> TrainedRun:
    outcome = experiment.train(directory, **settings)
    found = TrainedRun(**vars(outcome), experiment=experiment, directory=directory)
    shown = settings.get("progress", True)
    return replace(found, report=write_page(found, progress=shown)) if report and directory is not None else found


def train(
    model: BayesianModel | Config | Experiment | str | Path,
    likelihood: Likelihood | None = None,
    dataset: Any = None,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    ledger: LedgerSettings | Mapping[str, Any] | None = None,
    logging: LoggingSettings | Mapping[str, Any] | None = None,
    engine: EngineSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    profile: bool = False,
    report: bool = True,
    progress: bool = True,
    loggers: Sequence[Logger] = (),
    watch: Callable[[int, BayesianModel], None] | None = None,
) -> TrainedRun:
    """Train a Bayesian model, or the experiment that a configuration describes, and take its ledger.

    With ``out``, a Python model too is written as a complete run directory on which report, widen, certify, pack and plot
    work. Parts that its configuration cannot describe are marked ``given``; to open such a run in another process, pass them
    again: ``bitsback.load_run(out, network=..., dataset=...)``.

    Args:
        model: result of :func:`bitsback.bayesianize`; or a configuration, an experiment, a YAML file, a table (.csv, .tsv,
            .parquet), or, with ``resume``, a run directory.
        likelihood: only for a Python model; default: categorical, with as many classes as the network has outputs.
        dataset: only for a Python model: a :class:`bitsback.Dataset` with training and test examples, or training examples in
            anything that :func:`bitsback.data.source` takes (tensors, arrays, tables, data sets, loaders, files).
        overrides: only for a file, such as ``prior.kind=laplace``; of a table, ``target=price``.
        out: run directory; None writes nothing.
        training: only for a Python model; settings, or a mapping as in YAML.
        ledger: as ``training``.
        logging: as ``training``.
        engine: as ``training``: how the processes that ``torchrun`` started train the model together. Rank 0 alone writes.
        seed: only for a Python model.
        resume: continue an interrupted training in ``out``; the result is the same as without the interruption.
        profile: write a profile of the training step to ``out``/profile.
        report: write ``out``/report.html, unless ``logging.report`` is false.
        progress: show progress bars.
        loggers: as in :func:`bitsback.training.train`.
        watch: as in :func:`bitsback.training.train`.

    Returns:
        The trained experiment with its ledger, test error and run directory.

    Raises:
        ConfigError: settings are invalid or contradict each other; raised before the first epoch, as the next three.
        DataError: the data are missing or invalid.
        LayerError: a layer cannot hold a posterior.
        RunError: the run directory cannot be written or resumed.
        TrainingError: the loss is not finite; the last good checkpoint is kept.

    >>> import torch, bitsback
    >>> model = bitsback.bayesianize(torch.nn.Linear(4, 3), prior="laplace")
    >>> examples = bitsback.Examples(torch.randn(50, 4), torch.randint(3, (50,)))
    >>> trained = train(model, None, examples, training={"epochs": 2}, progress=False)
    >>> trained.ledger.weights
    15
    """
    settings: dict[str, Any] = {"resume": resume, "profile": profile, "report": report, "progress": progress}
    settings |= {"loggers": loggers, "watch": watch}
    sections = {"training": training, "ledger": ledger, "logging": logging, "engine": engine}
    directory = None if out is None else Path(out)
    _check_model(model)
    if not isinstance(model, BayesianModel):
        for name, value in {"likelihood": likelihood, "dataset": dataset, **sections, "seed": seed or None}.items():
            if value is not None:
                raise ConfigError(f"a configuration says its own {name}; leave {name} out, or use overrides")
        if resume and isinstance(model, str | Path):
            directory = directory or Path(model)
            model = config_of_run(Path(model), overrides, directory)
        elif isinstance(model, str | Path):
            model = config_to_train(Path(model), overrides)
        config = model.config if isinstance(model, Experiment) else model
        assert isinstance(config, Config)
        with started(config.engine.strategy) as ranks, _held(directory, resume, ranks):
            experiment = model if isinstance(model, Experiment) else Experiment.build(model)
            if not resume:
                experiment.check_channels()
            if progress and ranks.is_first and experiment.dataset.columns:
                print(experiment.dataset.columns_text(), file=sys.stderr)
            return _trained(experiment, directory, **settings)
    if overrides:
        raise ConfigError("overrides change a YAML file; give a model's settings as training=..., ledger=..., logging=...")
    if dataset is None:
        raise DataError(
            "a model is trained on data, which come third: bitsback.train(model, likelihood, (inputs, targets)), or another "
            "source; the likelihood may be None for labels"
        )
    experiment = given_experiment(model, likelihood, dataset, sections, seed)
    with started(experiment.config.engine.strategy) as ranks, _held(directory, resume, ranks):
        return _trained(experiment, directory, **settings)


def _check_model(model: Any) -> None:
    """Raise ConfigError for a network without posteriors, and for a model inside a wrapper."""
    if not isinstance(model, nn.Module) or isinstance(model, BayesianModel):
        return
    kind = type(model).__name__
    for name in ("module", "_orig_mod"):
        if isinstance(getattr(model, name, None), BayesianModel):
            raise ConfigError(f"{kind} wraps the Bayesian model, which trains by itself; give what is inside: model.{name}")
    raise ConfigError(f"{kind} has no posteriors yet; make a model of it first: model = bitsback.bayesianize(network)")


def _held(directory: Path | None, resume: bool, ranks: Ranks) -> AbstractContextManager[None]:
    """Lock a run directory, new or to be resumed, while rank 0 writes it."""
    if directory is None and resume:
        raise ConfigError("resume continues what an earlier training left in a directory; give out=DIRECTORY")
    if directory is None or not ranks.is_first:
        return nullcontext()
    return exclusive(directory / LOCK, directory) if resume else new_directory(directory)


def config_of_run(config: Path, overrides: Sequence[str], directory: Path) -> Config:
    """Return the configuration of a run that is to be resumed.

    Args:
        config: a YAML file, which must agree with the run's own configuration, or the run directory.
        overrides: of the YAML file.
        directory: run directory.

    Returns:
        The configuration stored in ``directory``.

    Raises:
        RunError: another configuration, or an override of a run directory, is given.
    """
    run = load_run(directory)
    if config.is_file() and read_config(config, overrides) != run.config:
        raise RunError(f"{directory} was started with another configuration than {config}; resume it as it was: "
                       f"bitsback train {directory} --resume")  # fmt: skip
    if config.is_dir() and overrides:
        raise RunError("a resumed run keeps its configuration; leave the overrides out")
    return run.config


@contextmanager
def new_run(name: str) -> Iterator[Path]:
    """Lock a new directory runs/NAME-DATE-TIME; a number is appended when several runs begin within a second."""
    stem = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        directory = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with ExitStack() as held:
            try:
                if directory.exists():
                    continue
                held.enter_context(new_directory(directory))
            except InUseError:
                continue
            yield directory
            return


def write_page(trained: TrainedRun, *, progress: bool = True) -> Path | None:
    """Write the report of a run that has just finished, unless ``logging.report`` is false.

    A report that fails is printed as a warning on stderr, not raised, because the training has succeeded.

    Args:
        trained: the finished run.
        progress: show progress bars.

    Returns:
        Path of the report; None if none was written.
    """
    directory = trained.directory
    if directory is None or not trained.config.logging.report or launched_ranks()[0]:
        return None
    sys.stdout.flush()  # show the ledger before the slow drawing begins
    try:
        from bitsback.report import write_report

        whole = None if trained.experiment.model.is_sharded else trained.experiment  # else read again from the run
        return write_report(directory, experiment=whole, progress=progress)
    except Exception as error:  # plotting libraries raise errors of any class
        say_no_page(error, directory)
        return None


def say_no_page(error: Exception, *directories: Path) -> None:
    """Print one sentence on stderr that a report could not be written; with --debug, print the traceback too.

    Args:
        error: cause of the failure.
        *directories: run directories of the report.
    """
    if os.environ.get("BITSBACK_DEBUG"):
        traceback.print_exc()
    reason = " ".join(str(error).split()) or type(error).__name__
    runs = " ".join(map(str, directories))
    what = "the run is complete" if len(directories) == 1 else "the runs are complete"
    print(f"bitsback: {what}, but no page could be written: {reason}; try again: bitsback report {runs}", file=sys.stderr)


@dataclass(frozen=True)
class Comparison(TableResult):
    """Results of one configuration trained with several values of one key.

    Attributes:
        key: the varied key, such as ``prior.kind``.
        rows: bits, error and seconds of each value, in the given order.
        report: path of the comparison report, if one was written.
    """

    key: str
    rows: tuple[dict[str, Any], ...]
    report: Path | None = None

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each value."""
        return list(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the rows and the key."""
        return {"key": self.key, "rows": self.records()}

    def __str__(self) -> str:
        head = [self.key, "net bits", "gross bits", "refund", "data bits", "grid step", "test error", "seconds"]
        body = []
        for row in sorted(self.rows, key=lambda row: row["net_bits"]):
            gross, refund, net = shown_bits(row["net_bits"], row["refund_bits"])
            error = "" if row["test_error"] is None else shown_error(row["error_name"], row["test_error"])
            bits = [net, gross, refund, f"{row['data_bits']:,.1f}", f"{row['grid_step']:g}"]
            body.append([row[self.key], *bits, error, f"{row['seconds']:.1f}"])
        said = [f"{self.key}={row[self.key]}: {warning}" for row in self.rows for warning in row["warnings"]]
        return "\n".join([text_table(head, body), *said])


def compare(
    config: str | Path,
    key: str,
    values: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Train a configuration once for each value of a key.

    Args:
        config: a YAML file.
        key: varied key, such as ``prior.kind``.
        values: its values, such as ``["gaussian", "laplace"]``.
        overrides: set in every training.
        out: directory for the runs and a comparison report; None writes nothing.
        progress: print the name of each training on stderr and show progress bars.

    Returns:
        The table of bits, errors and seconds.

    Raises:
        ConfigError: a value is invalid; all values are checked before the first training.
        DataError: the data are missing or invalid.
        RunError: ``out`` cannot be written.
        TrainingError: a loss is not finite.
    """
    with ExitStack() as held:
        directory = None if out is None else Path(out)
        if directory is not None:
            held.enter_context(new_directory(directory))
        experiments = {value: Experiment.build(read_config(config, [*overrides, f"{key}={value}"])) for value in values}
        names = _names(key, values)
        rows = []
        for value, experiment in experiments.items():
            if progress:
                print(f"{key}={value}", file=sys.stderr)
            trained = train(experiment, out=None if directory is None else directory / names[value], progress=progress)
            rows.append(_row(key, value, trained))
        page = None
        if directory is not None:
            page = _comparison_page([directory / name for name in names.values()], directory / "report.html")
        return Comparison(key, tuple(rows), page)


def _names(key: str, values: Sequence[str]) -> dict[str, str]:
    """Return the directory name of each run; numbered if some differ only by case, which some file systems ignore."""
    names = {value: file_name(f"{key}={value}") for value in values}
    if len({name.lower() for name in names.values()}) == len(names):
        return names
    return {value: f"{name}-{number}" for number, (value, name) in enumerate(names.items(), 1)}


def _row(key: str, value: str, trained: TrainedRun) -> dict[str, Any]:
    book = trained.ledger
    return {
        key: value,
        **{name: getattr(book, name) for name in COLUMNS},
        "grid_step": book.grid_step,
        "not_charged": list(book.not_charged),
        "warnings": list(book.warnings),
        "test_error": trained.test_error,
        "error_name": trained.error_name,
        "seconds": trained.training_seconds,
    }


def _comparison_page(directories: Sequence[Path], path: Path) -> Path | None:
    try:
        from bitsback.report import write_comparison

        return write_comparison(directories, path)
    except Exception as error:  # as in write_page
        say_no_page(error, *directories)
        return None
