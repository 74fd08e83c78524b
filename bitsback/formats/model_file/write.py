"""pack: from a trained experiment to the bytes of a model file, and what they say."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from bitsback.coding.categorical import code_bits
from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.config.load import parse_value
from bitsback.errors import ConfigError, FileError, LayerError
from bitsback.formats._exact_outputs import exact_outputs
from bitsback.formats.config_tree import CODEC_FACTORY, locations_of
from bitsback.formats.model_file._codec import ModelCodec, codec_named
from bitsback.formats.model_file._network_description import described
from bitsback.formats.model_file._tuning import FIXED_LOG_STD
from bitsback.formats.model_file.block_codec import RELATIVE_ENTROPY
from bitsback.formats.model_file.grid_codec import QUANTISED
from bitsback.formats.model_file.read import LoadedModel, decode
from bitsback.ledger import shown_error
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.model import BayesianModel, evaluate
from bitsback.posteriors import GaussianPosterior, PointPosterior
from bitsback.result import Result

__all__ = ["Choice", "Packed", "choose", "measure", "pack_experiment", "with_settings", "write"]

BLOCKS_BELOW_BITS, QUANTISED_ABOVE_BITS = 3.0, 4.0
"""Net bits per weight below which blocks win, and above which quantising does; between, both are tried."""


@dataclass(frozen=True)
class Packed(Result):
    """A model file, and what it holds, measured on the decoded bytes."""

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
        """Bits of the file and of the training labels given the decoded weights."""
        return 8 * len(self.content) + (self.train_data_bits if self.label_bits is None else self.label_bits)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the file, for JSON."""
        return {
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
        """Return where every bit of the file goes."""
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
        return "\n".join(lines)


def with_settings(settings: PackSettings, overrides: Sequence[str]) -> PackSettings:
    """The settings with ``key=value`` overrides, such as ``tuning.steps=400``; raises ConfigError naming what is wrong.

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
    """The model file of a trained experiment. The experiment's model is changed: it ends with the weights of the file.

    Raises:
        LayerError: for a mean, std or statistic that makes no sense, and for a network that a file cannot describe.
        FileError: for a budget that is too small.
        PriorError: for a prior that cannot be coded.
    """
    settings, experiment = settings or experiment.config.pack, described(experiment)
    _settle(experiment)
    choice = choose(experiment, settings)
    net_bits = _ledger_net_bits(experiment)
    files = write(experiment, settings, choice, progress=progress)
    found = [measure(experiment, settings, content, choice.why, net_bits) for content in files]
    best = min(found, key=lambda packed: packed.total_bits)
    if len(choice.codecs) > 1:
        fits = len(found) == len(choice.codecs)
        reason = f"{best.codec} describes the labels in fewer bits" if fits else "the other does not fit the budget"
        best = replace(best, why=f"{choice.why}: both were tried, {reason}")
    _take_over(experiment.model, best.loaded.model)
    return best


def _settle(experiment: Experiment) -> None:
    """Give the model its final numbers, on their grids; raises LayerError for one that makes no sense."""
    model = experiment.model
    model.honour_edits(everywhere=True)
    _check_finite(model)
    model.round_to_grid()
    experiment.likelihood.round_to_grid()


@torch.no_grad()
def _take_over(model: BayesianModel, decoded: BayesianModel) -> None:
    """Put the numbers of the decoded file into the model that was packed, whose units may have had another order."""
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
    """Which codecs are tried, and why these."""

    codecs: tuple[ModelCodec, ...]
    why: str


def choose(experiment: Experiment, settings: PackSettings) -> Choice:
    """The codec that is asked for, or by bits per weight; both near where they are equally good.

    Raises:
        FileError: for blocks of a point estimate.
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
    """The file of every chosen codec that fits the budget, each from the model as it is now; raises FileError for none."""
    model = experiment.model
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
    """Net weight bits and hyper-parameters of the posterior, with the data bits of a few draws."""
    model, likelihood = experiment.model, experiment.likelihood
    drawn = evaluate(model, likelihood, experiment.dataset.train, samples=3 if model.smallest_std() is not None else 0)
    charges = sum(charge.bits for charge in [*model.charges(), *likelihood.charges()])
    return drawn.data_bits + float(model.kl_bits(exact=True).detach()) + charges


def measure(experiment: Experiment, settings: PackSettings, content: bytes, why: str, net_bits: float) -> Packed:
    """What the bytes of a file hold, decoded as any receiver would.

    Args:
        experiment: whose data are described.
        settings: which the file was written with.
        content: the whole file.
        why: it was written with this codec.
        net_bits: what the ledger says of the posterior.
    """
    own = [] if settings.factory is None else [f"{CODEC_FACTORY}={settings.factory}"]
    loaded = decode(content, "the packed file", [*locations_of(experiment.config), *own])
    data, likelihood = experiment.dataset, loaded.likelihood
    train = evaluate(loaded.model, likelihood, data.train, samples=0)
    test = evaluate(loaded.model, likelihood, data.test, samples=0).error if data.test is not None else None
    label_bits = None
    if isinstance(likelihood, CategoricalLikelihood):
        weights = {w.name: w.posterior.mean.detach() for w in loaded.model.weights}
        with suppress(FileError):  # activations too large to be exact: then the real-valued bits have to do
            outputs = exact_outputs(loaded.model.double(), weights, data.train.inputs)
            label_bits = code_bits(outputs.numpy(), data.train.targets.numpy().astype(np.int64))
        loaded.model.float()
    errors = train.error, test, likelihood.error_name
    return Packed(content, loaded.codec, why, loaded, train.data_bits, label_bits, *errors, net_bits)
