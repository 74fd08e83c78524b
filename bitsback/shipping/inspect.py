"""inspect: what a file holds, and where every byte goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitsback.bitstream.container import BitReader, unseal
from bitsback.bitstream.header import Header
from bitsback.shipping.message import read_file
from bitsback.shipping.model_file import decode

NO_SAMPLE = "The weights were chosen, block by block, to describe the labels well; they are not a sample of the posterior."


def inspect_file(path: Path, places: Sequence[str] = ()) -> dict[str, Any]:
    """Kind, settings and parts of a message or model file.

    Raises:
        FileError: for anything else, or a damaged file.
    """
    content = read_file(path)
    kind, contents = unseal(content, str(path))
    if kind == "message":
        return _message(content, contents)
    loaded = decode(content, str(path), places)
    weights = sum(weight.posterior.weights for weight in loaded.model.weights)
    kinds = ", ".join(dict.fromkeys(weight.prior.kind for weight in loaded.model.weights))
    notes = [NO_SAMPLE] if kind == "relative_entropy" else []
    if loaded.config.data.features is not None:
        notes.append(
            f"Predictions need the training inputs, from which the features {loaded.config.data.features.kind} are made."
        )
    rate = f"{8 * len(content) / weights:.3g} bits per weight"
    return {
        "kind": kind,
        "sentence": f"A {kind} model file of {len(content):,} bytes: {weights:,} weights ({rate}), prior {kinds}, likelihood "
        f"{loaded.likelihood.kind}.",
        "file_bytes": len(content),
        "weights": weights,
        "settings": loaded.tree,
        "parts": [{"name": part.name, "bits": part.bits} for part in loaded.parts],
        "notes": notes,
    }


def _message(content: bytes, contents: bytes) -> dict[str, Any]:
    reader = BitReader(contents)
    header = Header.take(reader)
    head_bits = 8 * (len(contents) - len(reader.rest()))
    rest_bytes = header.payload_bytes % 4
    parts = {
        "mark, version, checksum": 8 * (len(content) - len(contents)),
        "header": head_bits,
        "payload": 8 * header.payload_bytes,
        "labels, weights, learned numbers, less the refund": 8 * len(contents) - head_bits - 8 * header.payload_bytes,
    }
    return {
        "kind": "message",
        "sentence": f"A bits-back message of {len(content):,} bytes around a payload of {header.payload_bytes:,} bytes: data "
        f"{_kind(header, 'data')}, prior {_kind(header, 'prior')}, grid 2^{-header.exponent}.",
        "file_bytes": len(content),
        "settings": header.settings,
        "parts": [{"name": name, "bits": bits} for name, bits in parts.items()],
        "notes": [f"{rest_bytes} bytes of the payload stand as they are."] if rest_bytes else [],
    }


def _kind(header: Header, section: str) -> str:
    """What a header says, which may be anything: it has not been made a configuration."""
    part = header.settings.get(section)
    kind = part.get("kind") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) and kind.isidentifier() else "unknown"
