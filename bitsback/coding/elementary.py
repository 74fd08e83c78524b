"""exp, log and the normal CDF out of + - * / alone: the same last bit on every machine.

Library versions of these functions differ between processors. IEEE 754 fixes the four operations (and sqrt, frexp, ldexp), so
what is built from them, in a stated order, is a number that a decoder elsewhere can reproduce.
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
"""Knots per unit: exact ones, and those of the table in use."""
LAST_KNOT = 8.5
FIXED_POINT_BITS = 256


def exp(x: Floats) -> Floats:
    """e^x for -700 <= x <= 700 (clipped), relative error below 1e-15.

    >>> exp(np.array([0.0, 1.0])).tolist()
    [1.0, 2.7182818284590455]
    """
    x = np.clip(x, -700.0, 700.0)
    octave = np.rint(x * LOG2_E)
    r = (x - octave * LN_2_HIGH) - octave * LN_2_LOW
    total = np.ones_like(r)
    for k in range(14, 0, -1):
        total = 1.0 + r * total / k
    return np.ldexp(total, octave.astype(np.int32))


def log(x: Floats) -> Floats:
    """Natural logarithm of x > 0, absolute error below 1e-15 near one, relative elsewhere.

    >>> log(np.array([1.0, 8.0])).tolist()
    [0.0, 2.0794415416798357]
    """
    mantissa, octave = np.frexp(x)
    low = mantissa < 0.70710678
    mantissa, octave = np.where(low, 2 * mantissa, mantissa), octave - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square, total = s * s, np.zeros_like(s)
    for k in range(23, 0, -2):
        total = total * square + 1.0 / k
    return octave * LN_2_HIGH + (2.0 * s * total + octave * LN_2_LOW)


def normal_cdf(x: Floats) -> Floats:
    """Phi(x) with an absolute error below 1e-15: a Taylor step from the nearest of a table's knots; 0 and 1 beyond 8.5.

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
    """Coefficients of Phi around every fine knot, made from the exact knots by a longer Taylor step."""
    upper, density = _knots()
    t = np.arange(int(LAST_KNOT * FINE_KNOTS) + 1) / FINE_KNOTS
    coarse = np.rint(t * KNOTS).astype(np.int64)
    tail = upper[coarse] - density[coarse] * _series(coarse / KNOTS, t - coarse / KNOTS, 12)
    slope = exp(-0.5 * t * t) * density[0]
    orders = [slope, -t * slope / 2, (t * t - 1) * slope / 6, -(t * t * t - 3 * t) * slope / 24]
    orders.append((t * t * t * t - 6 * t * t + 3) * slope / 120)
    tail[-1] = 0.0
    right = [1.0 - tail, *orders]
    left = [tail, *(coefficient if n % 2 == 0 else -coefficient for n, coefficient in enumerate(orders))]
    for coefficient in (*left[1:], *right[1:]):
        coefficient[-1] = 0.0  # flat beyond the last knot
    return [np.concatenate([a[:0:-1], b]) for a, b in zip(left, right, strict=True)]


def _series(t: Floats, d: Floats, terms: int) -> Floats:
    """(Phi(t + d) - Phi(t)) / density(t): its derivatives are Hermite polynomials, He_(n+1) = t He_n - n He_(n-1)."""
    before, now = np.zeros_like(t), np.ones_like(t)
    step, series = d, np.zeros_like(t)
    for n in range(terms):
        series = series + now * step
        before, now = now, t * now - n * before
        step = step * (-d) / (n + 2)
    return series


@cache
def _knots() -> tuple[Floats, Floats]:
    """1 - Phi and the density at every knot, from integers: series of 256-bit fixed-point numbers."""
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
    """pi in fixed point, by Machin's formula."""

    def arctan_of_inverse(x: int) -> int:
        term, total, n = (1 << FIXED_POINT_BITS + 16) // x, 0, 1
        while term:
            total += term // n if n % 4 == 1 else -(term // n)
            term, n = term // (x * x), n + 2
        return total

    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> 16
