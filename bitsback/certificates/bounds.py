"""Inequalities behind a certificate, each with its own probability of failure.

R is the risk, the probability of error on a new example; R^ is the mean error on n examples of the same distribution. Losses
lie between 0 and 1.
"""

import math

from bitsback.certificates._kl_inverse import kl_inverse
from bitsback.errors import CertificateError
from bitsback.units import bits_to_nats

__all__ = ["check_delta", "complexity", "draws_bound", "file_length_bits", "pac_bayes_bound"]

ROUND_UP = 1 + 2.0**-48
"""Factor that exceeds the rounding error of a few float64 operations, so that results are rounded up."""


def check_delta(delta: float, name: str = "--delta") -> None:
    """Raise CertificateError unless a probability of failure lies above 0 and below 1.

    Args:
        delta: the probability.
        name: name of the option in the message.

    Raises:
        CertificateError: for a delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise CertificateError(f"{name} is the probability that the certificate fails, between 0 and 1, got {delta}; try 0.025")


def complexity(kl_bits: float, n: int, delta: float) -> float:
    """Return c = (KL + ln(2 sqrt(n) / delta)) / n, in nats per example (Seeger 2002; Maurer 2004, theorem 5).

    Args:
        kl_bits: KL(q || p) and the bits of every other choice made on the same examples, in bits.
        n: number of examples that the risk is measured on.
        delta: probability that the bound fails, over the draw of the examples.

    Returns:
        c in nats per example, rounded up.

    Raises:
        CertificateError: for a negative or infinite KL, n below 1 or a delta outside (0, 1).

    >>> round(complexity(5000.0, 60_000, 0.025), 6)
    0.057927
    """
    check_delta(delta)
    if not (kl_bits >= 0 and math.isfinite(kl_bits)) or n < 1:
        raise CertificateError(f"a bound needs a finite KL >= 0 and n >= 1, got {kl_bits} bits and n = {n}; check the ledger")
    return (bits_to_nats(kl_bits) + math.log(2 * math.sqrt(n) / delta)) / n * ROUND_UP


def pac_bayes_bound(risk: float, kl_bits: float, n: int, delta: float) -> float:
    """Return an upper bound on R that holds with probability 1 - delta for all posteriors at once: kl(R^ || R) <= c.

    Args:
        risk: R^, the posterior's mean loss on the n examples, from 0 to 1.
        kl_bits: see :func:`complexity`.
        n: number of examples that the risk is measured on.
        delta: probability that the bound fails, over the draw of the examples.

    Returns:
        The largest R with kl(R^ || R) <= c, rounded up.

    >>> round(pac_bayes_bound(0.012, 5000.0, 60_000, 0.025), 4)
    0.0909
    """
    return kl_inverse(risk, complexity(kl_bits, n, delta))


def draws_bound(measured: float, draws: int, delta: float) -> float:
    """Return an upper bound on the posterior's R^ from independent draws, kl^-1(measured, ln(2 / delta) / draws).

    It holds with probability 1 - delta by the Chernoff bound in Hoeffding's form (1963, theorem 1; Langford 2005, theorem 3.3).
    The losses must be independent numbers in [0, 1]; they need not be equally distributed: the mean of their expectations is
    bounded.

    Args:
        measured: mean loss of the draws, from 0 to 1.
        draws: number of independent draws.
        delta: probability that the bound fails, over the draws.

    Returns:
        Upper bound on the expected mean loss, rounded up.

    Raises:
        CertificateError: for less than one draw, or a delta outside (0, 1).

    >>> round(draws_bound(0.01, 150_000, 0.01), 5)
    0.01086
    """
    check_delta(delta, "--delta-draws")
    if draws < 1:
        raise CertificateError(f"a risk is measured from one draw or more, got {draws}; raise --draws")
    return kl_inverse(measured, math.log(2 / delta) / draws * ROUND_UP)


def file_length_bits(length: int) -> int:
    """Return the bits of a file in a prefix-free code of all byte strings: Elias gamma of the length, then the bytes.

    By Kraft's equality the sum of 2^-bits over all possible files is one, so 2^-bits is a prior.

    Args:
        length: length of the file in bytes, at least 1.

    Returns:
        Bits.

    Raises:
        CertificateError: for a length below 1.

    >>> file_length_bits(1), file_length_bits(800)
    (9, 6419)
    """
    if length < 1:
        raise CertificateError(f"a file has one byte or more, got {length}; give a model file")
    return 8 * length + 2 * length.bit_length() - 1
