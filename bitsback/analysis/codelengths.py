"""Code lengths of the labels under several codes, for one data set and one network."""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitsback.analysis._approximate import bic_model_bits, laplace_model_bits
from bitsback.analysis._point_estimates import PointNetwork, check_labels, point_config
from bitsback.analysis._rivals import Rival, label_spreading, logistic
from bitsback.analysis.sources import TrainedRun, experiment_of
from bitsback.config import Config, Experiment, Run, load_config
from bitsback.config.coding_settings import PackSettings, TuningSettings
from bitsback.config.experiment import open_source
from bitsback.errors import ConfigError, DataError, FileError, LayerError, MissingExtraError, brief
from bitsback.formats.prequential.walk import check as check_prequential
from bitsback.formats.prequential.walk import check_whole
from bitsback.formats.prequential.write import prequential
from bitsback.formats.two_part import send_two_part
from bitsback.ledger import Ledger, shown_error
from bitsback.model.model import FLOAT32_BITS
from bitsback.posteriors import PointPosteriorSettings
from bitsback.result import Result, text_table

__all__ = [
    "NAMES",
    "CodeTable",
    "Codelengths",
    "Row",
    "check_names",
    "codelengths",
    "configuration_of",
    "probe",
    "probe_config",
]

NAMES = ("uniform", "float32", "quantised", "bic", "laplace", "variational", "realised", "prequential",
         "label_spreading", "logistic")  # fmt: skip
PROBED = ("uniform", "variational", "prequential")
"""Codes of MDL probing: the uniform code, and the two of Voita & Titov."""

WHOLE = {"bic": "BIC", "laplace": "Laplace's approximation", "prequential": "the prequential code"}
"""Codes of one label for each example, by name, with their names in messages."""

PROBE = Path(__file__).with_name("probe.yaml")


SHOWN_CHARACTERS = 100
"""Longest reason for a code without bits."""

SHOWN = ("code", "model bits", "data bits", "total bits", "ratio", "test error", "seconds", "decodable here", "")


@dataclass(frozen=True)
class Row:
    """Code length of the labels under one code.

    Attributes:
        name: of the code.
        model_bits: bits of the network; of a code without a network, of the choice of its setting.
        data_bits: bits of the labels, given the network.
        total_bits: their sum.
        ratio: total bits over those of the uniform code.
        test_error: of the network that the code sends, or of the last one that it trains.
        seconds: computing time, training included.
        decodable: whether bitsback writes and reads this code.
        how: the command that does, or why none does.

    Bits and ratio are None if the configuration lacks what the code needs; ``how`` then names it.
    """

    name: str
    model_bits: float | None
    data_bits: float | None
    total_bits: float | None
    ratio: float | None
    test_error: float | None
    seconds: float
    decodable: bool
    how: str


@dataclass(frozen=True)
class CodeTable(Result):
    """Code lengths of the labels under several codes."""

    rows: tuple[Row, ...]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each code."""
        return [asdict(row) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows by name of the code."""
        return {row.name: asdict(row) for row in self.rows}

    def __str__(self) -> str:
        body = [
            [
                row.name,
                *("" if bits is None else f"{bits:,.0f}" for bits in (row.model_bits, row.data_bits, row.total_bits)),
                "" if row.ratio is None else f"{row.ratio:.3g}",
                "" if row.test_error is None else shown_error("error", row.test_error),
                f"{row.seconds:.1f}",
                "yes" if row.decodable else "no",
                row.how,
            ]
            for row in self.rows
        ]
        return text_table(SHOWN, body)


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that is not in :data:`NAMES`."""
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"there is no code '{name}'; choose among {', '.join(NAMES)}")


def probe_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a linear probe on the features in an NPZ file.

    Args:
        path: NPZ file with arrays ``inputs`` (n, features) and ``targets`` (n,).
        overrides: such as ``training.epochs=50``.

    Returns:
        The configuration.
    """
    return load_config(PROBE, [f"data.path={path}", *overrides])


def _opened(source: Config | Run | TrainedRun | str | Path, overrides: Sequence[str] = ()) -> Config | Run | TrainedRun:
    """Open a configuration or a run; an NPZ file gives the configuration of its probe."""
    if isinstance(source, TrainedRun):
        return source
    if isinstance(source, str | Path) and Path(source).suffix == ".npz" and not Path(source).is_dir():
        return probe_config(Path(source), overrides)
    return open_source(source, overrides)


def configuration_of(source: Config | Run | str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a source of :func:`codelengths`.

    Args:
        source: as in :func:`codelengths`.
        overrides: as in :func:`codelengths`.

    Returns:
        The configuration.
    """
    given = _opened(source, overrides)
    return given if isinstance(given, Config) else given.config


def codelengths(
    source: Config | Run | TrainedRun | str | Path,
    overrides: Sequence[str] = (),
    *,
    codes: Sequence[str] | None = None,
    progress: bool = True,
) -> CodeTable:
    """Compute the bits of the labels under several codes, for one data set and one network.

    Args:
        source: a configuration, a run or the result of :func:`bitsback.train`; or a YAML file, a run directory, an NPZ file of
            an encoder's features.
        overrides: for a YAML or NPZ file, such as ``training.epochs=50``.
        codes: some of :data:`NAMES`; default: all, and a code that these data or this network do not allow has a row that
            says why.
        progress: print the name of each code on stderr and show progress bars.

    Returns:
        A row for each code.

    Raises:
        ConfigError: a code is unknown, or the configuration is invalid.
        DataError: the targets are not labels, or the data cannot be read.
        RunError: the run cannot be read.

    >>> from bitsback.training import TrainingSettings
    >>> table = codelengths(Config(training=TrainingSettings(epochs=5)), codes=["uniform"], progress=False)
    >>> table.records()[0]["ratio"]
    1.0
    """
    given = _opened(source, overrides)
    names = NAMES if codes is None else tuple(dict.fromkeys(codes))
    check_names(names)
    table, rows = Codelengths(given, names, must_all=codes is not None, progress=progress), []
    for name in names:
        if progress:
            print(name, file=sys.stderr)
        rows.append(table.row(name))
    return CodeTable(tuple(rows))


def probe(path: str | Path, overrides: Sequence[str] = (), *, progress: bool = True) -> CodeTable:
    """Compute the bits of the labels given an encoder's features, with a linear network (MDL probing, Voita & Titov 2020).

    Args:
        path: NPZ file with arrays ``inputs`` (n, features) and ``targets`` (n,).
        overrides: such as ``training.epochs=50``.
        progress: show progress bars.

    Returns:
        A row for the uniform, the variational and the prequential code.

    Raises:
        ConfigError: an override is invalid.
        DataError: the file cannot be read, or its targets are not labels.
    """
    return codelengths(probe_config(Path(path), overrides), codes=PROBED, progress=progress)


class Codelengths:
    """Codes of one configuration or run; each network is trained once, when the first code needs it.

    Args:
        source: a configuration; or a run, whose network then gives the variational code.
        names: codes that will be computed.
        progress: show progress bars.

    Raises:
        DataError: the targets are not labels.
        ConfigError: the posterior is a point, which has no variational code, or the prequential code cannot be computed.

    >>> from bitsback.training import TrainingSettings
    >>> codes = Codelengths(Config(training=TrainingSettings(epochs=5)), progress=False)
    >>> codes.row("uniform").ratio, codes.row("label_spreading").how
    (1.0, 'needs data.features: random_walk_modes')
    """

    def __init__(
        self, source: Config | Run | TrainedRun, names: Sequence[str] = NAMES, *, must_all: bool = True, progress: bool = True
    ) -> None:
        check_names(names)
        self._source, self._must_all = source, must_all
        self.config = source if isinstance(source, Config) else source.config
        self._progress = progress
        if isinstance(self.config.posterior, PointPosteriorSettings):
            raise ConfigError("a point estimate has no variational code; give a configuration with posterior.kind=gaussian, "
                              "whose point estimate is trained here as well")  # fmt: skip
        self._experiment = Experiment.build(source) if isinstance(source, Config) else experiment_of(source)
        self._likelihood = check_labels(self._experiment)
        self._train = self._experiment.dataset.train
        self._refuse(names)  # now, rather than after the other networks have been trained
        self.uniform_bits = self._likelihood.uniform_bits(self._train.targets)

    def _refuse(self, names: Sequence[str]) -> None:
        """Raise ConfigError for the first of some codes that these data or settings do not allow."""
        for name in names:
            try:
                if name == "prequential" and (self._must_all or not self._experiment.dataset.in_memory):
                    check_prequential(self.config)
                    self.config.prequential.ends(len(self._train))
                if name in WHOLE and self._must_all:
                    self._check_whole(WHOLE[name])
            except ConfigError as error:
                raise ConfigError(f"{error} (or leave this code out: --codes uniform,variational,...)") from error

    def _check_whole(self, code: str) -> None:
        check_whole(self._train, self._likelihood, code)

    def row(self, name: str) -> Row:
        """Compute one of the codes.

        Returns:
            Its row of the table.

        Raises:
            ConfigError: the name is unknown, or, where every code is needed, the data or the network do not allow it.
            DataError: as ConfigError.
            FileError: as ConfigError.
            LayerError: as ConfigError.
        """
        check_names([name])
        codes: dict[str, Callable[[], Row]] = {each: getattr(self, f"_{each}") for each in NAMES}
        try:
            return codes[name]()
        except (ConfigError, DataError, FileError, LayerError) as error:
            if self._must_all:
                raise
            return Row(name, None, None, None, None, None, 0.0, decodable=False, how=brief(error, SHOWN_CHARACTERS))

    def _row(
        self,
        name: str,
        model_bits: float,
        data_bits: float,
        test_error: float | None,
        seconds: float,
        *,
        how: str,
        decodable: bool = True,
    ) -> Row:
        total = model_bits + data_bits
        return Row(name, model_bits, data_bits, total, total / self.uniform_bits, test_error, seconds, decodable, how)

    @cached_property
    def _point(self) -> PointNetwork:
        given = self._source if isinstance(self._source, Run) else None
        network = copy.deepcopy(given.network) if given is not None else None
        dataset = self._experiment.dataset if self._experiment.dataset.in_memory else None
        return PointNetwork.train(point_config(self.config), dataset=dataset, network=network, progress=self._progress)

    @cached_property
    def _trained(self) -> tuple[Ledger, float | None, float]:
        """Ledger, test error and training seconds of the variational posterior."""
        if isinstance(self._source, Run):
            ledger, summary = self._source.ledger(), self._source.summary()
            return ledger, summary["test_error"], summary["training_seconds"]
        done = self._source if isinstance(self._source, TrainedRun) else None
        outcome = done or self._experiment.train(None, progress=self._progress)
        return outcome.ledger, outcome.test_error, outcome.training_seconds

    def _uniform(self) -> Row:
        how, decodable = "send --code prequential with one block", True
        try:
            self._check_whole("the uniform code")
        except ConfigError:
            how, decodable = "no command writes the uniform code of such targets", False
        return self._row("uniform", 0.0, self.uniform_bits, self._chance(), 0.0, how=how, decodable=decodable)

    def _chance(self) -> float | None:
        return 1 - 1 / self._likelihood.classes if self._experiment.dataset.test is not None else None

    def _float32(self) -> Row:
        point = self._point
        how = "no command writes 32 bits a weight"
        return self._row("float32", FLOAT32_BITS * point.weights, point.data_bits, point.test_error, point.seconds,
                         how=how, decodable=False)  # fmt: skip

    def _bic(self) -> Row:
        self._check_whole(WHOLE["bic"])
        point = self._point
        bits = bic_model_bits(point.weights, len(self._train))
        return self._row("bic", bits, point.data_bits, point.test_error, point.seconds,
                         how="an asymptotic formula", decodable=False)  # fmt: skip

    def _laplace(self) -> Row:
        self._check_whole(WHOLE["laplace"])
        point, began = self._point, time.perf_counter()
        found = laplace_model_bits(point.experiment.model, self._likelihood, point.experiment.dataset.train)
        seconds = point.seconds + time.perf_counter() - began
        return self._row("laplace", found.model_bits, point.data_bits, point.test_error, seconds,
                         how=f"an approximation ({found.curvature} curvature)", decodable=False)  # fmt: skip

    def _quantised(self) -> Row:
        settings = PackSettings(codec="quantised", tuning=TuningSettings())
        return self._file("quantised", self._point.experiment, settings, self._point.seconds)

    def _realised(self) -> Row:
        _, _, seconds = self._trained
        settings = self.config.pack
        if settings.tuning is None:
            settings = settings.model_copy(update={"tuning": TuningSettings()})
        return self._file("realised", self._experiment, settings, seconds)

    def _file(self, name: str, experiment: Experiment, settings: PackSettings, seconds: float) -> Row:
        """Return the row of a two-part file; the model is restored afterwards."""
        began = time.perf_counter()
        kept = {name: tensor.clone() for name, tensor in experiment.model.state_dict().items()}
        try:
            sent = send_two_part(experiment, settings, progress=self._progress)
        finally:
            experiment.model.load_state_dict(kept)
        model_bits = 8 * len(sent.packed.content)
        seconds += time.perf_counter() - began
        return self._row(name, model_bits, sent.total_bits - model_bits, sent.packed.test_error, seconds,
                         how=f"send --code two_part ({sent.packed.codec})")  # fmt: skip

    def _variational(self) -> Row:
        ledger, test_error, seconds = self._trained
        model_bits = ledger.net_weight_bits + ledger.hyperparameter_bits
        return self._row("variational", model_bits, ledger.data_bits, test_error, seconds, how="send, given a payload")

    def _prequential(self) -> Row:
        check_prequential(self.config)
        self._check_whole(WHOLE["prequential"])
        found = prequential(self.config, progress=self._progress)
        return self._row("prequential", 0.0, found.bits, found.test_error, found.seconds, how="send --code prequential")

    def _label_spreading(self) -> Row:
        return self._rival("label_spreading", label_spreading)

    def _logistic(self) -> Row:
        return self._rival("logistic", logistic)

    def _rival(self, name: str, code: Callable[..., Rival]) -> Row:
        """Return the row of a code without a network; without bits if the configuration lacks what it needs."""
        try:
            self._check_whole(f"the code {name}")
            found = code(self.config, self._experiment.dataset, self._likelihood.classes, progress=self._progress)
        except (ConfigError, MissingExtraError) as error:
            return Row(name, None, None, None, None, None, 0.0, decodable=False, how=brief(error, SHOWN_CHARACTERS))
        return self._row(name, found.choice_bits, found.label_bits, found.test_error, found.seconds,
                         how=found.how, decodable=False)  # fmt: skip
