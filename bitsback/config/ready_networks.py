"""Networks that need no code: settings of each kind; sizes are inferred from the inputs and from what the likelihood needs."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from bitsback.config.network import NetworkSettings, SequentialSettings

if TYPE_CHECKING:
    from torch import nn

    from bitsback.config.layer_spec import LayerSpec
    from bitsback.inputs import Inputs

__all__ = [
    "LSTMSettings",
    "MLPSettings",
    "ReadySettings",
    "ResNetSettings",
    "TimmSettings",
    "TransformerSettings",
    "ViTSettings",
]

Size = Annotated[int, Field(ge=1, le=1 << 20)]
"""Number of units, values or tokens."""

Layers = Annotated[int, Field(ge=1, le=256)]
"""Number of layers or blocks."""

Per = Literal["position", "sequence"]
"""Positions of a sequence at which a network has outputs: all, or the last."""


class ReadySettings(NetworkSettings):
    """Base class of the settings of networks of :mod:`bitsback.networks`."""

    def build(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Build the network.

        Args:
            inputs: (n, ...), examples of the inputs.
            outputs: number of outputs.

        Returns:
            the network in train mode, with its pretrained weights, if any.

        Raises:
            ConfigError: if the network does not take such inputs, or the pretrained weights do not fit.
        """
        from bitsback.config.build_network import started

        return started(self.made(inputs, outputs), self.pretrained)

    @property
    @abstractmethod
    def depth(self) -> int:
        """Return the number of layers that are made, however little each of them does."""

    @property
    def least_weights(self) -> int:
        """Return a lower bound of the number of weights, for any inputs and outputs, without making the network."""
        return 0

    @abstractmethod
    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network with new weights; raises ConfigError for inputs that it does not take.

        Args:
            inputs: (n, ...), examples of the inputs.
            outputs: number of outputs.

        Returns:
            the network.
        """

    def declared_outputs(self, inputs: "Inputs", target: Sequence[int] = ()) -> int | None:
        """Return None: the network has as many outputs as are needed.

        Args:
            inputs: not used.
            target: not used.

        Returns:
            None.
        """


class MLPSettings(ReadySettings):
    """Dense layers: over a tensor, flattened, or over numbers and embeddings of categories, if the data give these two."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Size, ...] = Field((64, 64), max_length=256, description="units of each hidden layer; []: a linear network")
    activation: Literal["ELU", "GELU", "LeakyReLU", "ReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Tanh"] = Field(
        "ReLU", description="layer of torch.nn behind each hidden layer"
    )
    categories: tuple[Size, ...] | None = Field(
        None,
        max_length=4000,
        description="number of values of each column of categories, for data that have such columns; each gets an embedding",
    )
    embedding: Size | None = Field(
        None, description="width of each embedding; default: half of the number of values, rounded up, at most 50"
    )
    skip: bool = Field(
        False,
        description="add a linear layer from inputs to outputs: where hidden layers do not pay, they cost little, and a linear "
        "network remains",
    )

    @property
    def depth(self) -> int:
        """Return the number of dense layers and embeddings."""
        return len(self.hidden) + 1 + len(self.categories or ())

    @property
    def least_weights(self) -> int:
        """Return the number of weights between hidden layers, and one for each value of a category."""
        return sum(size * units for size, units in pairwise(self.hidden)) + sum(self.categories or ())

    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network.

        Args:
            inputs: (n, ...), or a dict of numbers (n, k), categories (n, c), or both.
            outputs: number of outputs.

        Returns:
            a row of torch's layers for a tensor, unless there is a skip; else a :class:`bitsback.networks.MLP`.

        Raises:
            ConfigError: if the network does not take such inputs.
        """
        from bitsback.config._input_shapes import columns_of, flat

        if self.categories is None and flat(inputs) and not self.skip:
            rows: list[LayerSpec] = ["Flatten"]
            for units in self.hidden:
                rows += [{"Linear": {"out_features": units}}, self.activation]
            return SequentialSettings(layers=(*rows, "Linear")).build(inputs, outputs)
        from bitsback.networks import MLP

        numbers, categories = columns_of(inputs, self.categories)
        return MLP(numbers, categories, outputs, self.hidden, self.activation, self.embedding, self.skip)


class LSTMSettings(ReadySettings):
    """Long short-term memory over tokens (n, L), whole numbers, or over vectors (n, L, k); a state sees what came before."""

    kind: Literal["lstm"] = "lstm"
    width: Size = Field(128, description="units of each layer")
    layers: Layers = Field(1, description="number of layers")
    embedding: Size = Field(64, description="width of a token's embedding; not used for vectors")
    vocabulary: Size | None = Field(None, description="number of distinct tokens of the inputs; default: number of outputs")
    per: Per = Field(
        "position", description="position: outputs at each position of the sequence; sequence: one set, at its last position"
    )

    @property
    def depth(self) -> int:
        """Return the number of recurrent layers."""
        return self.layers

    @property
    def least_weights(self) -> int:
        """Return the number of weights from states to gates."""
        return 4 * self.width**2 * (2 * self.layers - 1)

    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network.

        Args:
            inputs: (n, L), tokens, or (n, L, k), vectors.
            outputs: number of outputs.

        Returns:
            a :class:`bitsback.networks.LSTM`.

        Raises:
            ConfigError: if the inputs are neither.
        """
        from bitsback.config._input_shapes import vectors_of
        from bitsback.networks import LSTM

        numbers = vectors_of(inputs, self.kind)
        known, embedding = (numbers, 0) if numbers else (self.vocabulary or outputs, self.embedding)
        return LSTM(known, outputs, embedding, self.width, self.layers, self.per)


class _AttentionSettings(ReadySettings):
    """Settings of networks of attention."""

    heads: Size = Field(4, description="attention heads of each layer; they divide width")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        width = getattr(self, "width", self.heads)
        if width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {width}; set width to a multiple of heads")
        return self


class TransformerSettings(_AttentionSettings):
    """Causal transformer over tokens (n, L), whole numbers, or over vectors (n, L, k), with learned positions."""

    kind: Literal["transformer"] = "transformer"
    width: Size = Field(128, description="numbers of a position's state; the dense layers are four times as wide")
    layers: Layers = Field(2, description="number of layers")
    vocabulary: Size | None = Field(None, description="number of distinct tokens of the inputs; default: number of outputs")
    context: Size | None = Field(None, description="largest number of positions; default: that of the training examples")
    per: Per = Field(
        "position", description="position: outputs at each position of the sequence; sequence: one set, at its last position"
    )

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return self.layers

    @property
    def least_weights(self) -> int:
        """Return the number of weights of attention, of dense layers and of positions that are set."""
        return 12 * self.width**2 * self.layers + (self.context or 0) * self.width

    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network.

        Args:
            inputs: (n, L), tokens, or (n, L, k), vectors.
            outputs: number of outputs.

        Returns:
            a :class:`bitsback.networks.Transformer`.

        Raises:
            ConfigError: if the inputs are neither.
        """
        from bitsback.config._input_shapes import length_of, vectors_of
        from bitsback.networks import Transformer

        numbers = vectors_of(inputs, self.kind)
        known, context = numbers or self.vocabulary or outputs, self.context or length_of(inputs)
        sizes = (self.width, self.layers, self.heads)
        return Transformer(known, outputs, context, *sizes, self.per, of_tokens=not numbers)


class ResNetSettings(ReadySettings):
    """Residual network of 6 ``blocks`` + 2 layers for small images, channels first (He et al. 2016, section 4.2)."""

    kind: Literal["resnet"] = "resnet"
    blocks: Layers = Field(1, description="residual blocks of each of the three stages; 3: ResNet-20")
    width: Size = Field(16, description="channels of the first stage; the others have two and four times as many")
    norm: Literal["group", "batch"] = Field(
        "group",
        description="normalisation behind each convolution: over groups of channels of an image, or over a batch, whose "
        "running statistics are charged",
    )

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return 6 * self.blocks + 2

    @property
    def least_weights(self) -> int:
        """Return the number of weights of the 3 x 3 convolutions, less one of each stage; stages are 1, 2 and 4 widths wide."""
        return 9 * (1 + 4 + 16) * self.width**2 * (2 * self.blocks - 1)

    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network.

        Args:
            inputs: (n, channels, height, width), real numbers.
            outputs: number of outputs.

        Returns:
            a :class:`bitsback.networks.ResNet`.

        Raises:
            ConfigError: if the inputs are no images.
        """
        from bitsback.config._input_shapes import image_of
        from bitsback.networks import ResNet

        channels, _, _ = image_of(inputs, self.kind)
        return ResNet(channels, outputs, self.blocks, self.width, self.norm)


class ViTSettings(_AttentionSettings):
    """Vision transformer for small images, channels first: square patches, learned positions, the mean over patches."""

    kind: Literal["vit"] = "vit"
    patch: Size | None = Field(
        None,
        description="side of a patch in pixels; default: the smallest from 2 that divides height and width into at most 64 "
        "patches",
    )
    width: Size = Field(64, description="numbers of a patch's state; the dense layers are four times as wide")
    layers: Layers = Field(4, description="number of layers")

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return self.layers

    @property
    def least_weights(self) -> int:
        """Return the number of weights of attention and of dense layers."""
        return 12 * self.width**2 * self.layers

    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network.

        Args:
            inputs: (n, channels, height, width), real numbers.
            outputs: number of outputs.

        Returns:
            a :class:`bitsback.networks.ViT`.

        Raises:
            ConfigError: if the inputs are no images, or cannot be cut into such patches.
        """
        from bitsback.config._input_shapes import image_of, patch_of
        from bitsback.networks import ViT

        channels, *size = image_of(inputs, self.kind)
        patch = patch_of(size[0], size[1], self.patch)
        return ViT((size[0], size[1]), channels, outputs, patch, self.width, self.layers, self.heads)


class TimmSettings(ReadySettings):
    """Image network of the library timm by name, with new weights; channels first; needs the extra ``vision``."""

    kind: Literal["timm"] = "timm"
    model: str = Field(
        pattern=r"^[a-z0-9_]+$",
        max_length=100,
        description="name of the architecture, such as resnet18 or vit_tiny_patch16_224",
    )
    arguments: dict[str, bool | Annotated[int, Field(ge=0, le=4096)] | Annotated[float, Field(ge=-4096, le=4096)]] = Field(
        default_factory=dict, description="numbers and switches of the architecture, such as depth, embed_dim or drop_rate"
    )

    @model_validator(mode="after")
    def _own_weights(self) -> Self:
        for name in ("pretrained", "num_classes", "in_chans"):
            if name in self.arguments:
                raise ValueError(
                    f"timm's argument {name} cannot be set: classes and channels come from the data, and weights from "
                    "network.pretrained, a file"
                )
        return self

    @property
    def depth(self) -> int:
        """Return the largest number among the arguments, of which one may be a number of layers."""
        return max([1, *(value for value in self.arguments.values() if isinstance(value, int))])

    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network.

        Args:
            inputs: (n, channels, height, width), real numbers.
            outputs: number of outputs.

        Returns:
            a network of timm.

        Raises:
            ConfigError: if the inputs are no images, or timm has no such network.
            MissingExtraError: if timm is not installed.
        """
        from bitsback.config._input_shapes import image_of
        from bitsback.config._timm import build_timm

        return build_timm(self.model, self.arguments, image_of(inputs, self.kind), outputs)
