"""Conversions between nats, bits and bytes.

Log densities and KL divergences are computed in nats; everything shown to a user is in bits.
"""

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["NATS_PER_BIT", "Number", "bits_to_bytes", "bits_to_nats", "format_bits", "nats_to_bits"]

NATS_PER_BIT = math.log(2)
"""ln 2."""

Number = TypeVar("Number", float, "torch.Tensor")


def nats_to_bits(nats: Number) -> Number:
    """Convert nats to bits.

    Args:
        nats: a number, or a tensor of any shape.

    Returns:
        Bits, in the type and shape of ``nats``.

    >>> nats_to_bits(math.log(8.0))
    3.0
    """
    return nats / NATS_PER_BIT


def bits_to_nats(bits: Number) -> Number:
    """Convert bits to nats.

    Args:
        bits: a number, or a tensor of any shape.

    Returns:
        Nats, in the type and shape of ``bits``.

    >>> round(bits_to_nats(1.0), 4)
    0.6931
    """
    return bits * NATS_PER_BIT


def bits_to_bytes(bits: float) -> int:
    """Return the least number of whole bytes that hold ``bits`` bits.

    Args:
        bits: a number of bits, at least 0.

    Returns:
        Bytes.

    >>> bits_to_bytes(17)
    3
    """
    return math.ceil(bits / 8)


def format_bits(bits: float) -> str:
    """Return a number of bits as a short text with a decimal prefix (1 kbit is 1,000 bits).

    Args:
        bits: a number of bits, of any sign.

    Returns:
        Three significant digits and the unit.

    >>> format_bits(1213.4), format_bits(38_600_000.0), format_bits(12.3)
    ('1.21 kbit', '38.6 Mbit', '12.3 bit')
    """
    for size, unit in ((1e9, "Gbit"), (1e6, "Mbit"), (1e3, "kbit")):
        if abs(bits) >= size:
            return f"{bits / size:.3g} {unit}" if abs(bits) < 999.5 * size else f"{bits / size:.0f} {unit}"
    return f"{bits:.3g} bit"
