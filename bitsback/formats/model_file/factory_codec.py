"""A codec of one's own: a function that the user names returns it, and the file names the function."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.errors import ConfigError, FileError, brief
from bitsback.factories import LONGEST_NAME, imported_function, is_function_name
from bitsback.formats.config_tree import CODEC_FACTORY
from bitsback.formats.container import BitReader, BitWriter, seal
from bitsback.formats.kinds import FileKind, register_kind
from bitsback.formats.model_file._codec import FilePart, ModelCodec, register_codec
from bitsback.formats.model_file._head import EmptyModel, model_tree, put_experiment_head
from bitsback.model import BayesianModel

__all__ = ["FACTORY", "DecodedBody", "OwnCodec", "read_own", "write_own"]

FACTORY = register_kind(FileKind(6, "factory"))


class OwnCodec(Protocol):
    """What a factory of ``pack.factory`` returns."""

    def write(self, experiment: Experiment) -> bytes:
        """The body of the file: the weights of a trained experiment, which says everything about them."""

    def read(self, body: bytes, model: BayesianModel) -> dict[str, Tensor]:
        """The weights by name; the untrained model says which they are, and what priors they have."""


@dataclass(frozen=True)
class DecodedBody:
    """The weights of a body that the user's own codec read, and its bits."""

    weights: dict[str, Tensor]
    bits: int

    def parts(self) -> list[FilePart]:
        """The body, of which only its codec knows more."""
        return [FilePart("body of the codec", self.bits)]


def write_own(experiment: Experiment, settings: PackSettings, _progress: bool) -> bytes:
    """The whole file: the head, which names the factory, and the body that its codec writes.

    Raises:
        ConfigError: when the factory cannot be imported or fails, or its codec does.
        FileError: for a body that is longer than the budget allows.
    """
    assert settings.factory is not None
    factory = imported_function(settings.factory, "pack.factory")
    try:
        body = factory().write(experiment)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"pack.factory: {settings.factory} fails to write: {_said(error)}") from error
    if not isinstance(body, bytes):
        raise ConfigError(f"pack.factory: {settings.factory} wrote {type(body).__name__}, not bytes")
    writer = BitWriter()
    put_experiment_head(writer, experiment, {**model_tree(experiment), "codec": {"factory": settings.factory}})
    content = seal(FACTORY, writer.to_bytes() + body)
    if settings.budget_bytes is not None and len(content) > settings.budget_bytes:
        raise FileError(
            f"the file has {len(content)} bytes, the budget is {settings.budget_bytes}; only the codec can change that"
        )
    return content


def read_own(reader: BitReader, empty: EmptyModel) -> DecodedBody:
    """Read the body with the codec that the file names, if the locations name the same.

    Raises:
        ConfigError: when the codec that the locations name cannot be imported.
        FileError: when they name no or another codec, and when it fails or does not find the weights.
    """
    name = _named(empty)
    body = reader.rest()
    reader.skip_rest()
    wanted = {weight.name: weight.posterior.mean.shape for weight in empty.model.weights}
    factory = imported_function(name, CODEC_FACTORY)
    try:
        returned = factory().read(body, empty.model)
    except Exception as error:  # whatever the user's code raises
        raise FileError(
            f"the codec {name} could not read the file's body ({_said(error)}); it is damaged, or another codec wrote it"
        ) from error
    try:
        weights, cause = _plain(returned, wanted), None
    except Exception as error:  # a tensor, a mapping or a key can be of any class
        weights, cause = None, error
    if weights is None:
        raise FileError(
            f"{name} does not find the file's weights, or not all are finite; it is damaged, or of another codec"
        ) from cause
    return DecodedBody(weights, 8 * len(body))


def _named(empty: EmptyModel) -> str:
    section = empty.tree.get("codec")
    name = section.get("factory") if isinstance(section, dict) else None
    if isinstance(name, str) and len(name) > LONGEST_NAME:
        raise FileError(
            f"the file's name of a codec has {len(name):,} characters, and at most {LONGEST_NAME} are allowed; it is damaged"
        )
    if not isinstance(name, str) or not is_function_name(name):
        raise FileError("the file does not say which codec wrote it; it is damaged")
    if empty.codec_factory is None:
        raise FileError(f"the file's weights are decoded by calling {name}, and no code that a file names is run unasked; "
                        f"if you trust it, add --{CODEC_FACTORY}={name}")  # fmt: skip
    if empty.codec_factory != name:
        raise FileError(f"'{CODEC_FACTORY}' is fixed by the file; only locations, such as --data.root=DIR, can be given")
    return name


def _said(error: Exception) -> str:
    """What the user's code says, cut short; some exceptions say nothing but their class."""
    return brief(f"{type(error).__name__}: {error}".removesuffix(": "))


def _plain(returned: Any, wanted: dict[str, torch.Size]) -> dict[str, Tensor] | None:
    """Finite float32 tensors of our own with the values that a codec returned; None unless they are those that are wanted."""
    if not isinstance(returned, dict) or {*returned} != {*wanted}:
        return None
    found = {}
    for name, shape in wanted.items():
        value = returned[name]
        if not isinstance(value, Tensor) or value.shape != shape or value.is_complex():
            return None
        found[name] = torch.empty(shape, dtype=torch.float32, device="cpu").copy_(value.detach())
        if not bool(torch.isfinite(found[name]).all()):  # float64 may be finite where float32 is not
            return None
    return found


FACTORY_CODEC = register_codec(ModelCodec(FACTORY, write_own, read_own, DecodedBody.parts))
