"""Codec of counts given the logarithm of their mean: Poisson, or negative binomial with one dispersion r.

The whole numbers from zero up are divided into buckets of 2^e neighbours. A bucket is coded by an integer frequency, in
proportion to the probability in its middle times its width, and the position inside it by e raw bits::

    linear   k  first                mean                 first + 256 * 2^e      Poisson; negative binomial with r >= 8
                |---|---|---|-- ... --|-- ... --|---|---|---|                    std / 16 < 2^e <= std / 8, or e = 0

    octaves  k  0 ... 127 | 128 ... 255 | 256 ... 511 | ...                      negative binomial with r < 8
                 e = 0    |    e = 1    |    e = 2    | ... up to 32 mean / r

Counts beyond the buckets have a symbol of frequency 1 of 2^24, after which their binary digits follow. Frequencies are made of
whole numbers and of the functions in :mod:`bitsback.coding.elementary`, so they are the same on every machine.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.categorical import FRACTION_BITS, FURTHEST, LABEL_TOTAL_BITS, PIECE, frequencies, symbols
from bitsback.coding.combinators import Codec, in_pieces, raw_bits
from bitsback.coding.elementary import Floats, exp, log
from bitsback.coding.tables import bucket_of, start_of
from bitsback.errors import FileError

__all__ = ["MOST_COUNT_BITS", "MOST_LOG_MEAN", "count_bits", "counts"]

MOST_LOG_MEAN = 56_783
"""Largest log mean, in units of 2^-12 nats: that of 2^20, rounded up."""

MOST_LOG_DISPERSION = 16 << FRACTION_BITS
"""Largest distance of the log dispersion from zero, in units of 2^-12 nats."""

MOST_COUNT_BITS = 48
"""Counts are below 2^48."""
LENGTH_BITS = 6
"""Width of the number of binary digits of a count beyond the buckets."""

LINEAR = 256
"""Number of buckets of equal width."""
HALF_EXPONENT = 7
"""The mean is at most 2^7 buckets above the first."""
SKEWED = 8.0
"""Dispersion r below which buckets widen from octave to octave."""
OCTAVE = 64
"""Number of buckets from 2^i to 2^(i + 1), i >= 7, of the octaves; there are 128 below."""

SHIFT = 8
"""Stirling's series is used from here on."""


def counts(log_mean: Integers, log_dispersion: int | None = None) -> Codec:
    """Return the codec of one count for each log mean.

    Args:
        log_mean: in units of 2^-12 nats, (n,).
        log_dispersion: logarithm of the dispersion r of a negative binomial distribution, whose variance is m + m^2 / r for the
            mean m, in units of 2^-12 nats; None: a Poisson distribution.

    Returns:
        Codec of an int64 array (n,).

    Raises:
        FileError: for a mean above 2^20, and for a dispersion beyond e^-16 to e^16.

    >>> stack, codec = Stack.empty(), counts(np.array([0, 40960, 0]))
    >>> codec.push(stack, np.array([1, 22026, 10**6]))
    >>> codec.pop(stack).tolist()
    [1, 22026, 1000000]
    """
    buckets = _Buckets.of(log_mean, log_dispersion)
    symbol_code = in_pieces(len(log_mean), buckets.piece, lambda part: symbols(buckets.frequencies(part)))

    def push(stack: Stack, count: Integers) -> None:
        _check(count)
        symbol, exponent, position = buckets.symbols(count)
        beyond = count[symbol == 0]
        digits = _digits(beyond)
        raw_bits(np.maximum(digits - 1, 0)).push(stack, np.where(digits > 0, beyond - (1 << np.maximum(digits - 1, 0)), 0))
        raw_bits(np.full(len(digits), LENGTH_BITS)).push(stack, digits)
        raw_bits(exponent).push(stack, position)
        symbol_code.push(stack, symbol)

    def pop(stack: Stack) -> Integers:
        symbol = symbol_code.pop(stack)
        start, exponent = buckets.starts(symbol)
        count: Integers = start + raw_bits(exponent).pop(stack)
        outside = symbol == 0
        digits = raw_bits(np.full(int(outside.sum()), LENGTH_BITS)).pop(stack)
        if bool((digits > MOST_COUNT_BITS).any()):
            raise FileError(f"the file holds a count of more than {MOST_COUNT_BITS} binary digits; it is damaged")
        below = raw_bits(np.maximum(digits - 1, 0)).pop(stack)
        count[outside] = np.where(digits > 0, below + (1 << np.maximum(digits - 1, 0)), 0)
        if bool((buckets.symbols(count)[0] != symbol).any()):
            raise FileError("the file holds a count that is coded as if it were beyond the buckets; it is damaged")
        return count

    return Codec(push, pop)


def count_bits(log_mean: Integers, count: Integers, log_dispersion: int | None = None) -> Floats:
    """Return the exact code length of every count.

    Args:
        log_mean: as in :func:`counts`, (n,).
        count: (n,).
        log_dispersion: as in :func:`counts`.

    Returns:
        Bits, (n,).

    Raises:
        FileError: for a mean above 2^20, or a count of 2^48 or more.

    >>> count_bits(np.array([0]), np.array([0])).round(3).tolist()  # a rate of 1: log2(e)
    [1.443]
    """
    _check(count)
    buckets = _Buckets.of(log_mean, log_dispersion)
    symbol, exponent, _ = buckets.symbols(count)
    beside = exponent + np.where(symbol == 0, LENGTH_BITS + np.maximum(_digits(count) - 1, 0), 0)
    bits: Floats = (LABEL_TOTAL_BITS + beside).astype(np.float64)
    for start in range(0, len(count), buckets.piece):
        part = slice(start, start + buckets.piece)
        frequency = buckets.frequencies(part)
        bits[part] -= np.log2(frequency[np.arange(len(frequency)), symbol[part]])
    return bits


def _check(count: Integers) -> None:
    if bool(((count < 0) | (count >= 1 << MOST_COUNT_BITS)).any()):
        raise FileError(f"the code of counts has whole numbers from 0 to 2^{MOST_COUNT_BITS} - 1; leave larger ones out")


def _digits(count: Integers) -> Integers:
    """Return the number of binary digits, elementwise; 0 for 0."""
    return np.frexp(count.astype(np.float64))[1].astype(np.int64)


@dataclass(frozen=True)
class _Buckets:
    """Buckets of the counts with given means, numbered from 1; symbol 0 stands for all counts beyond them.

    Attributes:
        log_mean: in units of 2^-12 nats, (n,), from -24 nats to :data:`MOST_LOG_MEAN`.
        log_dispersion: in units of 2^-12 nats; None for Poisson.
    """

    log_mean: Integers
    log_dispersion: int | None

    @classmethod
    def of(cls, log_mean: Integers, log_dispersion: int | None) -> "_Buckets":
        """Return the buckets of any log means; raises FileError for a mean above 2^20 and an odd dispersion."""
        if log_dispersion is not None and abs(log_dispersion) > MOST_LOG_DISPERSION:
            raise FileError("the code of counts has dispersions from e^-16 to e^16; choose likelihood.dispersion between them")
        if bool((log_mean > MOST_LOG_MEAN).any()):
            raise FileError(
                "the network gives a mean above 2^20 for a count, more than the code of counts has; lower its outputs"
            )
        return cls(np.maximum(log_mean, -FURTHEST), log_dispersion)

    @cached_property
    def dispersion(self) -> float | None:
        """Return r, or None."""
        return None if self.log_dispersion is None else float(exp(np.array(self.log_dispersion * 2.0**-FRACTION_BITS)))

    @cached_property
    def mean(self) -> Floats:
        return exp(np.ldexp(self.log_mean.astype(np.float64), -FRACTION_BITS))

    @cached_property
    def exponent(self) -> Integers:
        """Return e of the width 2^e of linear buckets, (n,)."""
        spread = 0.0 if self.dispersion is None else self.mean * self.mean / self.dispersion
        return np.maximum(np.frexp(np.sqrt(self.mean + spread))[1].astype(np.int64) - 4, 0)

    @cached_property
    def first(self) -> Integers:
        """Return the start of the first linear bucket, (n,)."""
        return np.maximum(np.floor(self.mean).astype(np.int64) - (1 << HALF_EXPONENT + self.exponent), 0)

    @cached_property
    def number(self) -> Integers:
        """Return the number of buckets, (n,)."""
        if self.dispersion is None or not self.in_octaves:
            return np.full(len(self.log_mean), LINEAR, dtype=np.int64)
        octaves = np.frexp(self.mean / self.dispersion)[1].astype(np.int64) - 2
        return 2 * OCTAVE + OCTAVE * np.maximum(octaves, 0)

    @property
    def in_octaves(self) -> bool:
        """Return whether buckets widen from octave to octave."""
        return self.dispersion is not None and self.dispersion < SKEWED

    @property
    def piece(self) -> int:
        """Return the number of rows of frequencies that are held at once."""
        return max(1, PIECE // (1 + int(self.number.max(initial=1))))

    def symbols(self, count: Integers) -> tuple[Integers, Integers, Integers]:
        """Return symbol, width exponent and position inside the bucket of every count, each (n,); 0 beyond the buckets."""
        if self.in_octaves:
            bucket, exponent, position = bucket_of(count)
        else:
            away, exponent = count - self.first, self.exponent
            bucket, position = away >> exponent, away & ((1 << exponent) - 1)
        inside = (bucket >= 0) & (bucket < self.number)
        return np.where(inside, bucket + 1, 0), np.where(inside, exponent, 0), np.where(inside, position, 0)

    def starts(self, symbol: Integers) -> tuple[Integers, Integers]:
        """Return start and width exponent of the buckets of symbols (n,), each (n,); 0 for symbol 0."""
        bucket = np.maximum(symbol - 1, 0)
        if self.in_octaves:
            start, exponent = start_of(bucket)
        else:
            start, exponent = self.first + (bucket << self.exponent), self.exponent
        return np.where(symbol > 0, start, 0), np.where(symbol > 0, exponent, 0)

    def frequencies(self, part: slice) -> Integers:
        """Return the frequencies of the symbols of some rows, (rows, symbols); 0 for symbols that a row does not have."""
        # means occur more than once where the network is small, or its outputs are far below zero
        log_mean, row = np.unique(self.log_mean[part], return_inverse=True)
        return _Buckets(log_mean, self.log_dispersion)._all_frequencies()[row.reshape(-1)]

    def _all_frequencies(self) -> Integers:
        bucket = np.arange(int(self.number.max()))
        if self.in_octaves:
            start, exponent = (line[None] for line in start_of(bucket))
        else:
            start, exponent = self.first[:, None] + (bucket << self.exponent[:, None]), self.exponent[:, None]
        middle = start + 0.5 * ((1 << exponent) - 1)
        nats = self._log_probability(middle) + exponent * log(np.array(2.0))
        present = bucket < self.number[:, None]
        below = nats - np.where(present, nats, -np.inf).max(axis=1, keepdims=True)
        logits = np.rint(np.maximum(below * 2.0**FRACTION_BITS, -FURTHEST)).astype(np.int64)
        beyond = np.full((len(logits), 1), -FURTHEST)
        return frequencies(
            np.concatenate([beyond, np.where(present, logits, -FURTHEST)], axis=1),
            np.concatenate([beyond < 0, present], axis=1),
        )

    def _log_probability(self, count: Floats) -> Floats:
        """Return log p(count) up to a term of each row, (n, counts); ``count`` is (n, counts) or (1, counts)."""
        if self.dispersion is None:
            return count * (self.log_mean[:, None] * 2.0**-FRACTION_BITS) - _log_factorial(count)
        return _log_rising(count, self.dispersion) - count * _log1p(self.dispersion / self.mean[:, None])


def _log_factorial(x: Floats) -> Floats:
    """Return log Gamma(x + 1), elementwise, for x >= 0: Stirling's series at x + 9."""
    b, product = x + 1.0 + SHIFT, np.ones_like(x)
    for i in range(1, SHIFT + 1):
        product = product * (x + i)
    return (b - 0.5) * log(b) - b + _stirling(b) - log(product)


def _log_rising(x: Floats, r: float) -> Floats:
    """Return log(Gamma(x + r) / Gamma(x + 1)), elementwise, for x >= 0; large terms are cancelled by hand."""
    a, b, ratio = x + r + SHIFT, x + 1.0 + SHIFT, np.ones_like(x)
    for i in range(SHIFT):
        ratio = ratio * ((x + 1.0 + i) / (x + r + i))
    return (b - 0.5) * _log1p((r - 1.0) / b) + (r - 1.0) * (log(a) - 1.0) + _stirling(a) - _stirling(b) + log(ratio)


def _stirling(x: Floats) -> Floats:
    """Return the sum of Stirling's series for log Gamma(x) (Abramowitz & Stegun 6.1.41), to 1e-11 for x >= 8."""
    y = 1.0 / (x * x)
    return (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y / 1680.0))) / x


def _log1p(x: Floats) -> Floats:
    """Return log(1 + x), elementwise, for x > -1, with a relative error below 1e-15 for small x: 2 artanh(x / (2 + x))."""
    near = np.clip(x, -0.25, 0.25)
    s = near / (2.0 + near)
    square, total = s * s, np.zeros_like(s)
    for k in range(19, 0, -2):
        total = total * square + 1.0 / k
    return np.where(np.abs(x) <= 0.25, 2.0 * s * total, log(1.0 + x))
