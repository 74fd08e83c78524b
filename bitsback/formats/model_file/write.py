"""Write model files: choose a codec, encode a trained experiment, and measure the decoded file."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.config.load import parse_value
from bitsback.data import Examples
from bitsback.errors import ConfigError, FileError, LayerError, brief
from bitsback.formats._exact_outputs import BATCH, exact_outputs
from bitsback.formats._label_code import has_exact_bits, target_bits
from bitsback.formats.config_tree import CODEC_FACTORY, locations_of
from bitsback.formats.model_file._codec import ModelCodec, codec_named
from bitsback.formats.model_file._network_description import described
from bitsback.formats.model_file._tuning import FIXED_LOG_STD
from bitsback.formats.model_file.block_codec import RELATIVE_ENTROPY
from bitsback.formats.model_file.grid_codec import QUANTISED
from bitsback.formats.model_file.read import LoadedModel, decode
from bitsback.ledger import shown_error
from bitsback.model import BayesianModel, evaluate
from bitsback.posteriors import GaussianPosterior, PointPosterior
from bitsback.result import Result

__all__ = ["Choice", "Packed", "choose", "measure", "pack_experiment", "with_settings", "write"]

BLOCKS_BELOW_BITS, QUANTISED_ABOVE_BITS = 3.0, 4.0
"""Net bits per weight. Below the first, relative entropy coding is used; above the second, quantisation; between, both are
tried."""


@dataclass(frozen=True)
class Packed(Result):
    """A model file and its measurements, taken on the decoded bytes.

    Attributes:
        content: the bytes of the file.
        codec: name of the codec, such as ``quantised``.
        why: the reason for this codec, and the reason if there are no exact label bits.
        loaded: the decoded file.
        train_data_bits: data bits of the training examples under the decoded weights, by real arithmetic.
        label_bits: bits of the training labels in exact arithmetic; None where they have no such code.
        train_error: error on the training examples.
        test_error: error on the test examples; None without any.
        error_name: name of that error, such as ``error`` or ``rmse``.
        net_bits: net bits of the posterior by the ledger, before packing.
    """

    content: bytes
    codec: str
    why: str
    loaded: LoadedModel = field(repr=False)
    train_data_bits: float
    label_bits: float | None
    train_error: float
    test_error: float | None
    error_name: str
    net_bits: float

    @property
    def total_bits(self) -> float:
        """Return the bits of the file and of the training labels given the decoded weights."""
        return 8 * len(self.content) + (self.train_data_bits if self.label_bits is None else self.label_bits)

    @property
    def needs(self) -> str | None:
        """Return what a receiver has to install besides this package, or None: the version of timm that made the network."""
        if self.loaded.config.network.kind != "timm":
            return None
        import timm  # it has made the network

        return f"timm {timm.__version__}"

    def to_dict(self) -> dict[str, Any]:
        """Return all measurements, without the file, for JSON."""
        return {
            **({"needs": self.needs} if self.needs else {}),
            "codec": self.codec,
            "why": self.why,
            "file_bytes": len(self.content),
            "label_bits": self.label_bits,
            "data_bits": self.train_data_bits,
            "total_bits": self.total_bits,
            "ledger_net_bits": self.net_bits,
            f"train_{self.error_name}": self.train_error,
            f"test_{self.error_name}": self.test_error,
            "parts": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each part of the file: its name and its bits."""
        return [{"name": part.name, "bits": part.bits} for part in self.loaded.parts]

    def __str__(self) -> str:
        labels = self.train_data_bits if self.label_bits is None else self.label_bits
        lines = [
            f"{len(self.content):,} bytes, {self.codec} ({self.why})",
            f"File and training labels given it: {self.total_bits:,.0f} bits ({8 * len(self.content):,} + {labels:,.0f}); the "
            f"posterior's ledger: {self.net_bits:,.0f}",
        ]
        if self.test_error is not None:
            lines.append(f"Test error of the decoded file: {shown_error(self.error_name, self.test_error)}")
        if self.needs:
            lines.append(f"A receiver needs {self.needs}: another version may make another network")
        return "\n".join(lines)


def with_settings(settings: PackSettings, overrides: Sequence[str]) -> PackSettings:
    """Return the settings with ``key=value`` overrides applied.

    Args:
        settings: section ``pack`` of a configuration.
        overrides: such as ``tuning.steps=400``.

    Returns:
        validated settings; the given ones are unchanged.

    Raises:
        ConfigError: if an override is not ``KEY=VALUE``, or names a setting or value that is not valid.

    >>> with_settings(PackSettings(), ["tuning.steps=400"]).tuning.steps
    400
    """
    values = settings.model_dump()
    for override in overrides:
        key, equals, text = override.partition("=")
        *path, last = key.split(".")
        if not equals:
            raise ConfigError(f"--set {override}: write KEY=VALUE, such as --set tuning.steps=400")
        inside = values
        for part in path:
            inside[part] = inside.get(part) or {}
            inside = inside[part]
            if not isinstance(inside, dict):
                raise ConfigError(f"--set {override}: '{part}' is one value, not a section; see the schema's section pack")
        inside[last] = parse_value(text)
    try:
        return PackSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"pack.{'.'.join(map(str, first['loc']))}: {first['msg']}; see the schema's section pack") from error


def pack_experiment(experiment: Experiment, settings: PackSettings | None = None, *, progress: bool = True) -> Packed:
    """Encode a trained experiment as a model file.

    The experiment's model is changed: afterwards it holds the weights of the file.

    Args:
        experiment: trained experiment.
        settings: default: the configuration's section ``pack``.
        progress: show progress bars.

    Returns:
        the file with the fewest bits for file and labels, among the codecs tried.

    Raises:
        LayerError: if a mean, std or statistic is not valid, or a file cannot describe the network.
        FileError: if the budget is too small.
        PriorError: if a prior cannot be coded weight by weight.
    """
    settings, experiment = settings or experiment.config.pack, described(experiment)
    # before the choice: rounded hyper-parameters change the KL that the choice goes by
    _settle(experiment)
    choice = choose(experiment, settings)
    net_bits = _ledger_net_bits(experiment)
    files = write(experiment, settings, choice, progress=progress)
    found = [measure(experiment, settings, content, choice.why, net_bits) for content in files]
    best = min(found, key=lambda packed: packed.total_bits)
    if len(choice.codecs) > 1:
        fits = len(found) == len(choice.codecs)
        reason = f"{best.codec} describes the labels in fewer bits" if fits else "the other does not fit the budget"
        best = replace(best, why=best.why.replace(choice.why, f"{choice.why}: both were tried, {reason}", 1))
    _take_over(experiment.model, best.loaded.model)
    return best


def _settle(experiment: Experiment) -> None:
    """Round the model's learned numbers to their grids; raises LayerError for a mean or std that is not valid."""
    model = experiment.model
    model.honour_edits(everywhere=True)
    _check_finite(model)
    model.round_to_grid()
    experiment.likelihood.round_to_grid()


@torch.no_grad()
def _take_over(model: BayesianModel, decoded: BayesianModel) -> None:
    """Copy the decoded numbers into the packed model; the file's hidden units may stand in another order."""
    for own, found in zip(model.weights, decoded.weights, strict=True):
        own.posterior.mean.copy_(found.posterior.mean)
        if isinstance(own.posterior, GaussianPosterior):
            own.posterior.log_std.fill_(FIXED_LOG_STD)
    others = [[*part.statistics(), *part.deterministic()] for part in (model, decoded)]
    for (_, tensor), (_, value) in zip(*others, strict=True):
        tensor.copy_(value)
    model.honour_edits()  # the weights hold the new means


def _check_finite(model: BayesianModel) -> None:
    numbers: list[tuple[str, Tensor, Tensor | None]] = []
    numbers += [(weight.name, weight.posterior.mean, weight.posterior.std()) for weight in model.weights]
    numbers += [(name, tensor, None) for name, tensor in [*model.statistics(), *model.deterministic()]]
    for name, mean, std in numbers:
        stds_fit = std is None or bool((torch.isfinite(std) & (std > 0)).all())
        if not (stds_fit and bool(torch.isfinite(mean).all())):
            raise LayerError(f"'{name}' has a number that is NaN or infinite, or a std not above zero; train it again")


@dataclass(frozen=True)
class Choice:
    """Choice of codecs.

    Attributes:
        codecs: those that are tried.
        why: the reason, for the user.
    """

    codecs: tuple[ModelCodec, ...]
    why: str


def choose(experiment: Experiment, settings: PackSettings) -> Choice:
    """Choose the codec that the settings name, or one by net bits per weight.

    Args:
        experiment: trained experiment, on its grids.
        settings: ``codec`` and ``budget_bytes`` decide.

    Returns:
        one codec, or both where neither is clearly better.

    Raises:
        FileError: if block coding is asked for and a weight has a point estimate.
    """
    model = experiment.model
    points = any(isinstance(q, PointPosterior) for q in model.posteriors())
    if points and settings.codec == RELATIVE_ENTROPY.name:
        raise FileError("a point estimate has no bits to give back; use --codec quantised")
    if settings.codec != "auto":
        return Choice((codec_named(settings.codec),), "asked for")
    blocks, grids = codec_named(RELATIVE_ENTROPY.name), codec_named(QUANTISED.name)
    if points or not model.weights:
        return Choice((grids,), "a point estimate has no posterior to choose from")
    weights = sum(q.numel for q in model.posteriors())
    bits = 8 * settings.budget_bytes if settings.budget_bytes is not None else float(model.kl_bits().detach())
    rate = bits / weights
    text = f"{rate:.2g} bits per weight"
    if rate < BLOCKS_BELOW_BITS:
        return Choice((blocks,), f"{text}, below {BLOCKS_BELOW_BITS:g}")
    if rate > QUANTISED_ABOVE_BITS:
        return Choice((grids,), f"{text}, above {QUANTISED_ABOVE_BITS:g}")
    return Choice((blocks, grids), text)


def write(experiment: Experiment, settings: PackSettings, choice: Choice, *, progress: bool = True) -> list[bytes]:
    """Write one file with every chosen codec that fits the budget, each from the model as it is now.

    Args:
        experiment: trained experiment; its model is changed.
        settings: section ``pack``.
        choice: result of :func:`choose`.
        progress: show progress bars.

    Returns:
        the bytes of one file or two.

    Raises:
        FileError: if no codec fits the budget; the error of the first codec.
    """
    model = experiment.model
    # writing changes the model (tuning, order of units), so a second codec needs the state from before
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()} if len(choice.codecs) > 1 else None
    files, errors = [], []
    for codec in choice.codecs:
        assert codec.write is not None
        if state is not None:
            model.load_state_dict(state)
        try:
            files.append(codec.write(experiment, settings, progress))
        except FileError as error:  # the budget is too small for this one
            errors.append(error)
    if not files:
        raise errors[0]
    return files


def _ledger_net_bits(experiment: Experiment) -> float:
    """Return data, net weight and hyper-parameter bits of the posterior; data bits are averaged over a few draws."""
    model, likelihood = experiment.model, experiment.likelihood
    drawn = evaluate(model, likelihood, experiment.dataset.train, samples=3 if model.smallest_std() is not None else 0)
    charges = sum(charge.bits for charge in [*model.charges(), *likelihood.charges()])
    return drawn.data_bits + float(model.kl_bits(exact=True).detach()) + charges


def measure(experiment: Experiment, settings: PackSettings, content: bytes, why: str, net_bits: float) -> Packed:
    """Decode a file as a receiver would, and measure it.

    Args:
        experiment: source of the training and test examples.
        settings: settings that the file was written with.
        content: the whole file.
        why: reason for the codec, kept for the user.
        net_bits: net bits of the posterior by the ledger.

    Returns:
        the file with its sizes and errors.
    """
    own = [] if settings.factory is None else [f"{CODEC_FACTORY}={settings.factory}"]
    loaded = decode(content, "the packed file", [*locations_of(experiment.config), *own])
    data, likelihood = experiment.dataset, loaded.likelihood
    train = evaluate(loaded.model, likelihood, data.train, samples=0)
    test = evaluate(loaded.model, likelihood, data.test, samples=0).error if data.test is not None else None
    label_bits = None
    if has_exact_bits(likelihood):
        try:
            label_bits = _label_bits(loaded, data.train)
        except FileError as error:  # then the real-valued bits have to do
            why = f"{why}; label bits are not exact: {brief(error)}"
        loaded.model.float()
    errors = train.error, test, likelihood.error_name
    return Packed(content, loaded.codec, why, loaded, train.data_bits, label_bits, *errors, net_bits)


def _label_bits(loaded: LoadedModel, train: Examples) -> float:
    """Return the bits of the training targets in exact arithmetic; the model is in float64 afterwards."""
    weights = {w.name: w.posterior.mean.detach() for w in loaded.model.weights}
    model, likelihood = loaded.model.double(), loaded.likelihood
    if train.targets.ndim == 1:
        return target_bits(likelihood, exact_outputs(model, weights, train.inputs), train.targets)
    total = 0.0  # in batches, which may be as long as their longest example
    for inputs, targets in train.batches(train.ranges(BATCH)):
        total += target_bits(likelihood, exact_outputs(model, weights, Examples(inputs, targets).inputs), targets)
    return total
