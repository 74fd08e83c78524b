"""One line of the ledger: what one weight tensor cost."""

import math
from dataclasses import dataclass

from bitsback.errors import LedgerError

__all__ = ["Charge", "Entry"]

COUNTED = ("point", "float32")
"""Methods that add up code lengths, none of which is below zero."""

ROUNDING_BITS = 1e-6
"""For each weight. Where q is p, the quadrature of the ledger finds zero to 1e-13 nats; that of training only to 1e-5."""

STDERRS = 6.0
"""How many standard errors a Monte Carlo estimate of zero may lie below it: one in 10^9 does, if they are normal."""


@dataclass(frozen=True)
class Entry:
    """Gross bits, refund and net bits of one weight tensor.

    ``gross_bits`` is E_q[-log2 p(w) step], ``refund_bits`` is E_q[-log2 q(w) step] and ``net_bits`` their difference,
    KL(q||p) / ln 2 (Hinton & van Camp 1993, section 4). A point estimate has no refund; its gross bits are those of the grid
    points under the integer tables of the prior. Build it with :meth:`of`, which keeps the three consistent.

    Net bits are never below zero, beyond rounding and ``stderr``: no divergence is, and no cost of a point. Gross bits and
    refund of a Gaussian posterior may have any sign: on a grid wider than q or p, density times step exceeds one.

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
        """The entry with gross = net + refund."""
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
                f"entry '{self.name}' costs {self.net_bits:,.6g} bits, but no weights cost less than nothing; take a ledger of "
                "an earlier version again (bitsback ledger RUN --recompute), and hold a prior of your own against "
                "bitsback.testing.check_prior: its mass exceeds one"
            )

    def _slack_bits(self) -> float:
        """How far below zero the net bits may lie."""
        if self.method in COUNTED:
            return 0.0
        return ROUNDING_BITS * self.weights + STDERRS * self.stderr

    @property
    def bits_per_weight(self) -> float:
        """Net bits per weight."""
        return self.net_bits / self.weights


@dataclass(frozen=True)
class Charge:
    """Bits paid for ``numbers`` learned numbers that are not weights.

    >>> Charge("prior.log_scale", 2, 10.0).bits
    20.0
    """

    name: str
    numbers: int
    bits_each: float

    @property
    def bits(self) -> float:
        return self.numbers * self.bits_each
