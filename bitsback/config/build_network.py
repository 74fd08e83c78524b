"""Build the network of a configuration from torch.nn layers by name, or by calling a factory."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitsback.atomic_io import read_tensors
from bitsback.config.layer_spec import LayerSpec, split_spec
from bitsback.errors import ConfigError, brief, near_miss
from bitsback.factories import made_by
from bitsback.inputs import Inputs, call, chosen, described
from bitsback.layers import SmoothConv2d
from bitsback.likelihoods.classes import class_count

if TYPE_CHECKING:
    from bitsback.config.network import FactorySettings, NetworkSettings, SequentialSettings

__all__ = ["Network", "build_factory", "build_sequential", "check_layers", "layer_kinds", "outputs_for_one_target", "started"]

INFERRED = {
    "in_features": -1,
    "in_channels": 1,
    "num_features": 1,
    "num_channels": 1,
    "normalized_shape": -1,
    "input_size": -1,
    "embed_dim": -1,
}
"""Constructor arguments that are inferred from the layer's input, and the axis of the input that has the size."""

OWN_LAYERS: dict[str, type[nn.Module]] = {"SmoothConv2d": SmoothConv2d}
"""Layers of this package that can be named as those of torch.nn can."""


class Network(nn.Sequential):
    """Layers in sequence; of a layer that returns a tuple (such as an RNN), the first element is passed on."""

    def forward(self, value: Tensor) -> Tensor:
        """Apply the layers in order."""
        for layer in self:
            value = layer(value)
            value = value[0] if isinstance(value, tuple) else value
        return value


def layer_kinds() -> dict[str, type[nn.Module]]:
    """Return the layers that YAML can name: module classes of torch.nn except containers and losses, and this package's own."""
    found = {name: kind for name, kind in vars(nn).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    containers = {"Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Container"}
    return {name: kind for name, kind in found.items() if name not in containers and not name.endswith("Loss")} | OWN_LAYERS


def check_layers(layers: Sequence[LayerSpec]) -> None:
    """Check names and argument names of layers.

    Raises:
        ConfigError: for the first layer with an unknown name or argument.
    """
    kinds = layer_kinds()
    for index, spec in enumerate(layers):
        name, arguments = split_spec(spec)
        where = f"network.layers: layer {index}:"
        if name not in kinds:
            raise ConfigError(f"{where} torch.nn has no layer '{name}'{near_miss(name, kinds)}")
        allowed = set(inspect.signature(kinds[name].__init__).parameters) - {"self"}
        variadic = "kwargs" in allowed or "args" in allowed
        for key in arguments:
            if key not in allowed and not variadic:
                hint = f"{near_miss(key, allowed)}; allowed: {', '.join(sorted(allowed))}"
                raise ConfigError(f"{where} {name} has no argument '{key}'{hint}")


@torch.no_grad()
def build_sequential(settings: "SequentialSettings", inputs: Inputs, outputs: int) -> nn.Module:
    """Build a network of named layers, with input sizes inferred by running each layer on two examples.

    Args:
        settings: the layers, and the weights to start from.
        inputs: (n, ...), examples of the inputs.
        outputs: output size of a last Linear layer that does not give one.

    Returns:
        the network in train mode.

    Raises:
        ConfigError: naming the layer that cannot be built or applied.
    """
    check_layers(settings.layers)
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"network.layers takes one tensor of inputs, and the data give {described(inputs)}; name a factory that returns a "
            "network which takes them: network: {kind: factory, factory: package.module:function}"
        )
    counts: dict[str, int] = {}
    network, value = Network(), inputs[:2]
    for index, spec in enumerate(settings.layers):
        kind, arguments = split_spec(spec)
        number = counts[kind] = counts.get(kind, 0) + 1
        if kind == "Linear" and index == len(settings.layers) - 1:
            arguments.setdefault("out_features", outputs)
        try:
            layer = _build_layer(layer_kinds()[kind], arguments, value)
            network.add_module(f"{kind.lower()}{number}", layer)
            value = layer.eval()(value)  # in eval mode, batch norm keeps its statistics
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
            reason = str(error).splitlines()[0]
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"network.layers[{index}] ({kind}) fails on input {shape}: {reason}") from error
        value = value[0] if isinstance(value, tuple) else value
    return started(network.train(), settings.pretrained)


def _build_layer(kind: type[nn.Module], arguments: dict[str, Any], value: Tensor) -> nn.Module:
    """Make one layer, with sizes that are not given read off its input."""
    parameters = inspect.signature(kind.__init__).parameters
    wanted = set(parameters) | ({"input_size"} if issubclass(kind, nn.RNNBase) else set())
    inferred = {name: value.shape[axis] for name, axis in INFERRED.items() if name in wanted and name not in arguments}
    if issubclass(kind, nn.RNNBase):
        arguments = {"batch_first": True, **arguments}
    return kind(**{**inferred, **arguments})


def build_factory(settings: "FactorySettings") -> nn.Module:
    """Call the factory; raises ConfigError if it cannot be imported, fails, or does not return an nn.Module."""
    network: nn.Module = made_by(settings.factory, "network.factory", nn.Module, "an nn.Module", **settings.arguments)
    return started(network, settings.pretrained)


def outputs_for_one_target(settings: "NetworkSettings", inputs: Inputs, target: Sequence[int] = ()) -> int | None:
    """Count the classes of the outputs of a network that is built for a single output.

    Args:
        settings: the network's.
        inputs: (n, ...), examples of the inputs.
        target: shape of one target.

    Returns:
        length of the only axis of the output without which it has the shape of the targets; None if the network fails or there
        is no such axis.
    """
    try:
        with torch.no_grad():
            output = chosen(call(settings.build(inputs, 1).eval(), inputs), settings.output)
    except Exception:  # any error of the user's network; it is reported when the network is built
        return None
    return class_count(output, target)


def started(network: nn.Module, pretrained: Path | None) -> nn.Module:
    """Load the pretrained weights into a network, if any.

    Args:
        network: with new weights; it is changed.
        pretrained: a safetensors file of a state_dict, or a run directory.

    Returns:
        the network.

    Raises:
        ConfigError: if the weights do not fit it.
    """
    if pretrained is not None:
        file = pretrained / "posterior.safetensors" if pretrained.is_dir() else pretrained
        tensors, metadata = read_tensors(file)
        try:
            if "priors" in metadata:
                tensors = _means_of_run(network, tensors, list(json.loads(metadata["priors"])))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"network.pretrained: {pretrained} does not say which of its tensors are means; give a finished run"
            ) from error
        try:
            loaded = network.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise ConfigError(f"network.pretrained: {pretrained} does not fit the network: {brief(error)}") from error
        needed = {name for name, _ in network.named_parameters()}
        wrong = sorted(needed & set(loaded.missing_keys)) + sorted(loaded.unexpected_keys)
        if wrong:
            raise ConfigError(f"network.pretrained: {pretrained} does not fit the network: {brief(', '.join(wrong))}")
    return network


def _means_of_run(network: nn.Module, tensors: dict[str, Tensor], weights: list[str]) -> dict[str, Tensor]:
    """Return a state dict for the network from a run's posterior file: means, deterministic weights and buffers."""
    inside = {f"{name}.{part}" for name in weights for part in ("mean", "std", "prior_mean")}
    state = {name: tensor for name, tensor in tensors.items() if name not in inside and not name.startswith("likelihood.")}
    for name in weights:
        state[name] = tensors[f"{name}.mean"]
    return state
