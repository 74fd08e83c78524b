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
from bitsback.config.coding_settings import PackSettings, TuningSettings
from bitsback.config.load import parse_value
from bitsback.errors import ConfigError, FileError, LayerError
from bitsback.formats.config_tree import locations_of
from bitsback.formats.container import BitWriter, seal, sealed_bytes
from bitsback.formats.exact_outputs import exact_outputs
from bitsback.formats.model_file.block_codec import INDEX_SIZE_BITS, block_code, put_blocks
from bitsback.formats.model_file.grid_search import quantised_content
from bitsback.formats.model_file.head import model_tree, put_experiment_head
from bitsback.formats.model_file.read import LoadedModel, decode
from bitsback.formats.model_file.tuning import FIXED_LOG_STD, Tuner
from bitsback.ledger import shown_error
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.model import BayesianModel, evaluate
from bitsback.model.accounting import seeded
from bitsback.posteriors import GaussianPosterior, PointPosterior
from bitsback.result import Result
from bitsback.torch_state import using_threads
from bitsback.training.train import threads_for
from bitsback.units import bits_to_bytes

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
        LayerError: for a mean, std or statistic that makes no sense.
        FileError: for a budget that is too small.
        PriorError: for a prior that cannot be coded.
    """
    settings = settings or experiment.config.pack
    model = experiment.model
    model.honour_edits(everywhere=True)
    _check_finite(model)
    model.round_to_grid()
    experiment.likelihood.round_to_grid()
    codec, why = _choose_codec(experiment, settings)
    net_bits = _ledger_net_bits(experiment)
    if codec == "both":
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found, errors = [], []
        for one in ("relative_entropy", "quantised"):
            model.load_state_dict(state)
            try:
                found.append(_measured(experiment, _content(experiment, one, settings, progress), one, why, net_bits))
            except FileError as error:  # the budget is too small for this one
                errors.append(error)
        if not found:
            raise errors[0]
        best = min(found, key=lambda packed: packed.total_bits)
        reason = "the other does not fit the budget" if errors else f"{best.codec} describes the labels in fewer bits"
        best = replace(best, why=f"{why}: both were tried, {reason}")
    else:
        best = _measured(experiment, _content(experiment, codec, settings, progress), codec, why, net_bits)
    _take_over(model, best.loaded.model)
    return best


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


def _choose_codec(experiment: Experiment, settings: PackSettings) -> tuple[str, str]:
    model = experiment.model
    points = any(isinstance(q, PointPosterior) for q in model.posteriors())
    if points and settings.codec == "relative_entropy":
        raise FileError("a point estimate has no bits to give back; use --codec quantised")
    if settings.codec != "auto":
        return settings.codec, "asked for"
    if points or not model.weights:
        return "quantised", "a point estimate has no posterior to choose from"
    weights = sum(q.numel for q in model.posteriors())
    bits = 8 * settings.budget_bytes if settings.budget_bytes is not None else float(model.kl_bits().detach())
    rate = bits / weights
    text = f"{rate:.2g} bits per weight"
    if rate < BLOCKS_BELOW_BITS:
        return "relative_entropy", f"{text}, below {BLOCKS_BELOW_BITS:g}"
    if rate > QUANTISED_ABOVE_BITS:
        return "quantised", f"{text}, above {QUANTISED_ABOVE_BITS:g}"
    return "both", text


def _content(experiment: Experiment, codec: str, settings: PackSettings, progress: bool) -> bytes:
    if codec == "quantised":
        return quantised_content(experiment, settings, progress=progress)
    return _blocks_file(experiment, settings, progress)


def _blocks_file(experiment: Experiment, settings: PackSettings, progress: bool) -> bytes:
    model, tree = experiment.model, model_tree(experiment)
    head = BitWriter()
    put_experiment_head(head, experiment, tree)
    blocks = _blocks(float(model.kl_bits().detach()), head.bits, settings)
    weights = sum(q.numel for q in model.posteriors())
    code = block_code(model, min(blocks, weights), settings.index_bits, settings.key)
    tuning = settings.tuning or TuningSettings(steps=0, balance_steps=0)
    half = experiment.config.training.precision == "bfloat16"
    tuner = Tuner(
        model,
        experiment.likelihood,
        experiment.dataset.train,
        code,
        tuning,
        experiment.config.seed,
        progress=progress,
        half=half,
    )
    with using_threads(threads_for(experiment.config.training, model)), seeded(experiment.config.seed, torch.device("cpu")):
        indices = tuner.run()
    writer = BitWriter()
    put_experiment_head(writer, experiment, tree)  # after tuning: running statistics have moved
    put_blocks(writer, indices, settings.index_bits, settings.key)
    return seal("relative_entropy", writer.to_bytes())


def _blocks(net_weight_bits: float, head_bits: int, settings: PackSettings) -> int:
    """How many blocks: as many as the net bits fill, or as fit the budget."""
    if settings.budget_bytes is None:
        return max(1, round(net_weight_bits / settings.index_bits))
    blocks = 8 * settings.budget_bytes // settings.index_bits
    while blocks > 0 and _file_bytes(head_bits, blocks, settings) > settings.budget_bytes:
        blocks -= 1
    if blocks == 0:
        least = _file_bytes(head_bits, 1, settings)
        raise FileError(f"a budget of {settings.budget_bytes} bytes is too small; the least for this network is {least} bytes")
    return blocks


def _file_bytes(head_bits: int, blocks: int, settings: PackSettings) -> int:
    counts = sum(2 * (count + 1).bit_length() - 1 for count in (blocks, settings.key))
    return sealed_bytes(bits_to_bytes(head_bits + INDEX_SIZE_BITS + counts + blocks * settings.index_bits))


def _ledger_net_bits(experiment: Experiment) -> float:
    """Net weight bits and hyper-parameters of the posterior, with the data bits of a few draws."""
    model, likelihood = experiment.model, experiment.likelihood
    drawn = evaluate(model, likelihood, experiment.dataset.train, samples=3 if model.smallest_std() is not None else 0)
    charges = sum(charge.bits for charge in [*model.charges(), *likelihood.charges()])
    return drawn.data_bits + float(model.kl_bits(exact=True).detach()) + charges


def _measured(experiment: Experiment, content: bytes, codec: str, why: str, net_bits: float) -> Packed:
    loaded = decode(content, "the packed file", locations_of(experiment.config))
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
    return Packed(content, codec, why, loaded, train.data_bits, label_bits, train.error, test, likelihood.error_name, net_bits)
