"""One line of the ledger: what one weight tensor cost."""

import math
from dataclasses import dataclass

from bitsback.errors import LedgerError


@dataclass(frozen=True)
class Entry:
    """Gross bits, refund and net bits of one weight tensor.

    ``gross_bits`` is E_q[-log2 p(w) step], ``refund_bits`` is E_q[-log2 q(w) step] and ``net_bits`` their difference,
    KL(q||p) / ln 2 (Hinton & van Camp 1993, section 4). Build it with :meth:`of`, which keeps the three consistent.

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

    @property
    def bits_per_weight(self) -> float:
        """Net bits per weight."""
        return self.net_bits / self.weights
