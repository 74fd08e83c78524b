"""A codec of one's own: a function that the user names returns it, and the file names the function."""

import re
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.errors import ConfigError, FileError
from bitsback.factories import imported_function
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
    body = _called(settings.factory, "write", experiment)
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
        FileError: when they do not, and when the codec does not find the weights.
    """
    name = _named(empty)
    body = reader.rest()
    reader.skip_rest()
    weights = _called(name, "read", body, empty.model)
    wanted = {weight.name: weight.posterior.mean.shape for weight in empty.model.weights}
    found = {key: value.shape for key, value in weights.items()} if _are_tensors(weights) else None
    if found != wanted or not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise FileError(f"{name} does not find the file's weights, or not all are finite; it is damaged, or of another codec")
    return DecodedBody({key: value.detach().to("cpu", torch.float32) for key, value in weights.items()}, 8 * len(body))


def _named(empty: EmptyModel) -> str:
    section = empty.tree.get("codec")
    name = section.get("factory") if isinstance(section, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"[\w.]+:\w+", name):
        raise FileError("the file does not say which codec wrote it; it is damaged")
    if empty.codec_factory is None:
        raise FileError(f"the file's weights are decoded by calling {name}, and no code that a file names is run unasked; "
                        f"if you trust it, add --{CODEC_FACTORY}={name}")  # fmt: skip
    if empty.codec_factory != name:
        raise FileError(f"'{CODEC_FACTORY}' is fixed by the file; only locations, such as --data.root=DIR, can be given")
    return name


def _called(name: str, verb: str, *given: Any) -> Any:
    """What a codec's ``write`` or ``read`` returns; raises ConfigError for whatever the user's code raises."""
    factory = imported_function(name, "pack.factory")
    try:
        return getattr(factory(), verb)(*given)
    except Exception as error:
        raise ConfigError(f"pack.factory: {name} fails to {verb}: {' '.join(str(error).split())}") from error


def _are_tensors(weights: Any) -> bool:
    return isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())


FACTORY_CODEC = register_codec(ModelCodec(FACTORY, write_own, read_own, DecodedBody.parts))
