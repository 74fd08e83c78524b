"""Lines of the ledger: the cost of one weight tensor, and of learned numbers that are not weights."""

import math
from dataclasses import dataclass

from bitsback.errors import LedgerError

__all__ = ["Charge", "Entry"]

COUNTED = ("point", "float32")
"""Methods whose net bits are sums of code lengths, none of which is below zero."""

ROUNDING_BITS = 1e-6
"""Rounding error of the net bits that is accepted below zero, in bits per weight; the ledger's is about 1e-13 nats."""

STDERRS = 6.0
"""Standard errors by which a Monte Carlo estimate may lie below zero; of normal estimates of zero one in 10^9 does."""


@dataclass(frozen=True)
class Entry:
    """Gross bits, refund and net bits of one weight tensor.

    ``gross_bits`` is E_q[-log2 p(w) step], ``refund_bits`` is E_q[-log2 q(w) step] and ``net_bits`` their difference,
    KL(q||p) / ln 2 (Hinton & van Camp 1993, section 4). A point estimate has no refund; its gross bits are those of the grid
    points under the integer tables of the prior. Build it with :meth:`of`, which keeps the three consistent.

    Net bits are never below zero, beyond rounding and ``stderr``, because a divergence or a code length is not. Gross bits and
    refund of a Gaussian posterior may have any sign: on a grid wider than q or p, density times step exceeds one.

    Attributes:
        name: name of the weight tensor.
        weights: number of its weights, at least 1.
        gross_bits: bits of the weights before the refund.
        refund_bits: bits returned by the draw from q.
        net_bits: gross bits minus refund.
        method: method that gave the net bits, such as ``closed_form``.
        stderr: standard error of the net bits, in bits.

    Raises:
        LedgerError: for numbers that are not finite, do not add up, or are below zero where they cannot be.

    >>> Entry.of("fc.weight", weights=10, net_bits=5.0, refund_bits=40.0).gross_bits
    45.0
    """

    name: str
    weights: int
    gross_bits: float
    refund_bits: float
    net_bits: float
    method: str
    stderr: float = 0.0

    @classmethod
    def of(cls, name: str, *, weights: int, net_bits: float, refund_bits: float, method: str = "closed_form",
           stderr: float = 0.0) -> "Entry":  # fmt: skip
        """Return the entry with gross bits = net bits + refund.

        Args:
            name: name of the weight tensor.
            weights: number of its weights.
            net_bits: KL(q||p) in bits, or the code length of a point estimate.
            refund_bits: E_q[-log2 q(w) step] in bits.
            method: method that gave the net bits.
            stderr: standard error of the net bits, in bits.

        Returns:
            The entry.
        """
        return cls(name, weights, net_bits + refund_bits, refund_bits, net_bits, method, stderr)

    def __post_init__(self) -> None:
        for label in ("gross_bits", "refund_bits", "net_bits", "stderr"):
            if not math.isfinite(getattr(self, label)):
                raise LedgerError(f"entry '{self.name}' has {label} = {getattr(self, label)}; bits must be finite")
        if self.weights <= 0:
            raise LedgerError(f"entry '{self.name}' covers {self.weights} weights; an entry covers at least one")
        slack = 1e-9 * max(1.0, abs(self.gross_bits), abs(self.refund_bits))
        if abs(self.gross_bits - self.refund_bits - self.net_bits) > slack:
            raise LedgerError(
                f"entry '{self.name}' does not add up: gross {self.gross_bits} - refund {self.refund_bits} "
                f"is not net {self.net_bits}"
            )
        if self.net_bits < -self._slack_bits():
            raise LedgerError(
                f"entry '{self.name}' costs {self.net_bits:,.6g} bits, but no weights cost less than nothing; recompute a "
                "ledger of an earlier version (bitsback ledger RUN --recompute), and check a prior of your own with "
                "bitsback.testing.check_prior: its mass may exceed one"
            )

    def _slack_bits(self) -> float:
        """Return by how many bits the net bits may lie below zero."""
        if self.method in COUNTED:
            return 0.0
        return ROUNDING_BITS * self.weights + STDERRS * self.stderr

    @property
    def bits_per_weight(self) -> float:
        """Return the net bits per weight."""
        return self.net_bits / self.weights


@dataclass(frozen=True)
class Charge:
    """Cost of learned numbers that are not weights.

    Attributes:
        name: name of the parameter.
        numbers: number of learned numbers.
        bits_each: bits of each of them.

    >>> Charge("prior.log_scale", 2, 10.0).bits
    20.0
    """

    name: str
    numbers: int
    bits_each: float

    @property
    def bits(self) -> float:
        """Return the bits of all the numbers."""
        return self.numbers * self.bits_each
