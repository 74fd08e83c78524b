"""A prior on the multiples of a tensor's own step: integer tables, stretched to fit, for as many weights as there are.

Steps are powers of 2^(1/4), scales are rounded to powers of 2^(1/16): a table then depends on the density and on one whole
number, so that a tensor with a thousand scales needs a few dozen tables.
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
"""Gives any slice of an array that is never made whole."""

QUARTERS = tuple(map(float.fromhex, ("0x1p+0", "0x1.306fe0a31b715p+0", "0x1.6a09e667f3bcdp+0", "0x1.ae89f995ad3adp+0")))
SIXTEENTHS = tuple(map(float.fromhex, ("0x1p+0", "0x1.0b5586cf9890fp+0", "0x1.172b83c7d517bp+0", "0x1.2387a6e756238p+0")))
STEP_LEVELS, STRETCH_LEVELS = range(-128, 128), range(-32, 32)
"""Exponents of 2^(1/4)."""

CHUNK = 1 << 18
"""Weights at once, which bounds the memory beyond the levels themselves. Part of the format: other chunks, other bytes."""

COARSE = 4
"""The best stretch is looked for in whole octaves first."""

MIDDLE = 1 << 12
"""Bucket numbers of 64-bit integers lie strictly between -MIDDLE and MIDDLE."""


def power(sixteenths: int) -> float:
    """2^(sixteenths / 16), the same double on every machine.

    >>> power(16), power(-8)
    (2.0, 0.7071067811865476)
    """
    octave, rest = divmod(sixteenths, 16)
    return math.ldexp(QUARTERS[rest // 4] * SIXTEENTHS[rest % 4], octave)


def step_of(level: int) -> float:
    """The grid step 2^(level / 4)."""
    return power(4 * level)


MANTISSAS = np.array([power(k - 16) for k in range(17)])
BOUNDARIES = np.sqrt(MANTISSAS[:-1] * MANTISSAS[1:])


def scale_level(scale: Floats) -> Integers:
    """The nearest k, in octaves, of scale = 2^(k / 16); it moves a scale by at most 2.2 %.

    >>> scale_level(np.array([1.0, 0.5, 0.3])).tolist()
    [0, -16, -28]
    """
    mantissa, octave = np.frexp(scale)
    return 16 * (octave.astype(np.int64) - 1) + np.searchsorted(BOUNDARIES, mantissa)


@lru_cache(maxsize=1024)
def _table(shape: StandardDensity, level: int) -> PriorTable:
    return PriorTable.build(shape, power(level))


def chunks(count: int) -> list[slice]:
    """0 .. count - 1 in slices of at most :data:`CHUNK`."""
    return [slice(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]


def spread(values: NDArray[Any], shape: Sequence[int]) -> Slices:
    """Any slice of ``values`` broadcast to ``shape`` and flattened; the whole is never made.

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
    """The multiples of 2^(step_level / 4) under the prior of one tensor.

    Args:
        shape: of the tensor.
        prior: its density, with centres and scales that broadcast to ``shape``.
        step_level: in quarter octaves.
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
        """The code with every scale taken times 2^(stretch_level / 4)."""
        return GridCode(self.count, self._kind, self._centre, [self._table(scale, stretch_level) for scale in self._scales])

    def histogram(self, levels: Integers) -> Integers:
        """How often each bucket around the centre happens, (scales, 2 * MIDDLE); ``levels`` of the tensor's shape."""
        flat, size = levels.reshape(-1), 2 * MIDDLE
        found = np.zeros(len(self._scales) * size, dtype=np.int64)
        for row in chunks(self.count):
            bucket, _, _ = bucket_of(flat[row] - self._centre(row))
            found += np.bincount(self._kind(row) * size + MIDDLE + bucket, minlength=len(found))
        return found.reshape(len(self._scales), size)

    def bits(self, histogram: Integers, stretch_level: int) -> float:
        """Code length of levels with this histogram; infinite where the tables do not reach."""
        total = 0.0
        for scale, row in zip(self._scales, histogram, strict=True):
            seen = np.flatnonzero(row)
            try:
                table = self._table(scale, stretch_level)
            except PriorError:  # a grid too fine for this scale
                return math.inf
            if len(seen) and not -table.half <= seen[0] - MIDDLE <= seen[-1] - MIDDLE < table.half:
                return math.inf
            index = seen - MIDDLE + table.half
            frequency = table.cumulative[index + 1] - table.cumulative[index]
            total += float(row[seen] @ (TOTAL_BITS - np.log2(frequency) + start_of(seen - MIDDLE)[1]))
        return total

    def best_stretch(self, levels: Integers) -> int:
        """The stretch level under which ``levels`` take the fewest bits.

        Raises:
            PriorError: when they lie out of reach at all of them.
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
    """The code of one tensor's levels: integer tables end to end, and which weight reads which.

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
        self._ordered = self._start + np.repeat(np.arange(len(tables)) << TOTAL_BITS, 2 * self._half)
        exponents = [start_of(np.arange(-table.half, table.half))[1] for table in tables]
        self._bits = TOTAL_BITS - np.log2(self._frequency) + np.concatenate(exponents)

    def bits_at(self, index: Integers, row: slice) -> Floats:
        """Cost of grid points counted from the centres, for the weights of one slice; infinite out of reach."""
        bucket, _, _ = bucket_of(index)
        kind = self._kind(row)
        inside = np.abs(bucket + 0.5) < self._half[kind]
        return np.where(inside, self._bits[np.where(inside, self._middle[kind] + bucket, 0)], np.inf)

    def push(self, stack: Stack, levels: Integers) -> None:
        """Encode the levels of the tensor, any shape.

        Raises:
            PriorError: when one is out of reach.
        """
        flat = levels.reshape(-1)
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
        """Decode the levels, flat."""
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
