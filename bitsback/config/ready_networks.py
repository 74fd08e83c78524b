"""Networks that need no code: settings of each kind; sizes are inferred from the inputs and from what the likelihood needs."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bitsback.config.network import NetworkSettings, SequentialSettings

if TYPE_CHECKING:
    from torch import nn

    from bitsback.config.layer_spec import LayerSpec
    from bitsback.inputs import Inputs

__all__ = ["LSTMSettings", "MLPSettings", "ReadySettings"]

Size = Annotated[int, Field(ge=1, le=1 << 20)]
"""Number of units, values or tokens."""

Layers = Annotated[int, Field(ge=1, le=1000)]
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
    hidden: tuple[Size, ...] = Field((64, 64), max_length=1000, description="units of each hidden layer; []: a linear network")
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

    @property
    def depth(self) -> int:
        """Return the number of dense layers and embeddings."""
        return len(self.hidden) + 1 + len(self.categories or ())

    def made(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Make the network.

        Args:
            inputs: (n, ...), or a dict of numbers (n, k), categories (n, c), or both.
            outputs: number of outputs.

        Returns:
            a row of torch's layers for a tensor, :class:`bitsback.networks.MLP` for a dict.

        Raises:
            ConfigError: if the network does not take such inputs.
        """
        from bitsback.config._input_shapes import columns_of, flat

        if self.categories is None and flat(inputs):
            rows: list[LayerSpec] = ["Flatten"]
            for units in self.hidden:
                rows += [{"Linear": {"out_features": units}}, self.activation]
            return SequentialSettings(layers=(*rows, "Linear")).build(inputs, outputs)
        from bitsback.networks import MLP

        numbers, categories = columns_of(inputs, self.categories)
        return MLP(numbers, categories, outputs, self.hidden, self.activation, self.embedding)


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
