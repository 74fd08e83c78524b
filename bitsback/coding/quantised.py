"""Two-part code: every weight tensor on a uniform grid of its own, its levels coded under the prior.

What is sent is a chosen weight vector, rounded no more finely than the posterior knows it. Above about 4 bits a weight this
takes a few per cent more than the net bits of the posterior.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.combinators import Codec
from bitsback.coding.densities import LocatedDensity
from bitsback.coding.grid import CHUNK, STEP_LEVELS, STRETCH_LEVELS, GridCode, TensorGrid, chunks, spread, step_of
from bitsback.errors import PriorError
from bitsback.units import nats_to_bits

__all__ = ["STEPS_PER_STD", "QuantisedTensor", "choose_levels", "quantise", "round_to_digits", "step_level_for", "tensor_codec"]

SIDE_BITS = np.array([8, 6])
"""Raw bits of the step level and the stretch level of a tensor."""

STEPS_PER_STD = 3.46
"""sqrt(12): the step whose rounding error costs as much as halving it would, at many bits a weight."""

HIGHEST_PRECISIONS = 1e-3
"""The share of weights whose precision is cut to the next lower one when a step is chosen."""

ROUNDS = 2
"""How often levels and stretch are chosen in turn."""


@dataclass(frozen=True, eq=False)
class QuantisedTensor:
    """One weight tensor on its grid.

    Attributes:
        levels: int64, in the shape of the tensor; a weight is its level times 2^(step_level / 4).
        step_level: in quarter octaves, -128 to 127.
        stretch_level: the prior's scales are taken times 2^(stretch_level / 4), -32 to 31.
        prior: its density, centres and scales.
    """

    levels: Integers
    step_level: int
    stretch_level: int
    prior: LocatedDensity

    @property
    def step(self) -> float:
        """The grid step."""
        return step_of(self.step_level)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.levels.shape

    def values(self, digits: int | None = None) -> NDArray[np.float32]:
        """The weights, rounded to float32: level times step, or of a grid in ``digits`` decimal digits level / 10^digits."""
        found, flat = np.empty(self.levels.size, dtype=np.float32), self.levels.reshape(-1)
        for row in chunks(len(flat)):
            found[row] = flat[row] * self.step if digits is None else flat[row] / 10.0**digits
        return found.reshape(self.shape)

    def bits(self) -> float:
        """What pushing the tensor adds to a stack, its side information included."""
        grid = TensorGrid(self.shape, self.prior, self.step_level)
        return grid.bits(grid.histogram(self.levels), self.stretch_level) + int(SIDE_BITS.sum())


def tensor_codec(shape: Sequence[int], prior: LocatedDensity) -> Codec:
    """Codec of :class:`QuantisedTensor` of one shape and prior; the two levels of its grid are popped first.

    >>> from bitsback.coding.densities import NORMAL
    >>> prior = LocatedDensity(NORMAL, np.zeros(()), np.full((), 0.5))
    >>> tensor = quantise(np.array([0.3, -0.9, 0.0]), 0.1, prior, step_level=-8)
    >>> stack, codec = Stack.empty(), tensor_codec((3,), prior)
    >>> codec.push(stack, tensor)
    >>> abs(stack.bits - tensor.bits()) < 0.01, codec.pop(stack).values().tolist()
    (True, [0.25, -1.0, 0.0])
    """

    def push(stack: Stack, tensor: QuantisedTensor) -> None:
        TensorGrid(shape, prior, tensor.step_level).code(tensor.stretch_level).push(stack, tensor.levels)
        side = [tensor.step_level - STEP_LEVELS.start, tensor.stretch_level - STRETCH_LEVELS.start]
        stack.push_raw(np.array(side), SIDE_BITS)

    def pop(stack: Stack) -> QuantisedTensor:
        step, stretch = stack.pop_raw(SIDE_BITS).tolist()
        step_level, stretch_level = step + STEP_LEVELS.start, stretch + STRETCH_LEVELS.start
        levels = TensorGrid(shape, prior, step_level).code(stretch_level).pop(stack)
        return QuantisedTensor(levels.reshape(tuple(shape)), step_level, stretch_level, prior)

    return Codec(push, pop)


def step_level_for(std: NDArray[np.floating] | float, steps_per_std: float = STEPS_PER_STD) -> int:
    """The level of the step nearest to ``steps_per_std`` stds, in quarter octaves.

    The std of a tensor is the one of its mean precision, which is what a rounding error costs; the highest precisions of
    0.1 % of its weights are cut, so that no single weight decides.

    >>> step_level_for(np.full(10, 0.25)), step_level_for(0.25, 4.0)
    (-1, 0)
    """
    flat = np.asarray(std).reshape(-1)
    some = flat[:: len(flat) // CHUNK | 1].astype(np.float64) ** -2.0
    limit = float(np.quantile(some, 1.0 - HIGHEST_PRECISIONS, method="lower"))
    total = sum(float(np.minimum(flat[row].astype(np.float64) ** -2.0, limit).sum()) for row in chunks(len(flat)))
    typical = (total / len(flat)) ** -0.5
    level = round(4 * float(np.log2(steps_per_std * typical)))
    return min(max(level, STEP_LEVELS.start), STEP_LEVELS.stop - 1)


def choose_levels(
    mean: NDArray[np.floating],
    std: NDArray[np.floating] | float,
    step: float,
    code: GridCode,
    trade_off: float,
) -> Integers:
    """For each weight the level with the least distortion + trade_off * code length, both in bits.

    The distortion of rounding m to w is (m - w)^2 / (2 std^2) nats. Three levels are tried: the nearest, its neighbour on the
    side of the prior's centre, and the centre.

    Args:
        mean: posterior means or point estimates, the tensor's shape.
        std: posterior stds, or what stands for them: one number, or an array that broadcasts to the means.
        step: of the grid.
        code: of the levels.
        trade_off: zero rounds to the nearest level.
    """
    flat, widths = mean.reshape(-1), spread(np.asarray(std), mean.shape)
    levels = np.empty(len(flat), dtype=np.int64)
    for row in chunks(len(flat)):
        target, centre = flat[row].astype(np.float64) / step, code.centre(row)
        nearest = np.rint(target).astype(np.int64)
        levels[row] = nearest
        if trade_off == 0:
            continue
        metric = nats_to_bits(0.5) * (step / widths(row).astype(np.float64)) ** 2
        least = np.full(len(target), np.inf)
        for level in (nearest, nearest - np.sign(nearest - centre), np.broadcast_to(centre, nearest.shape)):
            cost = metric * (target - level) ** 2 + trade_off * code.bits_at(level - centre, row)
            better = cost < least
            levels[row] = np.where(better, level, levels[row])
            least = np.where(better, cost, least)
    return levels.reshape(mean.shape)


def quantise(
    mean: NDArray[np.floating],
    std: NDArray[np.floating] | float,
    prior: LocatedDensity,
    step_level: int,
    trade_off: float = 0.0,
) -> QuantisedTensor:
    """Put a tensor on the grid of step 2^(step_level / 4), under the stretch of its prior that codes it best.

    Args:
        mean, std, trade_off: see :func:`choose_levels`.
        prior: of the tensor.
        step_level: from :func:`step_level_for`, or any from -128 to 127.

    Raises:
        PriorError: when a mean is not finite, a std is not above zero, or the prior's tables do not reach the weights.
    """
    if step_level not in STEP_LEVELS:
        raise PriorError(f"a grid step of 2^({step_level}/4) cannot be written; choose a level from -128 to 127")
    if not (bool(np.isfinite(mean).all()) and bool((np.asarray(std) > 0).all())):
        raise PriorError("a weight is NaN or infinite, or a std is not above zero; train it again")
    grid, step = TensorGrid(mean.shape, prior, step_level), step_of(step_level)
    levels = choose_levels(mean, std, step, grid.code(0), 0.0)
    stretch_level = grid.best_stretch(levels)
    for _ in range(ROUNDS if trade_off > 0 else 0):
        del levels  # room for the next ones
        levels = choose_levels(mean, std, step, grid.code(stretch_level), trade_off)
        stretch_level = grid.best_stretch(levels)
    return QuantisedTensor(levels, step_level, stretch_level, prior)


def round_to_digits(mean: NDArray[np.floating], digits: int, prior: LocatedDensity) -> QuantisedTensor:
    """Round to ``digits`` decimal digits: levels are whole multiples of 10^-digits, coded as on the nearest binary grid.

    >>> from bitsback.coding.densities import NORMAL
    >>> rounded = round_to_digits(np.array([0.126, -0.5]), 2, LocatedDensity(NORMAL, np.zeros(()), np.full((), 0.5)))
    >>> rounded.levels.tolist(), rounded.values(2).tolist() == np.float32([0.13, -0.5]).tolist()
    ([13, -50], True)
    """
    levels = np.rint(mean.astype(np.float64) * 10.0**digits).astype(np.int64)
    step_level = round(-4 * digits * float(np.log2(10.0)))
    return QuantisedTensor(levels, step_level, TensorGrid(mean.shape, prior, step_level).best_stretch(levels), prior)
