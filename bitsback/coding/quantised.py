"""Two-part code: every weight tensor is rounded to a uniform grid of its own, and its levels are coded under the prior.

The file holds one chosen weight vector, rounded about as coarsely as the posterior's std allows. Above about 4 bits per weight
it takes a few per cent more bits than the posterior's net bits.
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
"""Width in bits of the side information of a tensor: step level and stretch level."""

STEPS_PER_STD = 3.46
"""sqrt(12) stds: the grid step of least total cost in the limit of many bits per weight."""

HIGHEST_PRECISIONS = 1e-3
"""Share of the weights, those of highest precision, whose precision is clipped when a step is chosen."""

ROUNDS = 2
"""Number of times that levels and stretch are chosen in turn."""


@dataclass(frozen=True, eq=False)
class QuantisedTensor:
    """Weight tensor on a uniform grid.

    Attributes:
        levels: int64, in the shape of the tensor; a weight is its level times 2^(step_level / 4).
        step_level: in quarter octaves, -128 to 127.
        stretch_level: the prior's scales are taken times 2^(stretch_level / 4), -32 to 31.
        prior: density, centres and scales of its weights.
    """

    levels: Integers
    step_level: int
    stretch_level: int
    prior: LocatedDensity

    @property
    def step(self) -> float:
        """Return the grid step."""
        return step_of(self.step_level)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the tensor."""
        return self.levels.shape

    def values(self, digits: int | None = None) -> NDArray[np.float32]:
        """Return the weights in float32: level times step, or level / 10^digits for a grid of ``digits`` decimal digits."""
        found, flat = np.empty(self.levels.size, dtype=np.float32), self.levels.reshape(-1)
        for row in chunks(len(flat)):
            found[row] = flat[row] * self.step if digits is None else flat[row] / 10.0**digits
        return found.reshape(self.shape)

    def bits(self) -> float:
        """Return the bits that pushing the tensor adds to a stack, its side information included."""
        grid = TensorGrid(self.shape, self.prior, self.step_level)
        return grid.bits(grid.histogram(self.levels), self.stretch_level) + int(SIDE_BITS.sum())


def tensor_codec(shape: Sequence[int], prior: LocatedDensity) -> Codec:
    """Return the codec of :class:`QuantisedTensor` of one shape and prior; the two levels of its grid are popped first.

    Args:
        shape: shape of the tensor.
        prior: prior of its weights.

    Returns:
        Codec of a :class:`QuantisedTensor`.

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
    """Return the step level, in quarter octaves, whose step is nearest to a multiple of the tensor's typical std.

    The typical std belongs to the mean precision, 1 / std^2, of the weights, to which the cost of rounding errors is
    proportional. The highest 0.1 % of the precisions are clipped, so that no single weight decides.

    Args:
        std: posterior stds of the weights, any shape, or one number for all.
        steps_per_std: wanted step in units of the typical std.

    Returns:
        A level in :data:`STEP_LEVELS`.

    >>> step_level_for(np.full(10, 0.25)), step_level_for(0.25, 4.0)
    (-1, 0)
    """
    flat = np.asarray(std).reshape(-1)
    # the quantile is that of a regular subsample of fewer than 2^19 weights: it sorts, which is slow for large tensors
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
    """Return for each weight the level with the least distortion + trade_off * code length, both in bits.

    The distortion of rounding m to w is (m - w)^2 / (2 std^2) nats. Three levels are tried: the nearest, its neighbour on the
    side of the prior's centre, and the centre.

    Args:
        mean: posterior means or point estimates, the tensor's shape.
        std: posterior stds, or tolerances of point estimates: one number, or an array that broadcasts to the means.
        step: grid step.
        code: code of the levels on this grid.
        trade_off: weight of the code length; 0 rounds to the nearest level.

    Returns:
        int64 levels, the shape of ``mean``.
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
    """Round a tensor to the grid of step 2^(step_level / 4), with the stretch of its prior that gives the shortest code.

    Args:
        mean: posterior means or point estimates, the tensor's shape.
        std: posterior stds, or tolerances of point estimates: one number, or an array that broadcasts to the means.
        prior: prior of the weights.
        step_level: from :func:`step_level_for`, or any from -128 to 127.
        trade_off: weight of the code length against distortion, see :func:`choose_levels`.

    Returns:
        The tensor on its grid.

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
    """Round to decimal digits: levels count multiples of 10^-digits, and are coded as on the nearest binary grid.

    Args:
        mean: posterior means or point estimates, the tensor's shape.
        digits: digits after the decimal point.
        prior: prior of the weights.

    Returns:
        The tensor; its ``values(digits)`` are the weights.

    >>> from bitsback.coding.densities import NORMAL
    >>> rounded = round_to_digits(np.array([0.126, -0.5]), 2, LocatedDensity(NORMAL, np.zeros(()), np.full((), 0.5)))
    >>> rounded.levels.tolist(), rounded.values(2).tolist() == np.float32([0.13, -0.5]).tolist()
    ([13, -50], True)
    """
    levels = np.rint(mean.astype(np.float64) * 10.0**digits).astype(np.int64)
    step_level = round(-4 * digits * float(np.log2(10.0)))
    return QuantisedTensor(levels, step_level, TensorGrid(mean.shape, prior, step_level).best_stretch(levels), prior)
