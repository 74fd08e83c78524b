"""What a file of labels in the prequential code says before its labels."""

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
"""Of version 1: its training is no longer repeated."""

TABLES_DIGEST_BITS, LABELS_DIGEST_BITS = 8, 16


@dataclass(frozen=True)
class Head:
    """What a file of labels in the prequential code says before its labels.

    Attributes:
        settings: the configuration, as a tree.
        examples: how many labels follow.
        inputs_digest: of the inputs, as in messages.
        tables: a digest for every block, of the tables that code it; see :func:`tables_digest`.
        labels_digest: of all labels; see :func:`labels_digest`.
    """

    settings: dict[str, Any]
    examples: int
    inputs_digest: int
    tables: tuple[int, ...]
    labels_digest: int

    def put(self, writer: BitWriter) -> None:
        """Write it."""
        put_settings(writer, self.settings)
        writer.put_count(self.examples)
        writer.put_count(len(self.tables))
        writer.put(self.inputs_digest, DIGEST_BITS)
        for tables in self.tables:
            writer.put(tables, TABLES_DIGEST_BITS)
        writer.put(self.labels_digest, LABELS_DIGEST_BITS)

    @classmethod
    def take(cls, reader: BitReader) -> "Head":
        """Read it; raises FileError when it makes no sense."""
        settings, examples, blocks = take_settings(reader), reader.take_count(), reader.take_count()
        if not 0 < blocks <= examples or blocks * TABLES_DIGEST_BITS > reader.bits_left:
            raise FileError(f"the file claims {blocks} blocks of {examples} labels; it is damaged")
        inputs = reader.take(DIGEST_BITS)
        tables = tuple(reader.take(TABLES_DIGEST_BITS) for _ in range(blocks))
        return cls(settings, examples, inputs, tables, reader.take(LABELS_DIGEST_BITS))


def tables_digest(logits: Integers) -> int:
    """Eight bits over the tables that code a block: whether sender and receiver agree, before a label is decoded.

    >>> import numpy as np
    >>> tables_digest(np.zeros((2, 3), dtype=np.int64)) == tables_digest(np.array([[0, 0, 0], [1, 0, 0]]))
    False
    """
    return digest(frequencies(logits).astype("<i8").tobytes()) & ((1 << TABLES_DIGEST_BITS) - 1)


def labels_digest(labels: Integers) -> int:
    """Sixteen bits over all labels, in the order of the code."""
    return digest(labels.astype("<i8").tobytes()) & ((1 << LABELS_DIGEST_BITS) - 1)
