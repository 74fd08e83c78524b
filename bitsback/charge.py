"""What is paid for learned numbers that are not weights. Knows nothing of networks, so that a ledger is read at once."""

from dataclasses import dataclass


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
