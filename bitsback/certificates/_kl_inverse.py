"""Binary relative entropy, rounded down, and its inverse, rounded up."""

import math

from bitsback.errors import CertificateError

__all__ = ["bernoulli_kl", "kl_inverse"]

SLACK = 2.0**-49
"""Bound on the relative rounding error of a term of :func:`bernoulli_kl`: eight units in the last place."""


def bernoulli_kl(q: float, p: float) -> float:
    """Return kl(q || p) between Bernoulli distributions, rounded down: never above the true value.

    Args:
        q: probability of the first distribution, 0 to 1.
        p: probability of the second distribution, 0 to 1.

    Returns:
        Nats, at least 0; infinite where q is possible and p is not.

    >>> bernoulli_kl(0.5, 0.5), round(bernoulli_kl(0.0, 0.25), 6), bernoulli_kl(0.5, 1.0)
    (0.0, 0.287682, inf)
    """
    heads = q * math.log(q / p) if q > 0 and p > 0 else (math.inf if q > 0 else 0.0)
    tails = (1 - q) * (math.log1p(-q) - math.log1p(-p)) if q < 1 and p < 1 else (math.inf if q < 1 else 0.0)
    if math.isinf(heads + tails):
        return math.inf
    # sizes of the terms before cancellation, to which the rounding errors are proportional
    around = 0.0 if q in (0.0, 1.0) else q + q * abs(math.log(q)) + (1 - q) * (abs(math.log1p(-q)) + abs(math.log1p(-p)))
    return max(0.0, heads + tails - SLACK * (abs(heads) + abs(tails) + around))


def kl_inverse(risk: float, bound: float) -> float:
    """Return the largest p with kl(risk || p) <= bound, rounded up.

    Bisection stops when two neighbouring float64 numbers are left, and the upper one is returned. The divergence is rounded
    down, so that rounding can only make a certificate weaker.

    Args:
        risk: mean of losses, from 0 to 1.
        bound: bound on the divergence in nats, at least 0.

    Returns:
        A probability, from ``risk`` to 1.

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
