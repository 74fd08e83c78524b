"""Read model files: a network that decodes without the data it was trained on."""

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
from bitsback.data.settings import AnyFeatures, DataSettings, registry
from bitsback.errors import FileError
from bitsback.formats._exact_outputs import BATCH
from bitsback.formats._size_limits import check_data
from bitsback.formats.config_text import take_settings
from bitsback.formats.config_tree import MODEL_SECTIONS
from bitsback.formats.container import BitReader, read_file, unseal
from bitsback.formats.message.header import MESSAGE
from bitsback.formats.model_file._codec import Decoded, FilePart, ModelCodec, codec_of
from bitsback.formats.model_file._head import EmptyModel, Tree, take_side
from bitsback.formats.model_file._input_kinds import InputKinds
from bitsback.formats.model_file._tuning import FIXED_LOG_STD
from bitsback.inputs import Inputs, check_channels, rows, split
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.posteriors import GaussianPosterior

__all__ = ["LoadedModel", "decode", "load", "write_unpacked"]


class LoadedModel(nn.Module):
    """Decoded model file: a network with one number per weight, its likelihood and its preprocessing.

    Calling it maps the network's inputs to its outputs; :meth:`predict` starts from inputs as they are stored.

    Attributes:
        config: configuration in the file; its data section describes how the inputs were made.
        tree: the same settings as JSON values, as the file holds them.
        codec: name of the kind of file.
        model: the network; posterior means are the decoded weights.
        likelihood: the likelihood, with its learned numbers.
        rows: largest number of examples in one forward pass; smaller if activations are large.
    """

    def __init__(
        self, config: Config, tree: Tree, codec: str, model: BayesianModel, likelihood: Likelihood, scaling: Preprocessing
    ) -> None:
        super().__init__()
        self.config, self.tree, self.codec = config, tree, codec
        self.model, self.likelihood, self._scaling = model.eval(), likelihood, scaling
        self.model.likelihood = likelihood
        self._parts: Callable[[], list[FilePart]] = list
        self.rows = BATCH

    @property
    def weight_count(self) -> int:
        """Return the number of coded weights."""
        return sum(weight.posterior.numel for weight in self.model.weights)

    @cached_property
    def parts(self) -> list[FilePart]:
        """Return the parts of the file with their bits; they sum to the size of the file."""
        return self._parts()

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the network's outputs (n, ...) for preprocessed inputs (n, ...)."""
        with self.model.mean():
            return self.model.outputs(inputs)

    def data_settings(self) -> DataSettings:
        """Return how a file of inputs is read, as far as the model file says it; the training data may be elsewhere.

        Raises:
            FileError: if it says so wrongly.
        """
        data = self.tree.get("data", {})
        if data.get("kind") not in list(registry) or "path" not in registry[data["kind"]].model_fields:
            return self.config.data
        try:
            return registry[data["kind"]].model_validate({**data, "path": Path()})
        except ValidationError as error:
            raise FileError("the file does not say how its inputs are read; it is damaged") from error

    @property
    def preprocessing(self) -> Preprocessing:
        """Return the map from stored inputs to the network's inputs.

        Features that were fitted to training inputs are fitted to them again.

        Raises:
            FileError: if the features cannot be read, or need training inputs whose location is unknown.
        """
        data = self.tree.get("data", {})
        scaling = replace(self._scaling, fraction_bits=data.get("fraction_bits"))
        if data.get("features") is None:
            return scaling
        try:
            features = TypeAdapter(AnyFeatures).validate_python(data["features"])
        except ValidationError as error:  # from_tree drops, unvalidated, a data section whose paths are unknown
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
    def outputs(self, inputs: Inputs) -> Tensor:
        """Return the network's outputs (n, ...) for inputs as they are stored, (n, ...).

        Raises:
            FileError: if the inputs have a shape that the network does not take.
        """
        kinds = InputKinds(self.tree["inputs"])
        if not kinds.is_one_tensor or not isinstance(inputs, Tensor):
            return self._in_batches(kinds.fitted(inputs))
        if self.tree.get("whole_inputs"):
            prepared = inputs.long()
        else:
            prepared = self.preprocessing(inputs if inputs.is_floating_point() else inputs.float())
        wanted = tuple(self.tree["inputs"])
        if tuple(prepared.shape[1:]) != wanted and not self.tree.get("padded"):
            check_channels(prepared.shape[1:], wanted)
            if prepared.shape[1:].numel() != torch.Size(wanted).numel() or not prepared.ndim:
                raise FileError(f"the model takes inputs of shape {wanted}, got {tuple(prepared.shape[1:])}; give such inputs")
            prepared = prepared.reshape(len(prepared), *wanted)
        return self._in_batches(prepared)

    def _in_batches(self, prepared: Inputs) -> Tensor:
        """Return the outputs for prepared inputs; a network that takes whole batches gets them as one."""
        if "rows" in self.tree or rows(prepared) <= self.rows:
            return self(prepared)
        return torch.cat([self(part) for part in split(prepared, self.rows)])

    @torch.no_grad()
    def predict(self, inputs: Inputs) -> Tensor:
        """Return predictive means (n, ...), probabilities for classes, for inputs as they are stored, (n, ...)."""
        return self.likelihood.predict(self.outputs(inputs))

    @property
    def class_names(self) -> tuple[int | str, ...] | None:
        """Return the names of the classes; None if they are 0, 1, 2, ..."""
        return getattr(self.likelihood, "names", None)

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights and statistics by name, float32 copies on the CPU."""
        named: dict[str, Tensor] = {weight.name: weight.posterior.mean for weight in self.model.weights}
        named |= dict(self.model.deterministic()) | dict(self.model.statistics())
        named |= {f"likelihood.{name}": value for name, value in self.likelihood.values().items()}
        return {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in named.items()}


def decode(content: bytes, what: str, locations: Sequence[str] = ()) -> LoadedModel:
    """Decode the bytes of a model file.

    Args:
        content: the whole file.
        what: name of the file in error messages.
        locations: as in :func:`load`.

    Returns:
        the decoded network.

    Raises:
        FileError: if the bytes are not an intact model file.
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
            if isinstance(weight.posterior, GaussianPosterior):  # so narrow that draws equal the mean
                weight.posterior.log_std.fill_(FIXED_LOG_STD)
    loaded = LoadedModel(empty.config, tree, str(kind), empty.model, empty.likelihood, empty.scaling)
    learned = [FilePart(name, tensor.numel() * grid.bits_each) for name, tensor, grid in side.slots]
    frame_bits = 8 * (len(content) - len(contents))
    loaded._parts = _Parts(8 * len(content), frame_bits, settings_bits, learned, head_bits, codec, decoded)
    loaded.rows = empty.model.evaluation_batch = empty.rows
    return loaded


@dataclass(frozen=True)
class _Parts:
    """Sizes from which the parts of a file are computed, when they are first asked for."""

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
    """Write ``model.safetensors`` and ``config.yaml``.

    Args:
        loaded: a decoded file.
        directory: a new directory.
    """
    written = [name for name in (*MODEL_SECTIONS, "seed") if name in loaded.tree or name == "seed"]
    with whole_directory(directory) as staging:
        write_tensors(staging / "model.safetensors", loaded.tensors(), {})
        write_text(staging / "config.yaml", to_yaml(loaded.config, sections=written))


def load(path: str | Path, locations: str | Sequence[str] = ()) -> LoadedModel:
    """Read a model file.

    Args:
        path: a file that ``bitsback pack`` or :func:`bitsback.save` wrote.
        locations: one or more places on this machine, such as ``"data.root=DIR"`` if the preprocessing needs the training
            inputs, and ``"network.factory=package.module:function"``: code named in a file is never executed without this
            explicit opt-in.

    Returns:
        the decoded network.

    Raises:
        FileError: if the file is empty, foreign, of a later version, truncated, extended or damaged.
    """
    given = [locations] if isinstance(locations, str) else locations
    return decode(read_file(Path(path)), str(path), given)
