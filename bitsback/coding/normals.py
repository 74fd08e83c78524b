"""Standard normal numbers that are identical on every machine, each a function of its position: noise of repeatable training.

A number is a random sign times the half-normal quantile of a random tail. The quantile is piecewise linear, with 256 pieces for
every halving of the tail. All arithmetic is on integers, or + and * in a stated order.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.elementary import LAST_KNOT, Floats, normal_cdf
from bitsback.coding.philox import NOISE, WORDS_PER_COUNT, raw

__all__ = ["PIECES_BITS", "TAIL_BITS", "exact_normals"]

TAIL_BITS = 32
"""The tail P(|z| > |x|) of a drawn x is an odd multiple of 2^-32, so that |x| is at most 6.34."""
PIECES_BITS = 8
"""log2 of the number of linear pieces for every octave of the tail."""
BISECTIONS = 56
"""Halvings of the interval 0 to 8.5, which leave an error below 2^-52."""
NUMBERS_PER_WORD = 2
NUMBERS_PER_COUNT = NUMBERS_PER_WORD * WORDS_PER_COUNT
AT_ONCE = 1 << 13
"""Numbers drawn at once, few enough for the processor's cache."""

MANTISSA_BITS, EXPONENT_OF_ONE = 52, 1023


def exact_normals(seed: int, number: int, tensor: int, count: int, start: int = 0) -> NDArray[np.float64]:
    """Return elements ``start`` to ``start + count - 1`` of one draw of a tensor's standard normal noise.

    Element i is made of the i-th group of 32 bits, lowest first, of the words of stream ``tensor``, draw ``number``, under the
    key ``seed`` (:func:`bitsback.coding.philox.raw`, purpose NOISE); see :func:`_from_bits`. The values are therefore the same
    on every machine and in every process, in whatever parts they are drawn. The mean is 0, and the variance is 1 within 5e-7.

    Args:
        seed: key of the stream, any whole number modulo 2^64.
        number: number of the draw, any whole number modulo 2^64.
        tensor: number of the tensor, any whole number modulo 2^64.
        count: number of elements to return.
        start: number of elements before the first one returned, at least 0.

    Returns:
        float64 numbers, (count,).

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
    """Write a number for each 32 bits: the highest is the sign; with k for the others, P(|z| > |x|) = (2k + 1) / 2^32."""
    slopes, bases = _pieces()
    tail = (bits & 0x7FFFFFFF).astype(np.float64)
    tail += tail
    tail += 1.0
    # the exponent and the first 8 mantissa bits of the float64 number are the octave and the piece inside it
    piece = tail.view(np.int64) >> (MANTISSA_BITS - PIECES_BITS)
    piece -= EXPONENT_OF_ONE << PIECES_BITS
    size = slopes.take(piece, mode="clip")
    size *= tail
    size += bases.take(piece, mode="clip")
    np.copysign(size, bits, out=into)


@cache
def _pieces() -> tuple[Floats, Floats]:
    """Return slope and intercept of every linear piece of |x| as a function of the tail in units of 2^-32.

    The ends of the pieces lie on the curve 2 Phi(-|x|) = tail, and are found by bisection of the exact Phi.
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
