"""Code of one tensor's grid levels under its prior: integer tables at a step and a stretch of their own for each tensor.

Steps are powers of 2^(1/4) and scales are rounded to powers of 2^(1/16). A table then depends only on the density and on one
whole number, so a tensor with a thousand scales needs a few dozen tables.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.densities import LocatedDensity, StandardDensity
from bitsback.coding.elementary import Floats
from bitsback.coding.tables import TOTAL_BITS, PriorTable, bucket_of, centre_of, start_of
from bitsback.errors import PriorError

__all__ = [
    "CHUNK",
    "STEP_LEVELS",
    "STRETCH_LEVELS",
    "GridCode",
    "Slices",
    "TensorGrid",
    "chunks",
    "power",
    "scale_level",
    "spread",
    "step_of",
]

Slices = Callable[[slice], NDArray[Any]]
"""Function from a slice to that slice of a flat array that is never built in full."""

QUARTERS = tuple(map(float.fromhex, ("0x1p+0", "0x1.306fe0a31b715p+0", "0x1.6a09e667f3bcdp+0", "0x1.ae89f995ad3adp+0")))
SIXTEENTHS = tuple(map(float.fromhex, ("0x1p+0", "0x1.0b5586cf9890fp+0", "0x1.172b83c7d517bp+0", "0x1.2387a6e756238p+0")))
STEP_LEVELS, STRETCH_LEVELS = range(-128, 128), range(-32, 32)
"""Allowed exponents of 2^(1/4) for grid steps and for stretches of the prior's scales."""

CHUNK = 1 << 18
"""Weights coded at once; bounds the working memory. Part of the format: another value gives other bytes."""

COARSE = 4
"""Stretch levels per octave: the best stretch is searched in whole octaves first, then level by level."""

MIDDLE = 1 << 12
"""Bound of bucket numbers: those of 64-bit integers lie strictly between -MIDDLE and MIDDLE."""


def power(sixteenths: int) -> float:
    """Return 2^(sixteenths / 16), the same float64 on every machine.

    >>> power(16), power(-8)
    (2.0, 0.7071067811865476)
    """
    octave, rest = divmod(sixteenths, 16)
    return math.ldexp(QUARTERS[rest // 4] * SIXTEENTHS[rest % 4], octave)


def step_of(level: int) -> float:
    """Return the grid step 2^(level / 4)."""
    return power(4 * level)


MANTISSAS = np.array([power(k - 16) for k in range(17)])
BOUNDARIES = np.sqrt(MANTISSAS[:-1] * MANTISSAS[1:])


def scale_level(scale: Floats) -> Integers:
    """Return k, elementwise, such that 2^(k / 16) is nearest to a scale on a logarithmic axis, within 2.2 %.

    >>> scale_level(np.array([1.0, 0.5, 0.3])).tolist()
    [0, -16, -28]
    """
    mantissa, octave = np.frexp(scale)
    return 16 * (octave.astype(np.int64) - 1) + np.searchsorted(BOUNDARIES, mantissa)


@lru_cache(maxsize=1024)
def _table(shape: StandardDensity, level: int) -> PriorTable:
    """Return the table of a density on the lattice of step 2^(level / 16) scales."""
    return PriorTable.build(shape, power(level))


def chunks(count: int) -> list[slice]:
    """Return slices of at most :data:`CHUNK` elements that cover 0 .. count - 1."""
    return [slice(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]


def spread(values: NDArray[Any], shape: Sequence[int]) -> Slices:
    """Return a function to slices of ``values`` broadcast to ``shape`` and flattened, without building the whole array.

    Args:
        values: an array that broadcasts to ``shape``.
        shape: shape of the tensor.

    Returns:
        Function from a slice to the values there, (n,), or () where ``values`` is a single number.

    >>> spread(np.array([[1], [2]]), (2, 3))(slice(1, 4))
    array([1, 1, 2])
    """
    if values.size == 1:
        only = values.reshape(())
        return lambda row: only
    if values.shape == tuple(shape) and values.flags.c_contiguous:
        flat = values.reshape(-1)
        return lambda row: flat[row]
    lazy = np.broadcast_to(values, tuple(shape)).flat
    return lambda row: lazy[row]


class TensorGrid:
    """Grid of one tensor, the multiples of 2^(step_level / 4), under the tensor's prior.

    Args:
        shape: shape of the tensor.
        prior: density of its weights, with centres and scales that broadcast to ``shape``.
        step_level: log2 of the grid step, in quarter octaves.
    """

    def __init__(self, shape: Sequence[int], prior: LocatedDensity, step_level: int) -> None:
        self.count, self._shape, self._step_level = math.prod(shape), prior.standard, step_level
        scales, kinds = np.unique(scale_level(prior.scale), return_inverse=True)
        self._scales: list[int] = scales.tolist()
        self._kind = spread(kinds.reshape(prior.scale.shape).astype(np.int32), shape)
        self._centre = spread(centre_of(prior.centre / step_of(step_level)), shape)

    def _table(self, scale: int, stretch_level: int) -> PriorTable:
        return _table(self._shape, 4 * (self._step_level - stretch_level) - scale)

    def code(self, stretch_level: int) -> "GridCode":
        """Return the code under the prior with every scale multiplied by 2^(stretch_level / 4)."""
        return GridCode(self.count, self._kind, self._centre, [self._table(scale, stretch_level) for scale in self._scales])

    def histogram(self, levels: Integers) -> Integers:
        """Return the counts of each bucket around the centre, (scales, 2 * MIDDLE); ``levels`` has the tensor's shape."""
        flat, size = levels.reshape(-1), 2 * MIDDLE
        found = np.zeros(len(self._scales) * size, dtype=np.int64)
        for row in chunks(self.count):
            bucket, _, _ = bucket_of(flat[row] - self._centre(row))
            found += np.bincount(self._kind(row) * size + MIDDLE + bucket, minlength=len(found))
        return found.reshape(len(self._scales), size)

    def bits(self, histogram: Integers, stretch_level: int) -> float:
        """Return the code length of levels with a given histogram.

        Args:
            histogram: counts from :meth:`histogram`, (scales, 2 * MIDDLE).
            stretch_level: log2 of the factor on the prior's scales, in quarter octaves.

        Returns:
            Bits, all levels together; infinite if one lies beyond the tables or the grid is too fine for them.
        """
        total = 0.0
        for scale, row in zip(self._scales, histogram, strict=True):
            seen = np.flatnonzero(row)
            try:
                table = self._table(scale, stretch_level)
            except PriorError:  # the grid is too fine for this scale: another stretch may do
                return math.inf
            if len(seen) and not -table.half <= seen[0] - MIDDLE <= seen[-1] - MIDDLE < table.half:
                return math.inf
            index = seen - MIDDLE + table.half
            frequency = table.cumulative[index + 1] - table.cumulative[index]
            total += float(row[seen] @ (TOTAL_BITS - np.log2(frequency) + start_of(seen - MIDDLE)[1]))
        return total

    def best_stretch(self, levels: Integers) -> int:
        """Return the stretch level under which ``levels`` take the fewest bits.

        Args:
            levels: levels of the tensor, in its shape.

        Returns:
            A level in :data:`STRETCH_LEVELS`; of several equal ones the nearest to 0.

        Raises:
            PriorError: when some level lies beyond the tables at every stretch.
        """
        histogram = self.histogram(levels)
        costs = {level: self.bits(histogram, level) for level in STRETCH_LEVELS[::COARSE]}
        best = min(costs, key=lambda level: (costs[level], abs(level)))
        near = [level for level in range(best - COARSE + 1, best + COARSE) if level in STRETCH_LEVELS]
        costs |= {level: self.bits(histogram, level) for level in near}
        best = min(costs, key=lambda level: (costs[level], abs(level)))
        if math.isinf(costs[best]):
            raise PriorError(
                f"weights lie beyond the reach of the prior {self._shape.name} on a grid of step "
                f"{step_of(self._step_level):g}; train with a wider prior or choose a coarser grid"
            )
        return best


class GridCode:
    """Code of one tensor's levels: integer tables joined end to end, and the table and centre of each weight.

    Args:
        count: number of weights.
        kind: number of the table of each weight, by slice.
        centre: grid point nearest to the prior's location of each weight, by slice.
        tables: the distinct tables.

    >>> prior = LocatedDensity(StandardDensity("cauchy", lambda z: 1.0 / (1.0 + z * z), 8), np.zeros(()), np.ones(()))
    >>> stack, code = Stack.empty(), TensorGrid((2, 3), prior, step_level=-8).code(0)
    >>> code.push(stack, np.array([[0, 3, -200], [5, 0, 1]]))
    >>> code.pop(stack).tolist(), stack.bits
    ([0, 3, -200, 5, 0, 1], 0.0)
    """

    def __init__(self, count: int, kind: Slices, centre: Slices, tables: Sequence[PriorTable]) -> None:
        self.count, self._kind, self.centre = count, kind, centre
        self._half = np.array([table.half for table in tables])
        self._middle = np.cumsum(2 * self._half) - self._half
        self._start = np.concatenate([table.cumulative[:-1] for table in tables])
        self._frequency = np.concatenate([np.diff(table.cumulative) for table in tables])
        # table t holds the slots from t 2^28 on, so that one search finds a slot in any of the tables
        self._ordered = self._start + np.repeat(np.arange(len(tables)) << TOTAL_BITS, 2 * self._half)
        exponents = [start_of(np.arange(-table.half, table.half))[1] for table in tables]
        self._bits = TOTAL_BITS - np.log2(self._frequency) + np.concatenate(exponents)

    def bits_at(self, index: Integers, row: slice) -> Floats:
        """Return the code lengths of grid points for the weights of one slice.

        Args:
            index: grid points relative to the centres, (n,).
            row: the slice of n weights.

        Returns:
            Bits, (n,); infinite beyond the tables.
        """
        bucket, _, _ = bucket_of(index)
        kind = self._kind(row)
        inside = np.abs(bucket + 0.5) < self._half[kind]
        return np.where(inside, self._bits[np.where(inside, self._middle[kind] + bucket, 0)], np.inf)

    def push(self, stack: Stack, levels: Integers) -> None:
        """Encode the levels of the tensor.

        Args:
            stack: where to push.
            levels: one for each weight, any shape.

        Raises:
            PriorError: when a level lies beyond its table.
        """
        flat = levels.reshape(-1)
        # last chunk first, position before bucket: pop reads chunks from the first on, and needs the bucket for the position
        for row in reversed(chunks(self.count)):
            bucket, exponent, position = bucket_of(flat[row] - self.centre(row))
            kind = self._kind(row)
            if not bool((np.abs(bucket + 0.5) < self._half[kind]).all()):
                raise PriorError("a weight lies beyond the reach of its prior's table; choose another stretch")
            index = self._middle[kind] + bucket
            if exponent.any():
                stack.push_raw(position, exponent)
            stack.push(self._start[index], self._frequency[index], TOTAL_BITS)

    def pop(self, stack: Stack) -> Integers:
        """Decode and return the levels, flat, (count,) int64."""
        levels = np.empty(self.count, dtype=np.int64)
        for row in chunks(self.count):
            kind = np.broadcast_to(self._kind(row), (row.stop - row.start,))
            begin = kind.astype(np.int64) << TOTAL_BITS

            def find(slot: Integers, part: slice, begin: Integers = begin) -> tuple[Integers, Integers, Integers]:
                index = np.searchsorted(self._ordered, begin[part] + slot, side="right") - 1
                return index, self._start[index], self._frequency[index]

            bucket = stack.pop(len(kind), TOTAL_BITS, find) - self._middle[kind]
            size, exponent = start_of(bucket)
            if exponent.any():
                size = size + stack.pop_raw(exponent)
            levels[row] = np.where(bucket < 0, -1 - size, size) + self.centre(row)
        return levels
