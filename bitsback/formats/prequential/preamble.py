"""Head of a file of labels in the prequential code."""

from dataclasses import dataclass
from typing import Any

from bitsback.coding.ans import Integers
from bitsback.coding.categorical import frequencies
from bitsback.errors import FileError
from bitsback.formats.config_text import put_settings, take_settings
from bitsback.formats.container import DIGEST_BITS, BitReader, BitWriter, digest
from bitsback.formats.kinds import FileKind, register_kind

__all__ = ["FIRST_PREQUENTIAL", "PREQUENTIAL", "Head", "labels_digest", "tables_digest"]

PREQUENTIAL = register_kind(FileKind(3, "prequential", version=2))
FIRST_PREQUENTIAL = PREQUENTIAL.of_version(1)
"""Files of version 1, whose training is no longer available."""

TABLES_DIGEST_BITS, LABELS_DIGEST_BITS = 8, 16


@dataclass(frozen=True)
class Head:
    """Head of a file of labels in the prequential code.

    Attributes:
        settings: configuration as a tree of JSON values.
        examples: number of labels that follow.
        inputs_digest: digest of the inputs, as in messages.
        tables: for every block, a digest of the tables that code it; see :func:`tables_digest`.
        labels_digest: digest of all labels; see :func:`labels_digest`.
    """

    settings: dict[str, Any]
    examples: int
    inputs_digest: int
    tables: tuple[int, ...]
    labels_digest: int

    def put(self, writer: BitWriter) -> None:
        """Write the head."""
        put_settings(writer, self.settings)
        writer.put_count(self.examples)
        writer.put_count(len(self.tables))
        writer.put(self.inputs_digest, DIGEST_BITS)
        for tables in self.tables:
            writer.put(tables, TABLES_DIGEST_BITS)
        writer.put(self.labels_digest, LABELS_DIGEST_BITS)

    @classmethod
    def take(cls, reader: BitReader) -> "Head":
        """Read a head; raises FileError if it is not valid."""
        settings, examples, blocks = take_settings(reader), reader.take_count(), reader.take_count()
        if not 0 < blocks <= examples or blocks * TABLES_DIGEST_BITS > reader.bits_left:
            raise FileError(f"the file claims {blocks} blocks of {examples} labels; it is damaged")
        inputs = reader.take(DIGEST_BITS)
        tables = tuple(reader.take(TABLES_DIGEST_BITS) for _ in range(blocks))
        return cls(settings, examples, inputs, tables, reader.take(LABELS_DIGEST_BITS))


def tables_digest(logits: Integers) -> int:
    """Return an 8-bit digest of the tables that code a block, which the receiver compares before it decodes a label.

    >>> import numpy as np
    >>> tables_digest(np.zeros((2, 3), dtype=np.int64)) == tables_digest(np.array([[0, 0, 0], [1, 0, 0]]))
    False
    """
    return digest(frequencies(logits).astype("<i8").tobytes()) & ((1 << TABLES_DIGEST_BITS) - 1)


def labels_digest(labels: Integers) -> int:
    """Return a 16-bit digest of all labels, in the order of the code."""
    return digest(labels.astype("<i8").tobytes()) & ((1 << LABELS_DIGEST_BITS) - 1)
