"""List the contents of a file and the size of each part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsback.formats.container import BitReader, read_file, unseal
from bitsback.formats.kinds import FileKind
from bitsback.formats.message.header import FIRST_MESSAGE, MESSAGE, Header
from bitsback.formats.model_file.block_codec import RELATIVE_ENTROPY
from bitsback.formats.model_file.read import decode
from bitsback.formats.prequential.preamble import FIRST_PREQUENTIAL, PREQUENTIAL, Head
from bitsback.formats.text.text import TEXT, model_of_text
from bitsback.formats.two_part import TWO_PART, model_inside
from bitsback.result import Result, text_table

__all__ = ["Inspection", "inspect", "inspect_file"]

TRAINS_AGAIN = "Whoever decodes them trains the same networks again; another arithmetic is noticed, block by block."
ONLY_FIRST = "Only bitsback 0.1 decodes them: it repeats the training of their networks."
NO_SAMPLE = "The weights were chosen, block by block, to describe the labels well; they are not a sample of the posterior."


@dataclass(frozen=True)
class Inspection(Result):
    """Contents of a file and the bits of each part.

    Attributes:
        facts: kind, sentence, settings, parts and notes, under the names that ``--json`` prints.
    """

    facts: dict[str, Any]

    @property
    def kind(self) -> str:
        """Return the kind of file, such as ``message``."""
        kind: str = self.facts["kind"]
        return kind

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, for JSON."""
        return dict(self.facts)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each part: its name and its bits."""
        return list(self.facts["parts"])

    def __str__(self) -> str:
        parts = [(part["name"], part["bits"]) for part in self.records()]
        total = ("total", sum(bits for _, bits in parts))
        rows = [[name, f"{bits:,.1f}", f"{bits / 8:,.1f}"] for name, bits in [*parts, total]]
        return "\n".join([self.facts["sentence"], text_table(["part", "bits", "bytes"], rows), *self.facts["notes"]])


def inspect(path: str | Path, locations: Sequence[str] = ()) -> Inspection:
    """Describe a message or model file: its kind, settings and the bits of each part.

    Args:
        path: a file that ``pack`` or ``send`` wrote.
        locations: places on this machine, such as ``data.root=DIR``, where decoding a model file needs them.

    Returns:
        the facts, printable as a table.

    Raises:
        FileError: if the file is damaged or not one of bitsback's.
    """
    return Inspection(inspect_file(Path(path), locations))


def inspect_file(path: Path, locations: Sequence[str] = ()) -> dict[str, Any]:
    """Return kind, settings and parts of a message or model file.

    Args:
        path: a file that ``pack`` or ``send`` wrote.
        locations: places on this machine, such as ``data.root=DIR``.

    Returns:
        the facts, as ``--json`` prints them.

    Raises:
        FileError: if the file is damaged or not one of bitsback's.
    """
    content = read_file(path)
    kind, contents = unseal(content, str(path))
    if kind in (MESSAGE, FIRST_MESSAGE):
        return _message(content, contents, kind)
    if kind in (PREQUENTIAL, FIRST_PREQUENTIAL):
        return _prequential(content, contents, kind)
    if kind == TWO_PART:
        note = "`bitsback receive` gives the labels of the inputs that the receiver holds."
        return _behind(kind, "labels", note, content, model_inside(content, str(path)), str(path), locations)
    if kind == TEXT:
        note = "`bitsback receive` gives the text."
        return _behind(kind, TEXT.name, note, content, model_of_text(content, str(path)), str(path), locations)
    loaded = decode(content, str(path), locations)
    weights = loaded.weight_count
    kinds = ", ".join(dict.fromkeys(weight.prior.kind for weight in loaded.model.weights))
    notes = [NO_SAMPLE] if kind == RELATIVE_ENTROPY else []
    if loaded.config.data.features is not None and loaded.config.data.features.is_fitted:
        notes.append(
            f"Predictions need the training inputs, from which the features {loaded.config.data.features.kind} are made."
        )
    rate = f"{8 * len(content) / weights:.3g} bits per weight"
    return {
        "kind": str(kind),
        "sentence": f"A {kind} model file of {len(content):,} bytes: {weights:,} weights ({rate}), prior {kinds}, likelihood "
        f"{loaded.likelihood.kind}.",
        "file_bytes": len(content),
        "weights": weights,
        "settings": loaded.tree,
        "parts": [{"name": part.name, "bits": part.bits} for part in loaded.parts],
        "notes": notes,
    }


def _message(content: bytes, contents: bytes, kind: FileKind) -> dict[str, Any]:
    reader = BitReader(contents)
    header = Header.take(reader, version=kind.version)
    head_bits = 8 * (len(contents) - len(reader.rest()))
    rest_bytes = header.payload_bytes % 4
    parts = {
        "mark, version, checksum": 8 * (len(content) - len(contents)),
        "header": head_bits,
        "payload": 8 * header.payload_bytes,
        "labels, weights, learned numbers, less the refund": 8 * len(contents) - head_bits - 8 * header.payload_bytes,
    }
    notes = [f"{rest_bytes} bytes of the payload stand as they are."] if rest_bytes else []
    if kind == FIRST_MESSAGE:
        notes.append("Only bitsback 0.1 gives the payload back: it repeats the training that locks it.")
    return {
        "kind": str(kind),
        "sentence": f"A bits-back message of {len(content):,} bytes around a payload of {header.payload_bytes:,} bytes: data "
        f"{_kind(header.settings, 'data')}, prior {_kind(header.settings, 'prior')}, grid 2^{-header.exponent}.",
        "file_bytes": len(content),
        "settings": header.settings,
        "parts": [{"name": name, "bits": bits} for name, bits in parts.items()],
        "notes": notes,
    }


def _behind(
    kind: FileKind, coded: str, note: str, content: bytes, model: bytes, what: str, locations: Sequence[str]
) -> dict[str, Any]:
    """Return the facts of a file with labels or a text behind a model file."""
    loaded = decode(model, what, locations)
    parts = [{"name": part.name, "bits": part.bits} for part in loaded.parts]
    return {
        "kind": kind.name,
        "sentence": f"A {kind.name.replace('_', '-')} file of {len(content):,} bytes: a {loaded.codec} model of {len(model):,} "
        f"bytes, and {coded}.",
        "file_bytes": len(content),
        "settings": loaded.tree,
        "parts": [*parts, {"name": f"{coded}, and what tells the two apart", "bits": 8 * (len(content) - len(model))}],
        "notes": [note],
    }


def _prequential(content: bytes, contents: bytes, kind: FileKind) -> dict[str, Any]:
    reader = BitReader(contents)
    head = Head.take(reader)
    label_bits = 8 * len(reader.rest())
    parts = {
        "mark, version, checksum": 8 * (len(content) - len(contents)),
        "configuration, digests": 8 * len(contents) - label_bits,
        "labels": label_bits,
    }
    return {
        "kind": str(kind),
        "sentence": f"A message of {len(content):,} bytes: {head.examples:,} labels in the prequential code, in "
        f"{len(head.tables)} blocks; data {_kind(head.settings, 'data')}, prior {_kind(head.settings, 'prior')}.",
        "file_bytes": len(content),
        "examples": head.examples,
        "blocks": len(head.tables),
        "settings": head.settings,
        "parts": [{"name": name, "bits": bits} for name, bits in parts.items()],
        "notes": [ONLY_FIRST if kind == FIRST_PREQUENTIAL else TRAINS_AGAIN],
    }


def _kind(settings: dict[str, Any], section: str) -> str:
    """Return the kind of a settings section, or "unknown": the settings come unvalidated from the file."""
    part = settings.get(section)
    kind = part.get("kind") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) and kind.isidentifier() else "unknown"
