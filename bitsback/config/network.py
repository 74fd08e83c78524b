"""Networks in YAML: a list of torch.nn layers by name, or a factory in a Python module."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from bitsback.config.layer_spec import LayerSpec, split_spec
from bitsback.errors import ConfigError
from bitsback.factories import FactoryName
from bitsback.registry import FilePath, Settings

if TYPE_CHECKING:
    from torch import nn

    from bitsback.inputs import Inputs

__all__ = [
    "FactorySettings",
    "GivenNetworkSettings",
    "NetworkSettings",
    "SequentialSettings",
]


class NetworkSettings(Settings):
    """Base class of network settings."""

    kind: str
    pretrained: FilePath | None = Field(
        None, description="initial weights: a safetensors file of a state_dict, or an earlier run, whose means are used"
    )

    output: int | str = Field(
        "auto",
        description="output of the network that the likelihood reads: a name, an index, or auto: a tensor as it is, the "
        "logits of a mapping, the first of a tuple",
    )

    @abstractmethod
    def build(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Build the network.

        Args:
            inputs: (n, ...), examples of the inputs.
            outputs: number of outputs, for a network that does not set it itself.

        Returns:
            the network.
        """

    def declared_outputs(self, inputs: "Inputs", target: Sequence[int] = ()) -> int | None:
        """Return the number of classes for which the network sets outputs itself.

        Args:
            inputs: (n, ...), examples of the inputs.
            target: shape of one target.

        Returns:
            the number; None if the network has as many outputs as are needed, fails, or its outputs do not tell.
        """
        from bitsback.config.build_network import outputs_for_one_target

        return outputs_for_one_target(self, inputs, target)

    def check_layers(self) -> None:
        """Raise ConfigError if a named layer, or one of its arguments, does not exist in torch.nn."""


class SequentialSettings(NetworkSettings):
    """torch.nn layers by name, in sequence; input sizes are inferred, and so is the output size of a last Linear."""

    kind: Literal["sequential"] = "sequential"
    layers: tuple[LayerSpec, ...] = Field(min_length=1, description="names, or one-entry mappings of a name to its arguments")

    @field_validator("layers")
    @classmethod
    def _one_each(cls, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        for index, spec in enumerate(layers):
            if isinstance(spec, dict) and len(spec) != 1:
                raise ValueError(f"layer {index} must be a name or one `Name: {{arguments}}`, got keys {list(spec)}")
        return layers

    def check_layers(self) -> None:
        """Raise ConfigError for an unknown layer or argument."""
        from bitsback.config.build_network import check_layers

        check_layers(self.layers)

    def declared_outputs(self, inputs: "Inputs", target: Sequence[int] = ()) -> int | None:
        """Return ``out_features`` of a last Linear; of other networks, the classes found by a trial.

        Args:
            inputs: (n, ...), examples of the inputs.
            target: shape of one target.

        Returns:
            the number, or None.
        """
        kind, arguments = split_spec(self.layers[-1])
        if kind == "Linear":
            return arguments.get("out_features")
        return super().declared_outputs(inputs, target)

    def build(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Build the network with inferred sizes.

        Args:
            inputs: (n, ...), examples of the inputs.
            outputs: output size of a last Linear layer that does not give one.

        Returns:
            the network.

        Raises:
            ConfigError: naming the layer that cannot be built or applied.
        """
        from bitsback.config.build_network import build_sequential

        return build_sequential(self, inputs, outputs)


class FactorySettings(NetworkSettings):
    """A function in an importable Python module that returns an nn.Module."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")

    def build(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Call the factory.

        Args:
            inputs: not used.
            outputs: not used: the factory decides.

        Returns:
            the network.

        Raises:
            ConfigError: if the factory cannot be imported, fails, or does not return an nn.Module.
        """
        from bitsback.config.build_network import build_factory

        return build_factory(self)


class GivenNetworkSettings(NetworkSettings):
    """A network that was passed in from Python; to open the run, pass it again: load_run(RUN, network=...)."""

    kind: Literal["given"] = "given"
    of: str = Field("Module", description="class of the network")

    def build(self, inputs: "Inputs", outputs: int) -> "nn.Module":
        """Refuse: the configuration does not describe the network.

        Args:
            inputs: not used.
            outputs: not used.

        Returns:
            nothing.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"the network, a {self.of}, was handed over in Python, and the configuration does not say how it is made; open the "
            "run with bitsback.load_run(RUN, network=..., dataset=...)"
        )
