"""Interface of the codecs of model files, and the registry in which codecs are found."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.formats.container import BitReader
from bitsback.formats.kinds import HOMES, FileKind, all_kinds
from bitsback.formats.model_file._head import EmptyModel

__all__ = ["Decoded", "FilePart", "ModelCodec", "codec_named", "codec_of", "register_codec"]


@dataclass(frozen=True)
class FilePart:
    """One part of a file.

    Attributes:
        name: what it holds, for the user.
        bits: its size in bits; may be fractional.
    """

    name: str
    bits: float


class Decoded(Protocol):
    """Result of a codec's ``read``: the weights by name, and anything else that its ``parts`` needs."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return every coded weight tensor, by name."""


@dataclass(frozen=True)
class ModelCodec:
    """Writer and reader of the weights of one kind of model file.

    Attributes:
        kind: kind of the files; all begin with the same head (:mod:`bitsback.formats.model_file._head`).
        write: from experiment, settings and whether to show a bar to the bytes of the whole file, head and checksum included
            (a codec may change numbers of the head, as tuning does). The model is changed. None if ``pack`` never chooses it.
        read: from a reader positioned at the body and the untrained model of the head to the weights; it consumes the body to
            its end, and raises FileError if the body is not valid.
        parts: parts of the body, from the result of ``read``; called only on demand.
    """

    kind: FileKind
    write: Callable[[Experiment, PackSettings, bool], bytes] | None
    read: Callable[[BitReader, EmptyModel], Decoded]
    parts: Callable[[Any], list[FilePart]]


_registered: dict[int, ModelCodec] = {}


def register_codec(codec: ModelCodec) -> ModelCodec:
    """Register the codec of a kind of file."""
    _registered[codec.kind.number] = codec
    return codec


def codec_of(kind: FileKind) -> ModelCodec | None:
    """Return the codec of a kind of file; None for files that are not model files."""
    import_module(HOMES[kind.number])  # a kind may be known before its codec is
    return _registered.get(kind.number)


def codec_named(name: str) -> ModelCodec:
    """Return the codec of a name that ``pack.codec`` may have."""
    codec = codec_of(all_kinds()[name])
    assert codec is not None
    return codec
