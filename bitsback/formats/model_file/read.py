"""Model files: a network that decodes anywhere, without the data it was trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from bitsback.atomic_io import whole_directory, write_tensors, write_text
from bitsback.config import Config
from bitsback.config.load import to_yaml
from bitsback.data import Preprocessing
from bitsback.data.settings import AnyFeatures
from bitsback.errors import FileError
from bitsback.formats._exact_outputs import BATCH
from bitsback.formats._size_limits import check_data
from bitsback.formats.config_text import take_settings
from bitsback.formats.config_tree import MODEL_SECTIONS
from bitsback.formats.container import BitReader, read_file, unseal
from bitsback.formats.message.header import MESSAGE
from bitsback.formats.model_file._codec import Decoded, FilePart, ModelCodec, codec_of
from bitsback.formats.model_file._head import EmptyModel, Tree, take_side
from bitsback.formats.model_file._tuning import FIXED_LOG_STD
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.posteriors import GaussianPosterior

__all__ = ["LoadedModel", "decode", "load", "write_unpacked"]


class LoadedModel(nn.Module):
    """A decoded model file: a network with one number per weight, its likelihood and its preprocessing.

    Calling it maps the network's inputs to its outputs; :meth:`predict` starts from inputs as they are stored.

    Attributes:
        config: the configuration in the file; its data section says how the inputs were made.
        codec: name of the kind of file.
    """

    def __init__(
        self, config: Config, tree: Tree, codec: str, model: BayesianModel, likelihood: Likelihood, scaling: Preprocessing
    ) -> None:
        super().__init__()
        self.config, self.tree, self.codec = config, tree, codec
        self.model, self.likelihood, self._scaling = model.eval(), likelihood, scaling
        self._parts: Callable[[], list[FilePart]] = list
        self.rows = BATCH
        """Examples that go through the network at once: fewer, where its activations are large."""

    @cached_property
    def parts(self) -> list[FilePart]:
        """Where every bit of the file goes."""
        return self._parts()

    def forward(self, inputs: Tensor) -> Tensor:
        with self.model.mean():
            outputs: Tensor = self.model(inputs)
        return outputs

    @property
    def preprocessing(self) -> Preprocessing:
        """From stored inputs to the network's; features that were fitted to training inputs are fitted to them again."""
        data = self.tree.get("data", {})
        scaling = replace(self._scaling, fraction_bits=data.get("fraction_bits"))
        if data.get("features") is None:
            return scaling
        try:
            features = TypeAdapter(AnyFeatures).validate_python(data["features"])
        except ValidationError as error:  # a file whose data are elsewhere has not been asked about them yet
            raise FileError("the file does not say how its features are made; it is damaged") from error
        if not features.is_fitted:
            return replace(scaling, features=features.fit(torch.empty(0)))
        if self.config.data.kind != data["kind"]:
            raise FileError(
                f"predictions need the training inputs, from which the features {data['features']['kind']} are made; say where "
                "they are (--data.root=..., --data.path=...)"
            )
        check_data(self.config, "the file", labels=False)
        return self.config.data.load_inputs().preprocessing

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """The network's outputs (n, ...) for inputs as they are stored, (n, ...)."""
        if self.tree.get("whole_inputs"):
            prepared = inputs.long()
        else:
            prepared = self.preprocessing(inputs if inputs.is_floating_point() else inputs.float())
        wanted = tuple(self.tree["inputs"])
        if tuple(prepared.shape[1:]) != wanted:
            if prepared.shape[1:].numel() != torch.Size(wanted).numel() or not prepared.ndim:
                raise FileError(f"the model takes inputs of shape {wanted}, got {tuple(prepared.shape[1:])}; give such inputs")
            prepared = prepared.reshape(len(prepared), *wanted)
        return torch.cat([self(part) for part in prepared.split(self.rows)])

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """Predictive means (probabilities for classes), (n, ...), for inputs as they are stored, (n, ...)."""
        return self.likelihood.predict(self.outputs(inputs))

    @property
    def class_names(self) -> tuple[int | str, ...] | None:
        """What the classes are called, where they are not 0, 1, 2, ..."""
        return getattr(self.likelihood, "names", None)

    def tensors(self) -> dict[str, Tensor]:
        """All weights and statistics by name, float32."""
        named: dict[str, Tensor] = {weight.name: weight.posterior.mean for weight in self.model.weights}
        named |= dict(self.model.deterministic()) | dict(self.model.statistics())
        named |= {f"likelihood.{name}": value for name, value in self.likelihood.values().items()}
        return {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in named.items()}


def decode(content: bytes, what: str, locations: Sequence[str] = ()) -> LoadedModel:
    """The model in the bytes of a file.

    Raises:
        FileError: for anything but a model file that is whole.
    """
    kind, contents = unseal(content, what)
    codec = codec_of(kind)
    if codec is None:
        name = str(kind) if kind == MESSAGE else f"{kind} message"
        raise FileError(f"{what} is a {name}, not a model file; use `bitsback receive`")
    reader = BitReader(contents)
    tree = take_settings(reader)
    empty = EmptyModel.of(tree, locations, len(content))
    settings_bits = reader.position
    side = empty.side()
    take_side(reader, side, empty.model)
    head_bits = reader.position
    decoded = codec.read(reader, empty)
    reader.close()
    with torch.no_grad():
        for weight in empty.model.weights:
            weight.posterior.mean.copy_(decoded.weights[weight.name])
            if isinstance(weight.posterior, GaussianPosterior):  # one number per weight, whoever draws
                weight.posterior.log_std.fill_(FIXED_LOG_STD)
    loaded = LoadedModel(empty.config, tree, str(kind), empty.model, empty.likelihood, empty.scaling)
    learned = [FilePart(name, tensor.numel() * grid.bits_each) for name, tensor, grid in side.slots]
    frame_bits = 8 * (len(content) - len(contents))
    loaded._parts = _Parts(8 * len(content), frame_bits, settings_bits, learned, head_bits, codec, decoded)
    loaded.rows = empty.rows
    return loaded


@dataclass(frozen=True)
class _Parts:
    """What it takes to say where the bits of a file go."""

    file_bits: int
    frame_bits: int
    settings_bits: int
    learned: list[FilePart]
    head_bits: int
    codec: ModelCodec
    decoded: Decoded

    def __call__(self) -> list[FilePart]:
        guard_bits = self.head_bits - self.settings_bits - sum(part.bits for part in self.learned)
        parts = [
            FilePart("mark, version, checksum", self.frame_bits),
            FilePart("configuration", self.settings_bits),
            *self.learned,
            FilePart("guard of the priors", guard_bits),
            *self.codec.parts(self.decoded),
        ]
        return [*parts, FilePart("padding", self.file_bits - sum(part.bits for part in parts))]


def write_unpacked(loaded: LoadedModel, directory: Path) -> None:
    """Write ``model.safetensors`` and ``config.yaml``."""
    written = [name for name in (*MODEL_SECTIONS, "seed") if name in loaded.tree or name == "seed"]
    with whole_directory(directory) as staging:
        write_tensors(staging / "model.safetensors", loaded.tensors(), {})
        write_text(staging / "config.yaml", to_yaml(loaded.config, sections=written))


def load(path: str | Path, locations: Sequence[str] = ()) -> LoadedModel:
    """Read a model file.

    Args:
        path: what ``bitsback pack`` or :func:`bitsback.save` wrote.
        locations: such as ``"data.root=DIR"``, where the preprocessing needs the training inputs, and
            ``"network.factory=package.module:function"``, without which no code that the file names is called.

    Raises:
        FileError: when the file is empty, foreign, of a later version, truncated, extended or damaged.
    """
    return decode(read_file(Path(path)), str(path), locations)
