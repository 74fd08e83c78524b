"""A prior as an integer table: buckets of a lattice that widen like a floating-point number's, each with a frequency.

The lattice is the multiples of a step. A bucket holds 2^e neighbours, with 64 or more buckets to an octave, so that a bucket
and a position inside it (raw bits) cost what the density says, to about 1e-4 bit. No value is out of range below
2^reach_octaves scales, and everything after the table is built is integer arithmetic.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.densities import StandardDensity
from bitsback.coding.elementary import Floats
from bitsback.errors import PriorError

__all__ = ["MOST_OCTAVES", "TOTAL_BITS", "Ints", "PriorTable", "bucket_of", "centre_of", "start_of"]

Ints = NDArray[np.int64]

TOTAL_BITS = 28
"""Frequencies of a table sum to 2^28: more would cost precision in a 64-bit coder, fewer in the tails."""

MOST_OCTAVES = 40
"""A table covers at most 2^40 points on either side of zero."""

SUB_BUCKET_BITS = 6
MASS_BITS = 34
POINTS = (-0.8611363115940526, -0.3399810435848563, 0.3399810435848563, 0.8611363115940526)
WEIGHTS = (0.34785484513745385, 0.6521451548625461, 0.6521451548625461, 0.34785484513745385)


LARGEST_CENTRE = 2.0**52
"""Points beyond it are not whole numbers any more that a float64 tells apart."""


def centre_of(steps: Floats) -> Ints:
    """The lattice points nearest to the locations of priors, in steps.

    Raises:
        PriorError: for one that no lattice point is near to; machines differ in what they make of such a number.

    >>> centre_of(np.array([2.6, -0.2])).tolist()
    [3, 0]
    """
    if not bool((np.abs(steps) < LARGEST_CENTRE).all()):
        raise PriorError(
            "a prior's location lies more than 2^52 grid steps from zero; choose a coarser grid or another location"
        )
    return np.rint(steps).astype(np.int64)


def bucket_of(index: Ints) -> tuple[Ints, Ints, Ints]:
    """Signed bucket number, exponent e of its width 2^e, and position inside it, of lattice points.

    Buckets are numbered 0, 1, ... for points 0, 1, ... and -1, -2, ... for points -1, -2, ...; positions count away from zero.

    >>> [part.tolist() for part in bucket_of(np.array([0, 127, 128, 131, -1, -132]))]
    [[0, 127, 128, 129, -1, -130], [0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 1]]
    """
    size = np.where(index < 0, -1 - index, index)
    exponent = np.maximum(np.frexp(size.astype(np.float64))[1].astype(np.int64) - SUB_BUCKET_BITS - 1, 0)
    bucket = (exponent << SUB_BUCKET_BITS) + (size >> exponent)
    return np.where(index < 0, -1 - bucket, bucket), exponent, size & ((1 << exponent) - 1)


def start_of(bucket: Ints) -> tuple[Ints, Ints]:
    """Smallest size (distance from zero) in a bucket, and the exponent of its width.

    >>> [part.tolist() for part in start_of(np.array([0, 127, 129, -130]))]
    [[0, 127, 130, 130], [0, 0, 1, 1]]
    """
    number = np.where(bucket < 0, -1 - bucket, bucket)
    exponent = np.maximum((number >> SUB_BUCKET_BITS) - 1, 0)
    return (number - (exponent << SUB_BUCKET_BITS)) << exponent, exponent


@dataclass(frozen=True)
class PriorTable:
    """Integer frequencies of the buckets of a lattice.

    Attributes:
        cumulative: 2 * half + 1 integers from 0 to 2^28; bucket b has the slots between entries half + b and half + b + 1.
        half: how many buckets lie on either side of zero.
    """

    cumulative: Ints
    half: int

    @classmethod
    def build(cls, shape: StandardDensity, step: float) -> "PriorTable":
        """The table of ``shape`` on the lattice of multiples of ``step`` (in the shape's own units).

        Raises:
            PriorError: when the density has no finite mass on the lattice, or the lattice is too fine for 2^40 points.
        """
        reach = max(8, shape.octaves(step))
        if reach > MOST_OCTAVES:
            raise PriorError(f"a lattice step of {step:g} scales is too fine: more than 2^40 points; choose a larger step")
        half = (reach - SUB_BUCKET_BITS) << SUB_BUCKET_BITS
        number = np.arange(half)
        size, exponent = start_of(number)
        width = (1 << exponent).astype(np.float64)
        right, left = np.zeros(half), np.zeros(half)
        for point, weight in zip(POINTS, WEIGHTS, strict=True):
            position = size.astype(np.float64) + 0.5 * width * (1.0 + point) - 0.5
            right = right + weight * width * shape.density(position * step)
            left = left + weight * width * shape.density((-1.0 - position) * step)
        mass = np.concatenate([left[::-1], right])
        total = math.fsum(mass)
        if not (math.isfinite(total) and total > 0 and bool((mass >= 0).all())):
            raise PriorError(f"the prior {shape.name} has no proper mass: its density sums to {total:g} over the lattice")
        return cls(_cumulative(mass, total), half)

    def bits(self, index: Ints) -> Floats:
        """Code length of lattice points: of the bucket, and of the position inside it; infinite beyond the table."""
        bucket, exponent, _ = bucket_of(index)
        inside = np.abs(bucket + 0.5) < self.half
        index = np.where(inside, bucket + self.half, 0)
        frequency = self.cumulative[index + 1] - self.cumulative[index]
        return np.where(inside, TOTAL_BITS - np.log2(frequency) + exponent, np.inf)

    @cached_property
    def quantiles(self) -> Ints:
        """The lattice point at each of the 65,536 levels (2u + 1) / 2^17, by integer interpolation inside the bucket."""
        level = (2 * np.arange(65536, dtype=np.int64) + 1) << (TOTAL_BITS - 17)
        index = np.searchsorted(self.cumulative, level, side="right") - 1
        bucket = index - self.half
        size, exponent = start_of(bucket)
        low, frequency = self.cumulative[index], self.cumulative[index + 1] - self.cumulative[index]
        inside = np.where(bucket < 0, self.cumulative[index + 1] - 1 - level, level - low)
        offset = (inside << exponent) // frequency
        return np.where(bucket < 0, -1 - (size + offset), size + offset)


def _cumulative(mass: Floats, total: float) -> Ints:
    scaled = np.floor(mass / total * 2.0**MASS_BITS).astype(np.int64)
    running = np.concatenate([[0], np.cumsum(scaled)])
    buckets = len(mass)
    spread = running * ((1 << TOTAL_BITS) - buckets) // max(1, int(running[-1]))
    return spread + np.arange(buckets + 1)
