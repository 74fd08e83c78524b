"""Networks in YAML: a list of torch.nn layers by name, or a factory in a Python module."""

import inspect
import json
from abc import abstractmethod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from bitsback.atomic_io import read_tensors
from bitsback.errors import ConfigError, brief, near_miss
from bitsback.factories import FactoryName, made_by
from bitsback.layers import SmoothConv2d
from bitsback.registry import FilePath, Settings

INFERRED = {
    "in_features": -1,
    "in_channels": 1,
    "num_features": 1,
    "num_channels": 1,
    "normalized_shape": -1,
    "input_size": -1,
    "embed_dim": -1,
}
"""Constructor arguments that can be read off the layer's input: name to the axis that has the size."""

OWN_LAYERS: dict[str, type[nn.Module]] = {"SmoothConv2d": SmoothConv2d}

LayerSpec = str | dict[str, dict[str, Any] | None]


class Network(nn.Sequential):
    """Layers in a row; of a layer that returns several things (a recurrent one), the first goes on."""

    def forward(self, value: Tensor) -> Tensor:
        for layer in self:
            value = layer(value)
            value = value[0] if isinstance(value, tuple) else value
        return value


def layer_kinds() -> dict[str, type[nn.Module]]:
    """The layers that can be named in YAML: every module class of torch.nn that is not a container or a loss, and our own."""
    found = {name: kind for name, kind in vars(nn).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    containers = {"Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Container"}
    return {name: kind for name, kind in found.items() if name not in containers and not name.endswith("Loss")} | OWN_LAYERS


def _split_spec(spec: LayerSpec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    (name, arguments), *_ = spec.items()
    return name, dict(arguments or {})


def _means_of_run(network: nn.Module, tensors: dict[str, Tensor], weights: list[str]) -> dict[str, Tensor]:
    """A state dict for the network out of a run's posterior file: means, deterministic weights and statistics."""
    inside = {f"{name}.{part}" for name in weights for part in ("mean", "std", "prior_mean")}
    state = {name: tensor for name, tensor in tensors.items() if name not in inside and not name.startswith("likelihood.")}
    for name in weights:
        state[name] = tensors[f"{name}.mean"]
    return state


class NetworkSettings(Settings):
    """What every network can be told."""

    kind: str
    pretrained: FilePath | None = Field(
        None, description="where to start: a safetensors file of a state_dict, or an earlier run, whose means are taken"
    )

    @abstractmethod
    def build(self, inputs: Tensor, outputs: int) -> nn.Module:
        """The network for inputs (n, ...) like these; ``outputs`` is how many it needs where it does not say so itself."""

    def declared_outputs(self, inputs: Tensor) -> int | None:
        """How many outputs the network has whatever the targets are; None where it takes as many as are needed, or fails."""
        try:
            with torch.no_grad():
                output = self.build(inputs, 1).eval()(inputs[:2])
        except Exception:  # whatever the user's network raises: it will raise it again where it is built
            return None
        return int(output.shape[1]) if isinstance(output, Tensor) and output.ndim == 2 else None

    def finish(self, network: nn.Module) -> nn.Module:
        """Load the pretrained weights, if any."""
        if self.pretrained is not None:
            file = self.pretrained / "posterior.safetensors" if self.pretrained.is_dir() else self.pretrained
            tensors, metadata = read_tensors(file)
            try:
                if "priors" in metadata:
                    tensors = _means_of_run(network, tensors, list(json.loads(metadata["priors"])))
            except (KeyError, ValueError, TypeError, RecursionError) as error:
                raise ConfigError(
                    f"network.pretrained: {self.pretrained} does not say which of its tensors are means; give a finished run"
                ) from error
            try:
                loaded = network.load_state_dict(tensors, strict=False)
            except RuntimeError as error:
                raise ConfigError(f"network.pretrained: {self.pretrained} does not fit the network: {brief(error)}") from error
            needed = {name for name, _ in network.named_parameters()}
            wrong = sorted(needed & set(loaded.missing_keys)) + sorted(loaded.unexpected_keys)
            if wrong:
                raise ConfigError(f"network.pretrained: {self.pretrained} does not fit the network: {brief(', '.join(wrong))}")
        return network


class SequentialSettings(NetworkSettings):
    """torch.nn layers by name, in a row; input sizes are inferred, and the last Linear's output size too."""

    kind: Literal["sequential"] = "sequential"
    layers: tuple[LayerSpec, ...] = Field(min_length=1, description="names, or one-entry mappings of a name to its arguments")

    @field_validator("layers")
    @classmethod
    def _known(cls, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        kinds = layer_kinds()
        for index, spec in enumerate(layers):
            if isinstance(spec, dict) and len(spec) != 1:
                raise ValueError(f"layer {index} must be a name or one `Name: {{arguments}}`, got keys {list(spec)}")
            name, arguments = _split_spec(spec)
            if name not in kinds:
                raise ValueError(f"layer {index}: torch.nn has no layer '{name}'{near_miss(name, kinds)}")
            allowed = set(inspect.signature(kinds[name].__init__).parameters) - {"self"}
            variadic = "kwargs" in allowed or "args" in allowed
            for key in arguments:
                if key not in allowed and not variadic:
                    hint = f"{near_miss(key, allowed)}; allowed: {', '.join(sorted(allowed))}"
                    raise ValueError(f"layer {index}: {name} has no argument '{key}'{hint}")
        return layers

    def declared_outputs(self, inputs: Tensor) -> int | None:
        kind, arguments = _split_spec(self.layers[-1])
        if kind == "Linear":
            return arguments.get("out_features")
        return super().declared_outputs(inputs)

    @torch.no_grad()
    def build(self, inputs: Tensor, outputs: int) -> nn.Module:
        """The network for inputs (n, ...) like these and so many outputs; raises ConfigError naming the layer at fault."""
        counts: dict[str, int] = {}
        network, value = Network(), inputs[:2]
        for index, spec in enumerate(self.layers):
            kind, arguments = _split_spec(spec)
            number = counts[kind] = counts.get(kind, 0) + 1
            if kind == "Linear" and index == len(self.layers) - 1:
                arguments.setdefault("out_features", outputs)
            try:
                layer = _build_layer(layer_kinds()[kind], arguments, value)
                network.add_module(f"{kind.lower()}{number}", layer)
                value = layer.eval()(value)
            except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
                reason = str(error).splitlines()[0]
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(f"network.layers[{index}] ({kind}) fails on input {shape}: {reason}") from error
            value = value[0] if isinstance(value, tuple) else value
        return self.finish(network.train())


def _build_layer(kind: type[nn.Module], arguments: dict[str, Any], value: Tensor) -> nn.Module:
    parameters = inspect.signature(kind.__init__).parameters
    wanted = set(parameters) | ({"input_size"} if issubclass(kind, nn.RNNBase) else set())
    inferred = {name: value.shape[axis] for name, axis in INFERRED.items() if name in wanted and name not in arguments}
    if issubclass(kind, nn.RNNBase):
        arguments = {"batch_first": True, **arguments}
    return kind(**{**inferred, **arguments})


class FactorySettings(NetworkSettings):
    """A function in an importable Python module that returns an nn.Module."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")

    def build(self, inputs: Tensor, outputs: int) -> nn.Module:
        """Call the factory; raises ConfigError when it cannot be imported, fails, or returns no module."""
        network: nn.Module = made_by(self.factory, "network.factory", nn.Module, "an nn.Module", **self.arguments)
        return self.finish(network)


class GivenNetworkSettings(NetworkSettings):
    """A network that a training in Python was given; whoever opens the run gives it again: load_run(RUN, network=...)."""

    kind: Literal["given"] = "given"
    of: str = Field("Module", description="class of the network")

    def build(self, inputs: Tensor, outputs: int) -> nn.Module:
        """Raise ConfigError: nobody knows how to make it."""
        raise ConfigError(
            f"the network, a {self.of}, was handed over in Python, and the configuration does not say how it is made; open the "
            "run with bitsback.load_run(RUN, network=..., dataset=...)"
        )


AnyNetworkSettings = Annotated[SequentialSettings | FactorySettings | GivenNetworkSettings, Field(discriminator="kind")]
