"""Standard normal numbers that every machine repeats, each a function of its place alone: the noise of what is trained again.

A number is a sign and a point of the half-normal quantile, which is made of straight pieces: 256 for every halving of the
tail. Everything is integers, or + and * in a stated order.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.elementary import LAST_KNOT, Floats, normal_cdf
from bitsback.coding.philox import NOISE, WORDS_PER_COUNT, raw

__all__ = ["PIECES_BITS", "TAIL_BITS", "exact_normals"]

TAIL_BITS = 32
"""A number x is drawn by its tail, P(|z| > |x|): an odd multiple of 2^-32. The farthest is 6.34."""
PIECES_BITS = 8
"""2^8 straight pieces for every octave of the tail."""
BISECTIONS = 56
NUMBERS_PER_WORD = 2
NUMBERS_PER_COUNT = NUMBERS_PER_WORD * WORDS_PER_COUNT
AT_ONCE = 1 << 13
"""Numbers that are made together: what they pass through stays in the cache."""

MANTISSA_BITS, EXPONENT_OF_ONE = 52, 1023


def exact_normals(seed: int, number: int, tensor: int, count: int, start: int = 0) -> NDArray[np.float64]:
    """Draw ``number`` of a tensor's standard normal noise: elements ``start`` to ``start + count`` of it, float64.

    Element i is the half of 32 bits, lowest first, that is number i of the words of stream ``tensor``, draw ``number``, under
    the key ``seed`` (:func:`bitsback.coding.philox.raw`, purpose NOISE); see :func:`_from_bits`. Hence the same bits on every
    machine and in every process, whoever draws which part. Mean 0, and variance 1 but for 5e-7.

    Args:
        seed, number, tensor: any whole numbers, modulo 2^64.
        count: how many.
        start: how many come before, from 0 up.

    >>> noise = exact_normals(seed=0, number=7, tensor=2, count=1000)
    >>> bool((exact_normals(0, 7, 2, 100, start=900) == noise[900:]).all())
    True
    """
    found = np.empty(count)
    for first in range(start - start % NUMBERS_PER_COUNT, start + count, AT_ONCE):
        begin, last = max(first, start), min(first + AT_ONCE, start + count)
        needed = -(-(last - first) // NUMBERS_PER_WORD)
        words = raw(seed, NOISE, tensor, needed, skip_counts=first // NUMBERS_PER_COUNT, draw=number)
        bits = words.astype("<u8", copy=False).view("<i4")[begin - first : last - first]
        _from_bits(bits, found[begin - start : last - start])
    return found


def _from_bits(bits: NDArray[np.int32], into: Floats) -> None:
    """Numbers from 32 bits each: the highest is the sign; with k for the others, P(|z| > |x|) = (2k + 1) / 2^32."""
    slopes, bases = _pieces()
    tail = (bits & 0x7FFFFFFF).astype(np.float64)
    tail += tail
    tail += 1.0
    piece = tail.view(np.int64) >> (MANTISSA_BITS - PIECES_BITS)  # exponent, and the first bits after the leading one
    piece -= EXPONENT_OF_ONE << PIECES_BITS
    size = slopes.take(piece, mode="clip")
    size *= tail
    size += bases.take(piece, mode="clip")
    np.copysign(size, bits, out=into)


@cache
def _pieces() -> tuple[Floats, Floats]:
    """Slope and value at zero of every straight piece of |x| over its tail in units of 2^-32.

    Ends of pieces lie on the curve: |x| with 2 Phi(-|x|) = tail, by bisection of the exact Phi.
    """
    pieces = 1 << PIECES_BITS
    octaves = np.ldexp(1.0, np.arange(TAIL_BITS))[:, None]
    ends = np.append((octaves * (1.0 + np.arange(pieces) / pieces)).ravel(), 2.0**TAIL_BITS)
    low, high = np.zeros_like(ends), np.full_like(ends, LAST_KNOT)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        beyond = 2.0 * normal_cdf(-middle) > ends * 2.0**-TAIL_BITS
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    slopes = (low[1:] - low[:-1]) / (ends[1:] - ends[:-1])
    return slopes, low[:-1] - slopes * ends[:-1]
