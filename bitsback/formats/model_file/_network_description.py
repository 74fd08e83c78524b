"""Describe a network that was made in Python as a list of torch's layers, for the settings of a file."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from bitsback.config import Experiment
from bitsback.config.build_network import layer_kinds
from bitsback.config.layer_spec import LayerSpec
from bitsback.config.network import GivenNetworkSettings, SequentialSettings
from bitsback.config.schema import BayesianSettings
from bitsback.errors import LayerError
from bitsback.model import BayesianModel

__all__ = ["describe", "described", "described_network"]


def described(experiment: Experiment) -> Experiment:
    """Return the experiment with settings that describe its network, if the network was given in Python.

    Raises:
        LayerError: if the network is not a sequence of torch's layers.
    """
    if not isinstance(experiment.config.network, GivenNetworkSettings):
        return experiment
    model = experiment.model
    network, exclude = described_network(model)
    update = {"network": network, "bayesian": BayesianSettings(exclude=exclude)}
    return replace(experiment, config=experiment.config.model_copy(update=update))


def described_network(model: BayesianModel) -> tuple[SequentialSettings, tuple[str, ...]]:
    """Return settings of a network, and the names of its parameters without posterior, as YAML would name them.

    Raises:
        LayerError: if the network is not a sequence of torch's layers, or priors are overridden by name.
    """
    network = SequentialSettings(layers=tuple(describe(model.network)), output=model.output)
    if model.override_settings:
        raise LayerError("prior overrides go by the network's own names; give factory='package.module:function' to keep them")
    yaml_name = _names_in_yaml(model.network)
    return network, tuple(yaml_name(name) for name, _ in model.deterministic())


def describe(network: nn.Module) -> list[LayerSpec]:
    """Return the layers of an ``nn.Sequential`` as YAML writes them.

    Returns:
        one entry for each layer: a name, or a name with its arguments.

    Raises:
        LayerError: if the network is not an ``nn.Sequential`` of torch's layers.

    >>> describe(nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU()))
    [{'Linear': {'in_features': 4, 'out_features': 3, 'bias': False}}, 'ReLU']
    """
    if not isinstance(network, nn.Sequential):
        raise LayerError(
            f"the file cannot describe a {type(network).__name__}; give factory='package.module:function' that makes it"
        )
    return [_describe_layer(layer) for layer in network]


def _kind(layer: nn.Module) -> type[nn.Module]:
    """Return the torch class of a layer; for layers of :mod:`bitsback.nn`, the torch class they derive from."""
    if type(layer).__module__ != "bitsback.nn":
        return type(layer)
    return next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn"))


def _names_in_yaml(network: nn.Module) -> Callable[[str], str]:
    """Return a function from parameter names to those in the network built from YAML (layers by kind and number)."""
    counts: dict[str, int] = {}
    names = {}
    for own, layer in network.named_children():
        kind = _kind(layer).__name__.lower()
        counts[kind] = counts.get(kind, 0) + 1
        names[own] = f"{kind}{counts[kind]}"
    return lambda name: ".".join([names[name.partition(".")[0]], name.partition(".")[2]])


def _describe_layer(layer: nn.Module) -> LayerSpec:
    kind = _kind(layer)
    if layer_kinds().get(kind.__name__) is not kind:
        raise LayerError(f"the file cannot describe a {kind.__name__}; give factory='package.module:function' that makes it")
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name == "bias":
            value: Any = _has_bias(layer)
        elif hasattr(layer, name):
            value = getattr(layer, name)
        else:
            continue
        value = list(value) if isinstance(value, tuple) else value
        if parameter.default is parameter.empty or value != parameter.default:
            arguments[name] = value
    return {kind.__name__: arguments} if arguments else kind.__name__


def _has_bias(layer: nn.Module) -> bool:
    return any(name.startswith("bias") and p is not None for name, p in layer._parameters.items())
