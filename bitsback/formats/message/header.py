"""Header of a bits-back message."""

from dataclasses import dataclass
from typing import Any

from bitsback.coding.ans import MOST_LANES_LOG2
from bitsback.errors import FileError
from bitsback.formats._training_digest import MOST_DIGESTS, STATE_BITS, StateDigest
from bitsback.formats.config_text import put_settings, take_settings
from bitsback.formats.container import DIGEST_BITS, BitReader, BitWriter
from bitsback.formats.kinds import FileKind, register_kind

__all__ = ["EXPONENT_BITS", "EXPONENT_OFFSET", "FIRST_MESSAGE", "MESSAGE", "Header"]

MESSAGE = register_kind(FileKind(0, "message", version=2))
FIRST_MESSAGE = MESSAGE.of_version(1)
"""Messages of version 1: labels and weights are still decoded, the payload is not, because their training is no longer
available."""

EXPONENT_BITS, EXPONENT_OFFSET = 6, 16
STATES_BITS = MOST_DIGESTS.bit_length()


@dataclass(frozen=True)
class Header:
    """Header of a bits-back message.

    Attributes:
        settings: configuration as a tree of JSON values.
        exponent: m of the grid step 2^-m of the weights.
        lanes_log2: log2 of the number of lanes of the entropy coder.
        payload_bytes: size of the payload, padding included.
        padding_bytes: random bytes at the end of the payload, which only draw weights.
        inputs_digest: digest of the inputs.
        posterior_digest: digest of the rounded posterior.
        guard_digest: digest of labels and prior tables; None if their arithmetic is exact on every machine.
        states: digests of the sender's training, after the first of :func:`bitsback.formats._training_digest.digest_steps`.
    """

    settings: dict[str, Any]
    exponent: int
    lanes_log2: int
    payload_bytes: int
    padding_bytes: int
    inputs_digest: int
    posterior_digest: int
    guard_digest: int | None
    states: tuple[StateDigest, ...] = ()

    def put(self, writer: BitWriter) -> None:
        """Write the header."""
        put_settings(writer, self.settings)
        writer.put(self.exponent + EXPONENT_OFFSET, EXPONENT_BITS)
        writer.put(self.lanes_log2, 4)
        writer.put_count(self.payload_bytes)
        writer.put_count(self.padding_bytes)
        writer.put(self.inputs_digest, DIGEST_BITS)
        writer.put(self.posterior_digest, DIGEST_BITS)
        writer.put(int(self.guard_digest is not None), 1)
        if self.guard_digest is not None:
            writer.put(self.guard_digest, DIGEST_BITS)
        writer.put(len(self.states), STATES_BITS)
        for state in self.states:
            writer.put(state.level, STATE_BITS)

    @classmethod
    def take(cls, reader: BitReader, *, version: int = 2) -> "Header":
        """Read a header.

        Args:
            reader: positioned at the header.
            version: version of the message's format; messages of version 1 have no :attr:`states`, the digests of training.

        Returns:
            the header.

        Raises:
            FileError: if the header is not valid.
        """
        settings = take_settings(reader)
        exponent, lanes = reader.take(EXPONENT_BITS) - EXPONENT_OFFSET, reader.take(4)
        if lanes > MOST_LANES_LOG2:
            raise FileError(f"the message claims 2^{lanes} lanes, at most 2^{MOST_LANES_LOG2} are allowed; it is damaged")
        counts = reader.take_count(), reader.take_count()
        if counts[1] > counts[0]:
            raise FileError("the message claims more padding than payload; it is damaged")
        digests = reader.take(DIGEST_BITS), reader.take(DIGEST_BITS)
        guard = reader.take(DIGEST_BITS) if reader.take(1) else None
        states = [StateDigest(reader.take(STATE_BITS)) for _ in range(reader.take(STATES_BITS) if version > 1 else 0)]
        return cls(settings, exponent, lanes, *counts, *digests, guard, tuple(states))
