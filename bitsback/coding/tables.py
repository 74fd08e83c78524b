"""Integer table of a prior: buckets of lattice points, which widen from octave to octave, each with a frequency.

The lattice is the multiples of a step. A bucket holds 2^e neighbouring points, and an octave has 64 or more buckets, so that a
bucket and a position inside it (e raw bits) together cost what the density says, within about 1e-4 bit. Every value below
2^reach_octaves scales can be coded. Once a table is built, all arithmetic is on integers.

::

    distance from zero     0 ... 127 | 128 ... 255 | 256 ... 511 | 512 ... 1023 | ...
    points per bucket 2^e      1     |      2      |      4      |      8       | ...
    bucket number          0 ... 127 | 128 ... 191 | 192 ... 255 | 256 ...  319 | ...      (negative side: -1 - number)

    bucket          -half              -1       0              half-1
                  |-------|-- ... --|-------|-------|-- ... --|-------|
    cumulative    0                      c[half]                    2^28    (2 half + 1 numbers)
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
"""log2 of the sum of a table's frequencies: more would cost precision in a 64-bit coder, fewer in the tails."""

MOST_OCTAVES = 40
"""log2 of the most points that a table covers on either side of zero."""

SUB_BUCKET_BITS = 6
"""log2 of the number of buckets per octave."""
MASS_BITS = 34
"""Masses of buckets are rounded to multiples of 2^-34 of the total before integer arithmetic begins."""
POINTS = (-0.8611363115940526, -0.3399810435848563, 0.3399810435848563, 0.8611363115940526)
WEIGHTS = (0.34785484513745385, 0.6521451548625461, 0.6521451548625461, 0.34785484513745385)
"""Weights of the Gauss-Legendre rule with four nodes on [-1, 1]; POINTS are the nodes."""

LARGEST_CENTRE = 2.0**52
"""Bound of centres in steps; float64 does not hold half steps from here on."""


def centre_of(steps: Floats) -> Ints:
    """Return the lattice points nearest to the locations of priors, elementwise.

    Args:
        steps: locations in lattice steps, any shape.

    Returns:
        int64 lattice points, the shape of ``steps``.

    Raises:
        PriorError: for a location that is not finite or 2^52 steps or more from zero; machines convert such a number to
            an integer differently.

    >>> centre_of(np.array([2.6, -0.2])).tolist()
    [3, 0]
    """
    if not bool((np.abs(steps) < LARGEST_CENTRE).all()):
        raise PriorError(
            "a prior's location lies more than 2^52 grid steps from zero; choose a coarser grid or another location"
        )
    return np.rint(steps).astype(np.int64)


def bucket_of(index: Ints) -> tuple[Ints, Ints, Ints]:
    """Return bucket, exponent and position of lattice points, elementwise.

    Buckets are numbered 0, 1, ... for points 0, 1, ... and -1, -2, ... for points -1, -2, ...; positions count away from zero.

    Args:
        index: lattice points, any shape.

    Returns:
        Signed bucket number, exponent e of the bucket's width 2^e, and position inside it, each in the shape of ``index``.

    >>> [part.tolist() for part in bucket_of(np.array([0, 127, 128, 131, -1, -132]))]
    [[0, 127, 128, 129, -1, -130], [0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 1]]
    """
    size = np.where(index < 0, -1 - index, index)
    exponent = np.maximum(np.frexp(size.astype(np.float64))[1].astype(np.int64) - SUB_BUCKET_BITS - 1, 0)
    bucket = (exponent << SUB_BUCKET_BITS) + (size >> exponent)
    return np.where(index < 0, -1 - bucket, bucket), exponent, size & ((1 << exponent) - 1)


def start_of(bucket: Ints) -> tuple[Ints, Ints]:
    """Return the start and the width of buckets, elementwise: the inverse of :func:`bucket_of`.

    Args:
        bucket: signed bucket numbers, any shape.

    Returns:
        Least distance of its points from zero (from -1 for a negative bucket), and exponent e of its width 2^e, each in the
        shape of ``bucket``.

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
        cumulative: increasing integers from 0 to 2^28, (2 half + 1,); bucket b has the slots from entry half + b up to, but
            not including, entry half + b + 1.
        half: number of buckets on either side of zero.
    """

    cumulative: Ints
    half: int

    @classmethod
    def build(cls, shape: StandardDensity, step: float) -> "PriorTable":
        """Return the table of a density on the lattice of multiples of a step.

        Args:
            shape: the standard density.
            step: lattice step in the density's standard units.

        Returns:
            The table, the same on every machine if ``shape.exact``.

        Raises:
            PriorError: when the density has no finite mass on the lattice, or the lattice is too fine for 2^40 points.
        """
        reach = max(8, shape.octaves(step))
        if reach > MOST_OCTAVES:
            raise PriorError(f"a lattice step of {step:g} scales is too fine: more than 2^40 points; choose a larger step")
        # Gauss-Legendre over each bucket, from half a step below its first point to half a step above its last
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
        total = math.fsum(mass)  # correctly rounded: the order of numpy's sum may differ between machines
        if not (math.isfinite(total) and total > 0 and bool((mass >= 0).all())):
            raise PriorError(f"the prior {shape.name} has no proper mass: its density sums to {total:g} over the lattice")
        return cls(_cumulative(mass, total), half)

    def bits(self, index: Ints) -> Floats:
        """Return the code lengths of lattice points in bits, elementwise: bucket and position; infinite beyond the table."""
        bucket, exponent, _ = bucket_of(index)
        inside = np.abs(bucket + 0.5) < self.half
        index = np.where(inside, bucket + self.half, 0)
        frequency = self.cumulative[index + 1] - self.cumulative[index]
        return np.where(inside, TOTAL_BITS - np.log2(frequency) + exponent, np.inf)

    @cached_property
    def quantiles(self) -> Ints:
        """Return the lattice points at the levels (2u + 1) / 2^17, (65536,), by integer interpolation inside the buckets."""
        level = (2 * np.arange(65536, dtype=np.int64) + 1) << (TOTAL_BITS - 17)
        index = np.searchsorted(self.cumulative, level, side="right") - 1
        bucket = index - self.half
        size, exponent = start_of(bucket)
        low, frequency = self.cumulative[index], self.cumulative[index + 1] - self.cumulative[index]
        inside = np.where(bucket < 0, self.cumulative[index + 1] - 1 - level, level - low)
        offset = (inside << exponent) // frequency
        return np.where(bucket < 0, -1 - (size + offset), size + offset)


def _cumulative(mass: Floats, total: float) -> Ints:
    """Return cumulative frequencies from 0 to 2^28, (buckets + 1,), in proportion to the masses but at least one each."""
    scaled = np.floor(mass / total * 2.0**MASS_BITS).astype(np.int64)
    running = np.concatenate([[0], np.cumsum(scaled)])
    buckets = len(mass)
    # one slot for each bucket beforehand, the rest in proportion: no bucket within reach is impossible to code
    spread = running * ((1 << TOTAL_BITS) - buckets) // max(1, int(running[-1]))
    return spread + np.arange(buckets + 1)
