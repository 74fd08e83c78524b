"""exp, log and the normal CDF from + - * / alone, with the same last bit on every machine.

Library versions of these functions differ in the last bit between processors. IEEE 754 fixes the results of the four operations
and of sqrt, frexp and ldexp; a function made of these, in a stated order, is therefore reproduced exactly by every decoder.

The normal CDF is computed in two stages, so that only 273 values need long integers::

    _knots    256-bit integers    |-------------------------------|-------------------- ...   t = 0, 1/32, ..., 8.5
                                  |   12 terms of a Taylor series from the nearest of them
    _taylor   float64             |---|---|---|---|---|---|---|---|---|---|---|---|---- ...   t = 0, 1/256, ..., 8.5
                                  |   polynomial of degree 5 in d, |d| <= 1/512
    normal_cdf(x)                 |             ^
                                  |             x = knot + d; negative x by reflection of the table
"""

from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAST_KNOT", "Floats", "exp", "log", "normal_cdf"]

Floats = NDArray[np.float64]

LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LN_2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN_2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
KNOTS, FINE_KNOTS = 32, 256
"""Knots per unit of the 256-bit integer series, and of the float64 table."""
LAST_KNOT = 8.5
"""The CDF is taken to be 0 below minus this and 1 above."""
FIXED_POINT_BITS = 256


def exp(x: Floats) -> Floats:
    """Return e^x, elementwise, with a relative error below 1e-15.

    Args:
        x: any shape; clipped to -700 <= x <= 700.

    Returns:
        The values, the shape of ``x``.

    >>> exp(np.array([0.0, 1.0])).tolist()
    [1.0, 2.7182818284590455]
    """
    x = np.clip(x, -700.0, 700.0)
    octave = np.rint(x * LOG2_E)
    # Cody-Waite: LN_2_HIGH ends in 21 zero bits, so octave * LN_2_HIGH is exact and r keeps its last bits
    r = (x - octave * LN_2_HIGH) - octave * LN_2_LOW
    total = np.ones_like(r)
    for k in range(14, 0, -1):
        total = 1.0 + r * total / k
    return np.ldexp(total, octave.astype(np.int32))


def log(x: Floats) -> Floats:
    """Return the natural logarithm, elementwise; the error is below 1e-15, absolute near x = 1, relative elsewhere.

    Args:
        x: above 0, any shape.

    Returns:
        The values, the shape of ``x``.

    >>> log(np.array([1.0, 8.0])).tolist()
    [0.0, 2.0794415416798357]
    """
    mantissa, octave = np.frexp(x)
    low = mantissa < 0.70710678
    mantissa, octave = np.where(low, 2 * mantissa, mantissa), octave - low
    # mantissa in [sqrt(1/2), sqrt(2)): log = 2 artanh(s) with |s| <= 0.172, where 12 odd terms suffice
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square, total = s * s, np.zeros_like(s)
    for k in range(23, 0, -2):
        total = total * square + 1.0 / k
    return octave * LN_2_HIGH + (2.0 * s * total + octave * LN_2_LOW)


def normal_cdf(x: Floats) -> Floats:
    """Return Phi(x), elementwise, with an absolute error below 1e-15; 0 below -8.5 and 1 above 8.5.

    Args:
        x: any shape.

    Returns:
        The values, the shape of ``x``: a Taylor polynomial of degree 5 around the nearest of the table's knots.

    >>> normal_cdf(np.array([0.0, 1.0, -9.0])).tolist()
    [0.5, 0.8413447460685429, 0.0]
    """
    table = _taylor()
    knot = np.rint(np.clip(x, -LAST_KNOT, LAST_KNOT) * FINE_KNOTS)
    d = np.clip(x, -LAST_KNOT, LAST_KNOT) - knot / FINE_KNOTS
    index = knot.astype(np.int64) + int(LAST_KNOT * FINE_KNOTS)
    found = table[-1][index]
    for coefficient in reversed(table[:-1]):
        found = coefficient[index] + d * found
    return found


@cache
def _taylor() -> list[Floats]:
    """Return the Taylor coefficients of Phi, orders 0 to 5, at every knot of the float64 table from -8.5 to 8.5."""
    upper, density = _knots()
    t = np.arange(int(LAST_KNOT * FINE_KNOTS) + 1) / FINE_KNOTS
    coarse = np.rint(t * KNOTS).astype(np.int64)
    tail = upper[coarse] - density[coarse] * _series(coarse / KNOTS, t - coarse / KNOTS, 12)
    slope = exp(-0.5 * t * t) * density[0]
    orders = [slope, -t * slope / 2, (t * t - 1) * slope / 6, -(t * t * t - 3 * t) * slope / 24]
    orders.append((t * t * t * t - 6 * t * t + 3) * slope / 120)
    tail[-1] = 0.0
    # left of zero Phi is the tail itself: 1 - (1 - tail) would lose its digits
    right = [1.0 - tail, *orders]
    left = [tail, *(coefficient if n % 2 == 0 else -coefficient for n, coefficient in enumerate(orders))]
    for coefficient in (*left[1:], *right[1:]):
        coefficient[-1] = 0.0  # flat beyond the last knot
    return [np.concatenate([a[:0:-1], b]) for a, b in zip(left, right, strict=True)]


def _series(t: Floats, d: Floats, terms: int) -> Floats:
    """Return (Phi(t + d) - Phi(t)) / density(t) by Taylor series; derivatives by He_(n+1) = t He_n - n He_(n-1)."""
    before, now = np.zeros_like(t), np.ones_like(t)
    step, series = d, np.zeros_like(t)
    for n in range(terms):
        series = series + now * step
        before, now = now, t * now - n * before
        step = step * (-d) / (n + 2)
    return series


@cache
def _knots() -> tuple[Floats, Floats]:
    """Return 1 - Phi and the density at t = 0, 1/32, ..., 8.5, from series of 256-bit fixed-point numbers."""
    # the series alternate, with terms up to e^36 (52 bits) at t = 8.5: 256 bits leave ample room for the cancellation
    one = 1 << FIXED_POINT_BITS
    root = isqrt(2 * _pi_fixed() << FIXED_POINT_BITS)
    uppers, densities = [], []
    for k in range(int(LAST_KNOT * KNOTS) + 1):
        # sum of (-1)^n t^(2n+1) / (2^n n! (2n+1)), and of (-1)^n t^(2n) / (2^n n!)
        term, integral, value, n = one, 0, 0, 0
        while term:
            sign = -1 if n % 2 else 1
            value += sign * term
            integral += sign * term * k // (KNOTS * (2 * n + 1))
            n += 1
            term = term * k * k // (2 * n * KNOTS**2)
        uppers.append(((one >> 1) - (integral << FIXED_POINT_BITS) // root) / one)
        densities.append(((value << FIXED_POINT_BITS) // root) / one)
    return np.array(uppers), np.array(densities)


def _pi_fixed() -> int:
    """Return pi in fixed point, by Machin's formula, pi = 16 arctan(1/5) - 4 arctan(1/239)."""

    def arctan_of_inverse(x: int) -> int:
        term, total, n = (1 << FIXED_POINT_BITS + 16) // x, 0, 1
        while term:
            total += term // n if n % 4 == 1 else -(term // n)
            term, n = term // (x * x), n + 2
        return total

    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> 16
