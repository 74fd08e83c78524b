"""The inequalities behind a certificate, each with a probability of its own to fail.

R is the risk, the probability of error on a new example; R^ is the mean error on n examples drawn like it. Losses lie between
0 and 1.
"""

import math

from bitsback.certificates._kl_inverse import kl_inverse
from bitsback.errors import CertificateError
from bitsback.units import bits_to_nats

__all__ = ["check_delta", "complexity", "draws_bound", "file_length_bits", "pac_bayes_bound"]

ROUND_UP = 1 + 2.0**-48
"""What a few float64 operations may have taken away is given back."""


def check_delta(delta: float, name: str = "--delta") -> None:
    """Raise CertificateError unless ``delta`` is a probability of failure: above 0 and below 1."""
    if not 0 < delta < 1:
        raise CertificateError(f"{name} is the probability that the certificate fails, between 0 and 1, got {delta}; try 0.025")


def complexity(kl_bits: float, n: int, delta: float) -> float:
    """c = (KL + ln(2 sqrt(n) / delta)) / n, in nats per example (Seeger 2002; Maurer 2004, theorem 5).

    Args:
        kl_bits: KL(q || p) and whatever else was chosen on the same examples, in bits.
        n: how many examples the risk is measured on.
        delta: probability that the bound fails, over the draw of the examples.

    >>> round(complexity(5000.0, 60_000, 0.025), 6)
    0.057927
    """
    check_delta(delta)
    if not (kl_bits >= 0 and math.isfinite(kl_bits)) or n < 1:
        raise CertificateError(f"a bound needs a finite KL >= 0 and n >= 1, got {kl_bits} bits and n = {n}; check the ledger")
    return (bits_to_nats(kl_bits) + math.log(2 * math.sqrt(n) / delta)) / n * ROUND_UP


def pac_bayes_bound(risk: float, kl_bits: float, n: int, delta: float) -> float:
    """With probability 1 - delta, for all posteriors at once: kl(R^ || R) <= c, so R is at most this.

    >>> round(pac_bayes_bound(0.012, 5000.0, 60_000, 0.025), 4)
    0.0909
    """
    return kl_inverse(risk, complexity(kl_bits, n, delta))


def draws_bound(measured: float, draws: int, delta: float) -> float:
    """The posterior's R^ from independent draws: with probability 1 - delta at most kl^-1(measured, ln(2 / delta) / draws).

    The Chernoff bound in Hoeffding's form (1963, theorem 1; Langford 2005, theorem 3.3) asks for independent numbers in [0, 1],
    which need not be equally distributed: the mean of their expectations is bounded.

    >>> round(draws_bound(0.01, 150_000, 0.01), 5)
    0.01086
    """
    check_delta(delta, "--delta-draws")
    if draws < 1:
        raise CertificateError(f"a risk is measured from one draw or more, got {draws}; raise --draws")
    return kl_inverse(measured, math.log(2 / delta) / draws * ROUND_UP)


def file_length_bits(length: int) -> int:
    """Bits of a file of ``length`` bytes in a prefix-free code of all byte strings: Elias gamma of the length, then the bytes.

    So 2^-bits, summed over every file there could be, is one (Kraft): it is a prior.

    >>> file_length_bits(1), file_length_bits(800)
    (9, 6419)
    """
    if length < 1:
        raise CertificateError(f"a file has one byte or more, got {length}; give a model file")
    return 8 * length + 2 * length.bit_length() - 1
