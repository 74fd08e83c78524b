"""Networks in YAML: a list of torch.nn layers by name, or a factory in a Python module."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from bitsback.config.layer_spec import LayerSpec, split_spec
from bitsback.errors import ConfigError
from bitsback.factories import FactoryName
from bitsback.registry import FilePath, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "AnyNetworkSettings",
    "FactorySettings",
    "GivenNetworkSettings",
    "NetworkSettings",
    "SequentialSettings",
]


class NetworkSettings(Settings):
    """What every network can be told."""

    kind: str
    pretrained: FilePath | None = Field(
        None, description="where to start: a safetensors file of a state_dict, or an earlier run, whose means are taken"
    )

    @abstractmethod
    def build(self, inputs: "Tensor", outputs: int) -> "nn.Module":
        """The network for inputs (n, ...) like these; ``outputs`` is how many it needs where it does not say so itself."""

    def declared_outputs(self, inputs: "Tensor") -> int | None:
        """How many outputs the network has whatever the targets are; None where it takes as many as are needed, or fails."""
        from bitsback.config.build_network import outputs_for_one_target

        return outputs_for_one_target(self, inputs)

    def check_layers(self) -> None:
        """Raise ConfigError where torch.nn has no such layer, or the layer no such argument."""


class SequentialSettings(NetworkSettings):
    """torch.nn layers by name, in a row; input sizes are inferred, and the last Linear's output size too."""

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
        from bitsback.config.build_network import check_layers

        check_layers(self.layers)

    def declared_outputs(self, inputs: "Tensor") -> int | None:
        kind, arguments = split_spec(self.layers[-1])
        if kind == "Linear":
            return arguments.get("out_features")
        return super().declared_outputs(inputs)

    def build(self, inputs: "Tensor", outputs: int) -> "nn.Module":
        """The network for inputs (n, ...) like these and so many outputs; raises ConfigError naming the layer at fault."""
        from bitsback.config.build_network import build_sequential

        return build_sequential(self, inputs, outputs)


class FactorySettings(NetworkSettings):
    """A function in an importable Python module that returns an nn.Module."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")

    def build(self, inputs: "Tensor", outputs: int) -> "nn.Module":
        """Call the factory; raises ConfigError when it cannot be imported, fails, or returns no module."""
        from bitsback.config.build_network import build_factory

        return build_factory(self)


class GivenNetworkSettings(NetworkSettings):
    """A network that a training in Python was given; whoever opens the run gives it again: load_run(RUN, network=...)."""

    kind: Literal["given"] = "given"
    of: str = Field("Module", description="class of the network")

    def build(self, inputs: "Tensor", outputs: int) -> "nn.Module":
        """Raise ConfigError: nobody knows how to make it."""
        raise ConfigError(
            f"the network, a {self.of}, was handed over in Python, and the configuration does not say how it is made; open the "
            "run with bitsback.load_run(RUN, network=..., dataset=...)"
        )


AnyNetworkSettings = Annotated[SequentialSettings | FactorySettings | GivenNetworkSettings, Field(discriminator="kind")]
