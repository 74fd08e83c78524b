"""The contract of a codec of model files, and the registry in which codecs are found."""

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
    """A stretch of a file: what is in it, and how many bits it takes."""

    name: str
    bits: float


class Decoded(Protocol):
    """What a codec makes of a body: the weights by name, and whatever its own ``parts`` asks for."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Every coded weight tensor, by name."""


@dataclass(frozen=True)
class ModelCodec:
    """How the weights of one kind of model file are written and read.

    Attributes:
        kind: of the files, which begin with the head that all model files have (:mod:`bitsback.formats.model_file._head`).
        write: from experiment, settings and whether to show a bar to the bytes of the whole file, head and checksum included:
            a codec may change what the head says, as tuning does. The model is changed. None: ``pack`` never chooses it.
        read: from a reader that stands where the body begins, and the frame of the head, to the weights; reads the body to its
            end, and raises FileError when it makes no sense.
        parts: what the body's bits went to, given what ``read`` returned; called only when somebody asks.
    """

    kind: FileKind
    write: Callable[[Experiment, PackSettings, bool], bytes] | None
    read: Callable[[BitReader, EmptyModel], Decoded]
    parts: Callable[[Any], list[FilePart]]


_registered: dict[int, ModelCodec] = {}


def register_codec(codec: ModelCodec) -> ModelCodec:
    """Make the codec of a kind known."""
    _registered[codec.kind.number] = codec
    return codec


def codec_of(kind: FileKind) -> ModelCodec | None:
    """The codec of a kind of file; None for files that are no model files."""
    import_module(HOMES[kind.number])  # a kind may be known before its codec is
    return _registered.get(kind.number)


def codec_named(name: str) -> ModelCodec:
    """The codec of a name that ``pack.codec`` may have."""
    codec = codec_of(all_kinds()[name])
    assert codec is not None
    return codec
