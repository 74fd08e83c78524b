"""Body of quantised model files: every weight tensor on its grid, less the refund for the order of hidden units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.ans import MOST_LANES_LOG2, Stack, default_lanes_log2
from bitsback.coding.grid import STEP_LEVELS, step_of
from bitsback.coding.permutation import Refund, Specs, UnitGroup, canonicalise, pop_network, push_network, rearranged
from bitsback.coding.quantised import STEPS_PER_STD, QuantisedTensor, quantise, round_to_digits, step_level_for
from bitsback.errors import FileError
from bitsback.formats.container import BitReader, BitWriter
from bitsback.formats.kinds import FileKind, register_kind
from bitsback.formats.model_file._codec import FilePart
from bitsback.formats.model_file._head import EmptyModel
from bitsback.formats.model_file.hidden_units import exchangeable_groups
from bitsback.formats.side_information import densities_of
from bitsback.model import BayesianModel

__all__ = [
    "DECIMAL",
    "DIGITS_BITS",
    "MOST_DIGITS",
    "QUANTISED",
    "DecodedGrids",
    "QuantisedNetwork",
    "read_decimal",
    "read_quantised",
    "step_levels",
]

QUANTISED = register_kind(FileKind(2, "quantised"))
DECIMAL = register_kind(FileKind(4, "decimal"))
"""Kind of files whose weights are decimal numbers, with the same body."""

LANES_BITS = 4
"""Bits of log2 of the number of lanes of the entropy coder."""
DIGITS_BITS = 4
"""Bits of the number of decimal digits, in files of the kind decimal."""
MOST_DIGITS = 9
"""Largest number of decimal digits of weights; beyond, no binary grid that a file can represent is near."""


def step_levels(model: BayesianModel, steps_per_std: float = STEPS_PER_STD) -> dict[str, int]:
    """Return the step level of every weight tensor; the grid step is 2^(level / 4).

    Args:
        model: model with its posteriors; a point estimate keeps its own grid.
        steps_per_std: grid step in posterior stds.

    Returns:
        levels by name of the weight tensor.
    """
    found = {}
    for weight in model.weights:
        std = weight.posterior.std()
        if std is None:
            level = round(4 * math.log2(model.grid_step()))
            found[weight.name] = min(max(level, STEP_LEVELS.start), STEP_LEVELS.stop - 1)
        else:
            found[weight.name] = step_level_for(std.detach().cpu().numpy(), steps_per_std)
    return found


@dataclass(frozen=True)
class QuantisedNetwork:
    """Weight tensors on their grids, with hidden units in canonical order.

    Attributes:
        tensors: quantised tensors by name.
        groups: exchangeable hidden units; None if their order gives no refund.
    """

    tensors: dict[str, QuantisedTensor]
    groups: tuple[UnitGroup, ...] | None

    @classmethod
    def of(
        cls, model: BayesianModel, input_axes: int | None, levels: Mapping[str, int], trade_off: float, *, permute: bool
    ) -> "QuantisedNetwork":
        """Quantise a model; its statistics and weights without posterior are permuted along, in place.

        Args:
            model: model to quantise.
            input_axes: axes of a batch of inputs, which tell whether a normalisation runs over units or positions.
            levels: step level of every weight tensor; see :func:`step_levels`. Coarser grids make smaller files.
            trade_off: factor of the code length relative to the distortion, both in bits; 0 rounds to the nearest level.
            permute: whether to take the refund for the order of hidden units.

        Returns:
            the tensors on their grids.
        """
        tensors = {}
        for weight, prior in zip(model.weights, densities_of(model), strict=True):
            std, mean = weight.posterior.std(), weight.posterior.mean.detach().cpu().numpy()
            level = levels[weight.name]
            width = step_of(level) / STEPS_PER_STD if std is None else std.detach().cpu().numpy()
            tensors[weight.name] = quantise(mean, width, prior, level, trade_off)
        return cls._ordered(model, input_axes, tensors, permute)

    @classmethod
    def decimal(cls, model: BayesianModel, input_axes: int | None, digits: int, *, permute: bool) -> "QuantisedNetwork":
        """Round the means to decimal digits; statistics are permuted along, in place.

        Args:
            model: model to round.
            input_axes: axes of a batch of inputs; see :meth:`of`.
            digits: number of decimal digits, 0 to 9.
            permute: whether to take the refund for the order of hidden units.

        Returns:
            the rounded tensors.
        """
        tensors = {
            weight.name: round_to_digits(weight.posterior.mean.detach().cpu().numpy(), digits, prior)
            for weight, prior in zip(model.weights, densities_of(model), strict=True)
        }
        return cls._ordered(model, input_axes, tensors, permute)

    @classmethod
    def _ordered(
        cls, model: BayesianModel, input_axes: int | None, tensors: dict[str, QuantisedTensor], permute: bool
    ) -> "QuantisedNetwork":
        groups = tuple(exchangeable_groups(model.network, input_axes)) if permute else None
        if groups:
            tensors, orders = canonicalise(tensors, groups)
            with torch.no_grad():
                for name, tensor in [*model.statistics(), *model.deterministic()]:
                    tensor.copy_(torch.from_numpy(rearranged(name, tensor.detach().numpy().copy(), groups, orders)))
        return cls(tensors, groups)

    def put(self, writer: BitWriter) -> tuple[bytes, list[Refund]]:
        """Write the head; return the message that follows it on a whole byte, and the refund of every group of units."""
        bits = sum(tensor.bits() for tensor in self.tensors.values())
        lanes_log2 = default_lanes_log2(sum(tensor.levels.size for tensor in self.tensors.values()), bits)
        writer.put(lanes_log2, LANES_BITS)
        writer.put(int(self.groups is not None), 1)
        stack = Stack.empty(1 << lanes_log2)
        refunds = push_network(stack, self.tensors, self.groups or ())
        return stack.to_bytes(), refunds


@dataclass(frozen=True)
class DecodedGrids:
    """Decoded body of a quantised file.

    Attributes:
        weights: weight tensors by name.
        tensors: the same tensors on their grids.
        stack_bits: bits that the entropy coder's stack held.
        body_bits: bits of the body behind the number of lanes.
        decimal: whether the body begins with a number of digits.
    """

    weights: dict[str, Tensor]
    tensors: dict[str, QuantisedTensor]
    stack_bits: float
    body_bits: int
    decimal: bool

    def parts(self) -> list[FilePart]:
        """Return the parts of the body with their bits."""
        coded = [FilePart(name, tensor.bits()) for name, tensor in self.tensors.items()]
        return [
            *([FilePart("decimal digits", DIGITS_BITS)] if self.decimal else []),
            FilePart("lanes", LANES_BITS + 1),
            *coded,
            FilePart("order of hidden units, given back", self.stack_bits - sum(part.bits for part in coded)),
            FilePart("heads of the lanes", self.body_bits - self.stack_bits),
        ]


def read_quantised(reader: BitReader, empty: EmptyModel) -> DecodedGrids:
    """Read what :meth:`QuantisedNetwork.put` wrote.

    Args:
        reader: positioned at the body.
        empty: untrained model of the head.

    Returns:
        the weights, and the bits of each part.

    Raises:
        FileError: if the body does not end where the network does.
    """
    return _read(reader, empty, None)


def read_decimal(reader: BitReader, empty: EmptyModel) -> DecodedGrids:
    """Read a number of digits and weights that are levels / 10^digits, instead of levels times a step.

    Args:
        reader: positioned at the body.
        empty: untrained model of the head.

    Returns:
        the weights, and the bits of each part.

    Raises:
        FileError: if there are too many digits, or the body does not end where the network does.
    """
    digits = reader.take(DIGITS_BITS)
    if digits > MOST_DIGITS:
        raise FileError(f"the file claims weights of {digits} decimal digits, at most {MOST_DIGITS} are allowed; it is damaged")
    return _read(reader, empty, digits)


def _read(reader: BitReader, empty: EmptyModel, digits: int | None) -> DecodedGrids:
    model, input_axes = empty.model, empty.inputs.axes
    lanes_log2, permute = reader.take(LANES_BITS), bool(reader.take(1))
    if lanes_log2 > MOST_LANES_LOG2:
        raise FileError(f"the file claims 2^{lanes_log2} lanes, at most 2^{MOST_LANES_LOG2} are allowed; it is damaged")
    content = reader.rest()
    reader.skip_rest()
    stack = Stack.from_bytes(content, 1 << lanes_log2)
    shapes = {weight.name: tuple(weight.posterior.mean.shape) for weight in model.weights}
    specs: Specs = dict(zip(shapes, zip(shapes.values(), densities_of(model), strict=True), strict=True))
    groups = exchangeable_groups(model.network, input_axes) if permute else []
    before = stack.bits
    tensors = pop_network(stack, specs, groups)
    if len(stack.words) or bool((stack.heads != np.uint64(1 << 32)).any()):
        raise FileError("the file's message holds more than the network; it is damaged")
    weights = {name: torch.from_numpy(tensor.values(digits)) for name, tensor in tensors.items()}
    return DecodedGrids(weights, tensors, before, 8 * len(content), digits is not None)
