"""The binary relative entropy, and its inverse, rounded up."""

import math

from bitsback.errors import CertificateError

__all__ = ["bernoulli_kl", "kl_inverse"]

SLACK = 2.0**-49
"""Eight units in the last place: more than the few roundings of :func:`bernoulli_kl` can add to a term or to its factor."""


def bernoulli_kl(q: float, p: float) -> float:
    """kl(q || p) in nats between two coins that fall heads with probability q and p, rounded down: never above the true value.

    >>> bernoulli_kl(0.5, 0.5), round(bernoulli_kl(0.0, 0.25), 6), bernoulli_kl(0.5, 1.0)
    (0.0, 0.287682, inf)
    """
    heads = q * math.log(q / p) if q > 0 and p > 0 else (math.inf if q > 0 else 0.0)
    tails = (1 - q) * (math.log1p(-q) - math.log1p(-p)) if q < 1 and p < 1 else (math.inf if q < 1 else 0.0)
    if math.isinf(heads + tails):
        return math.inf
    around = 0.0 if q in (0.0, 1.0) else q + q * abs(math.log(q)) + (1 - q) * (abs(math.log1p(-q)) + abs(math.log1p(-p)))
    return max(0.0, heads + tails - SLACK * (abs(heads) + abs(tails) + around))


def kl_inverse(risk: float, bound: float) -> float:
    """The largest p for which kl(risk || p) <= bound: a certificate's last step, rounded up.

    A bisection between float64 numbers, until two neighbours are left; the upper one is returned, and the divergence is rounded
    down on the way, so that rounding can only make a certificate weaker.

    Args:
        risk: a mean of losses, from 0 to 1.
        bound: c >= 0, in nats.

    Raises:
        CertificateError: for a risk outside [0, 1] or a bound below zero.

    >>> round(kl_inverse(0.0, 0.01), 6), kl_inverse(1.0, 0.1), round(kl_inverse(0.01, 0.05), 4)
    (0.00995, 1.0, 0.0781)
    """
    if not 0 <= risk <= 1:
        raise CertificateError(f"a risk lies between 0 and 1, got {risk}; give the mean of losses from 0 to 1")
    if not bound >= 0:
        raise CertificateError(f"the bound on kl is {bound}, but a relative entropy is never below zero; give nats >= 0")
    low, high = risk, 1.0
    while low < (middle := low + (high - low) / 2) < high:
        if bernoulli_kl(risk, middle) > bound:
            high = middle
        else:
            low = middle
    return high
