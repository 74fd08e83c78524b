"""Weights on a lattice of step 2^-m: a codec under the prior, and one under the posterior whose pops are draws.

A weight is a whole number times 2^-m. Under the prior it is coded as a bucket of an integer table and a position inside it;
under the posterior as a cell of 2^e points, at most a 32nd of a std wide if e > 0, and a position inside it. In both cases the
coder gets frequencies of total 2^28 and raw bits. Under the posterior no minimum has to be added to the frequencies, because
every cell that can be popped holds at least one slot.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.combinators import Codec
from bitsback.coding.densities import LocatedDensity
from bitsback.coding.elementary import Floats, normal_cdf
from bitsback.coding.tables import TOTAL_BITS, PriorTable, bucket_of, centre_of, start_of
from bitsback.errors import FileError, LayerError

__all__ = [
    "MEAN_STEPS_PER_STD",
    "STD_LEVELS_PER_OCTAVE",
    "PriorCode",
    "RoundedPosterior",
    "exponent_of",
    "under_posterior",
    "under_prior",
]

STD_LEVELS_PER_OCTAVE = 32
MEAN_STEPS_PER_STD = 64
CELLS_PER_STD_BITS = 5
"""log2 of the least number of cells per std, where the lattice is that fine."""


def _octave_parts(parts: int) -> Floats:
    """Return 2^(k / parts) for k = 0 .. parts - 1, from square roots, which IEEE 754 rounds alike on every machine."""
    root = np.float64(2.0)
    for _ in range(parts.bit_length() - 1):
        root = np.sqrt(root)
    values = [np.float64(1.0)]
    for _ in range(parts - 1):
        values.append(values[-1] * root)
    return np.array(values)


STD_PARTS = _octave_parts(STD_LEVELS_PER_OCTAVE)


@dataclass(frozen=True)
class RoundedPosterior:
    """Gaussian posterior of n weights in whole numbers, so that a receiver who repeats the training gets the same one.

    The rounding moves a mean by at most a 128th of its std.

    Attributes:
        mean_steps: (n,) int64; the mean is mean_steps * std / 64.
        std_level: (n,) int64; the std is 2^(std_level / 32).
    """

    mean_steps: Integers
    std_level: Integers

    @classmethod
    def of(cls, mean: Floats, std: Floats) -> "RoundedPosterior":
        """Return the rounded posterior nearest to given means and stds.

        Args:
            mean: posterior means, (n,).
            std: posterior stds, (n,).

        Returns:
            The rounded posterior of the n weights.

        Raises:
            LayerError: for a std that is not positive or a number that is not finite.

        >>> q = RoundedPosterior.of(np.array([0.3]), np.array([0.05]))
        >>> q.mean_steps.tolist(), q.std_level.tolist()
        ([381], [-138])
        """
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and bool((std > 0).all())):
            raise LayerError("a posterior has a mean or a std that is NaN, infinite or not above zero; train it again")
        level = np.rint(np.log2(std) * STD_LEVELS_PER_OCTAVE).astype(np.int64)
        return cls(np.rint(mean / _std(level, 0) * MEAN_STEPS_PER_STD).astype(np.int64), level)

    @property
    def mean(self) -> Floats:
        """Return the means, (n,)."""
        return self.mean_steps * self.std / MEAN_STEPS_PER_STD

    @property
    def std(self) -> Floats:
        """Return the standard deviations, (n,)."""
        return _std(self.std_level, 0)

    def digest(self, size: int) -> bytes:
        """Return the first ``size`` bytes of SHA-256 over all levels, then all mean steps, as little-endian int64."""
        content = self.std_level.astype("<i8").tobytes() + self.mean_steps.astype("<i8").tobytes()
        return hashlib.sha256(content).digest()[:size]

    def default_exponent(self) -> int:
        """Return m of the default lattice: 2^-m lies between a quarter and a half of the smallest std."""
        return int(-(int(self.std_level.min()) // STD_LEVELS_PER_OCTAVE)) + 1


def _std(level: Integers, exponent: int) -> Floats:
    """Return 2^(level / 32 + exponent), elementwise: a std in steps of the lattice of 2^-exponent."""
    return np.ldexp(STD_PARTS[level % STD_LEVELS_PER_OCTAVE], (level // STD_LEVELS_PER_OCTAVE + exponent).astype(np.int32))


def under_posterior(q: RoundedPosterior, exponent: int) -> Codec:
    """Return the codec of lattice points (n,) under q; popping draws from q, and pushing gives the bits back.

    Args:
        q: the posterior of n weights.
        exponent: m of the lattice step 2^-m.

    Returns:
        Codec of an int64 array (n,): weights in lattice steps. Its push raises LayerError for a point without frequency.
    """
    std = _std(q.std_level, exponent)
    mean = q.mean_steps * std / MEAN_STEPS_PER_STD
    width = np.maximum(q.std_level // STD_LEVELS_PER_OCTAVE + exponent - CELLS_PER_STD_BITS, 0)

    def cumulative(cell: Integers, part: slice | NDArray[np.bool_]) -> Integers:
        edge = (cell << width[part]).astype(np.float64) - 0.5
        return np.floor(normal_cdf((edge - mean[part]) / std[part]) * (1 << TOTAL_BITS)).astype(np.int64)

    def find(slot: Integers, part: slice) -> tuple[Integers, Integers, Integers]:
        guess = _normal_quantile((slot + 0.5) / (1 << TOTAL_BITS)) * std[part] + mean[part] + 0.5
        cell = np.floor(guess).astype(np.int64) >> width[part]
        low, high = cumulative(cell, part), cumulative(cell + 1, part)
        # the guess only saves time: exact integer edges decide, so every machine ends at the same cell
        while True:
            below, above = low > slot, high <= slot
            if not (below.any() or above.any()):
                return cell, low, high - low
            cell = cell - below + above
            low, high = cumulative(cell, part), cumulative(cell + 1, part)

    def push(stack: Stack, point: Integers) -> None:
        cell = point >> width
        stack.push_raw(point - (cell << width), width)
        everything = slice(0, len(point))
        low = cumulative(cell, everything)
        frequency = cumulative(cell + 1, everything) - low
        if not bool((frequency > 0).all()):
            raise LayerError("a weight lies so far from its posterior that q gives it no bits; it was not drawn from this q")
        stack.push(low, frequency, TOTAL_BITS)

    def pop(stack: Stack) -> Integers:
        cell = stack.pop(len(mean), TOTAL_BITS, find)
        return (cell << width) + stack.pop_raw(width)

    return Codec(push, pop)


@dataclass(frozen=True)
class PriorCode:
    """Tables of a network's priors on the lattice of 2^-exponent, with the table and the centre of every weight.

    Attributes:
        tables: the distinct tables.
        table_of: number of the table of every weight, (n,).
        centre: lattice point nearest to the prior's location, (n,).
    """

    tables: tuple[PriorTable, ...]
    table_of: Integers
    centre: Integers

    @classmethod
    def build(cls, placed: Sequence[LocatedDensity], shapes: Sequence[Sequence[int]], exponent: int) -> "PriorCode":
        """Return the code of all tensors of a network.

        Args:
            placed: prior of each tensor.
            shapes: shape of each tensor.
            exponent: m of the lattice step 2^-m.

        Returns:
            The code of the n weights, tensor after tensor, each flattened.
        """
        tables: dict[tuple[str, float], int] = {}
        built: list[PriorTable] = []
        numbers, centres = [], []
        for prior, shape in zip(placed, shapes, strict=True):
            scales, inverse = np.unique(np.broadcast_to(prior.scale, tuple(shape)), return_inverse=True)
            for scale in scales.tolist():
                if (prior.standard.name, scale) not in tables:
                    tables[prior.standard.name, scale] = len(built)
                    built.append(PriorTable.build(prior.standard, float(np.ldexp(1.0, -exponent)) / scale))
            chosen = np.array([tables[prior.standard.name, scale] for scale in scales.tolist()])
            numbers.append(chosen[inverse].ravel())
            centre = centre_of(np.ldexp(prior.centre, exponent))
            centres.append(np.broadcast_to(centre, tuple(shape)).ravel())
        return cls(tuple(built), np.concatenate(numbers), np.concatenate(centres))


def under_prior(code: PriorCode) -> Codec:
    """Return the codec of lattice points (n,) under the prior's integer tables.

    Its push raises LayerError for a point beyond its table.

    Args:
        code: tables and centres of the n weights.

    Returns:
        Codec of an int64 array (n,): weights in lattice steps.
    """
    largest = max(len(table.cumulative) for table in code.tables)
    edges = np.full((len(code.tables), largest), 1 << TOTAL_BITS, dtype=np.int64)
    for number, table in enumerate(code.tables):
        edges[number, : len(table.cumulative)] = table.cumulative
    half = np.array([table.half for table in code.tables])[code.table_of]
    flat, begin = edges.ravel(), code.table_of * largest

    def find(slot: Integers, row: slice) -> tuple[Integers, Integers, Integers]:
        numbers = code.table_of[row]
        index = np.empty_like(slot)
        for number in np.unique(numbers):
            mine = numbers == number
            index[mine] = np.searchsorted(edges[number], slot[mine], side="right") - 1
        low = flat[begin[row] + index]
        return index, low, flat[begin[row] + index + 1] - low

    def push(stack: Stack, point: Integers) -> None:
        bucket, exponent, position = bucket_of(point - code.centre)
        index = bucket + half
        if not bool(((index >= 0) & (index < 2 * half)).all()):
            raise LayerError("a weight lies beyond the reach of its prior's table; train with a wider prior")
        stack.push_raw(position, exponent)
        low = flat[begin + index]
        stack.push(low, flat[begin + index + 1] - low, TOTAL_BITS)

    def pop(stack: Stack) -> Integers:
        bucket = stack.pop(len(half), TOTAL_BITS, find) - half
        size, exponent = start_of(bucket)
        size = size + stack.pop_raw(exponent)
        return np.where(bucket < 0, -1 - size, size) + code.centre

    return Codec(push, pop)


def _normal_quantile(p: Floats) -> Floats:
    """Return an approximate Phi^-1, to about 1e-3; the exact cell edges correct it."""
    grid, values = _QUANTILE_GUESS
    return np.interp(p, grid, values)


_POINTS = np.arange(-1440, 1441) / 240.0
_QUANTILE_GUESS = (normal_cdf(_POINTS), _POINTS)


def exponent_of(step: float | str) -> int:
    """Return m of a grid step 2^-m.

    Args:
        step: a number, or a text such as ``2^-8`` or ``0.25``.

    Returns:
        The whole number m.

    Raises:
        FileError: for a step that is no power of two.

    >>> exponent_of("2^-8"), exponent_of(0.25)
    (8, 2)
    """
    base, caret, power = str(step).strip().partition("^")
    try:
        width = float(base) ** int(power) if caret else float(base)
        exponent = -math.log2(width)
        nearest = round(exponent)  # raises for NaN and infinity
    except (ValueError, ArithmeticError) as error:
        raise FileError(f"--step {step} is not a power of two; write 2^-8 or 0.00390625") from error
    if exponent != nearest:
        raise FileError(f"--step {step} is not a power of two; the nearest is 2^{-nearest}")
    return nearest
