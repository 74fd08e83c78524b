"""A message and where its bits went."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sent:
    """A message and where its bits went, beside the ledger of the very weights that it carries."""

    content: bytes
    step: float
    payload_bits: int
    padding_bits: int
    gross_weight_bits: float
    refund_bits: float
    label_bits: float
    side_bits: float
    header_bits: int
    net_bits: float
    ledger_data_bits: float
    ledger_weight_bits: float

    @property
    def message_bits(self) -> int:
        """Bits of the whole file."""
        return 8 * len(self.content)

    @property
    def stack_net_bits(self) -> float:
        """What labels, weights and learned numbers added to the stack, less what was given back."""
        return self.gross_weight_bits + self.label_bits + self.side_bits - self.refund_bits

    @property
    def overhead_bits(self) -> float:
        """Message less payload less the ledger's net bits of the transmitted weights."""
        return self.message_bits - self.payload_bits - self.net_bits

    def facts(self) -> dict[str, Any]:
        """Everything, for JSON; the overhead's parts add up to it."""
        framing = self.message_bits - self.payload_bits - self.padding_bits - self.stack_net_bits - self.header_bits
        return {
            "message_bits": self.message_bits,
            "payload_bits": self.payload_bits,
            "net_bits": self.net_bits,
            "overhead_bits": self.overhead_bits,
            "overhead": {
                "header_and_checksum_bits": self.header_bits,
                "lanes_and_rounding_bits": framing,
                "payload_padding_bits": self.padding_bits,
                "coder_and_tables_bits": self.stack_net_bits - self.net_bits,
            },
            "ledger": {
                "data_bits": self.ledger_data_bits,
                "net_weight_bits": self.ledger_weight_bits,
                "hyperparameter_bits": self.side_bits,
            },
            "coded": {
                "label_bits": self.label_bits,
                "gross_weight_bits": self.gross_weight_bits,
                "refund_bits": self.refund_bits,
                "hyperparameter_bits": self.side_bits,
                "net_bits": self.stack_net_bits,
            },
            "step": self.step,
        }
