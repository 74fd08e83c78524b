"""save: a model that was made in Python, without a configuration, as a model file."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitsback.atomic_io import check_new_file, write_bytes
from bitsback.config import Config, Experiment
from bitsback.config.build_network import layer_kinds
from bitsback.config.coding_settings import PackSettings
from bitsback.config.given_experiment import likelihood_settings
from bitsback.config.network import FactorySettings, LayerSpec, SequentialSettings
from bitsback.config.schema import BayesianSettings
from bitsback.data import Dataset, Examples
from bitsback.errors import LayerError
from bitsback.formats.model_file.write import Packed, pack_experiment
from bitsback.likelihoods import CategoricalLikelihood, Likelihood
from bitsback.likelihoods import registry as likelihoods
from bitsback.model import BayesianModel
from bitsback.model.modes import evaluating

GIVEN = "given"


def save(
    model: BayesianModel | Experiment,
    path: str | Path,
    examples: Examples | None = None,
    *,
    likelihood: Likelihood | None = None,
    factory: str | None = None,
    arguments: dict[str, Any] | None = None,
    settings: PackSettings | None = None,
    progress: bool = True,
) -> Packed:
    """Write a model file; :func:`bitsback.load` reads it. The model ends with the weights of the file.

    Args:
        model: what :func:`bitsback.bayesianize` made, or an experiment.
        path: where the file goes.
        examples: training examples, already preprocessed; they say what inputs look like, and are what tuning trains on. Not
            needed with an experiment.
        likelihood: default: categorical, with the classes of the examples.
        factory, arguments: ``package.module:function`` that makes the network; not needed for an ``nn.Sequential`` of torch's
            layers, which the file describes itself (its layers are then named as in YAML: linear1, conv2d1, ...).
        settings: codec, budget and tuning.
        progress: show the bar.

    Raises:
        LayerError: for a network that the file cannot describe.

    >>> import torch, tempfile, bitsback
    >>> model = bitsback.bayesianize(torch.nn.Sequential(torch.nn.Linear(4, 3)), prior="laplace")
    >>> examples = Examples(torch.randn(50, 4), torch.randint(3, (50,)))
    >>> place = tempfile.mkdtemp() + "/model.bb"
    >>> packed = save(model, place, examples, progress=False)
    >>> bitsback.load(place)(examples.inputs).shape
    torch.Size([50, 3])
    """
    check_new_file(Path(path))
    experiment = model if isinstance(model, Experiment) else _experiment(model, examples, likelihood, factory, arguments or {})
    packed = pack_experiment(experiment, settings, progress=progress)
    write_bytes(Path(path), packed.content)
    return packed


def _experiment(
    model: BayesianModel,
    examples: Examples | None,
    likelihood: Likelihood | None,
    factory: str | None,
    arguments: dict[str, Any],
) -> Experiment:
    if examples is None:
        raise LayerError("give examples: save(model, path, Examples(inputs, targets)); they say what the inputs look like")
    if likelihood is None:
        with torch.no_grad(), evaluating(model.network), model.mean():
            likelihood = CategoricalLikelihood(model(examples.inputs[:2]).shape[-1])
        likelihood.check_targets(examples.targets, examples.name)
    network: SequentialSettings | FactorySettings
    if factory is None:
        network, exclude = _described(model)
    else:
        network = FactorySettings(factory=factory, arguments=arguments)
        exclude = tuple(name for name, _ in model.deterministic())
    config = Config(
        network=network,
        prior=model.prior_settings,
        prior_overrides=model.override_settings,
        bayesian=BayesianSettings(exclude=exclude),
        likelihood=likelihoods[likelihood.kind].model_validate(likelihood_settings(likelihood)),
    )
    classes = likelihood.classes if isinstance(likelihood, CategoricalLikelihood) else None
    return Experiment(config, Dataset("in memory", examples, None, classes, in_memory=True), model, likelihood)


def described(experiment: Experiment) -> Experiment:
    """Return the experiment with a network that a file can describe, where its own was given in Python.

    Raises:
        LayerError: for a network that is no row of torch's layers.
    """
    if experiment.config.network.kind != GIVEN:
        return experiment
    model = experiment.model
    network, exclude = _described(model)
    update = {"network": network, "bayesian": BayesianSettings(exclude=exclude)}
    return replace(experiment, config=experiment.config.model_copy(update=update))


def _described(model: BayesianModel) -> tuple[SequentialSettings, tuple[str, ...]]:
    """Settings of a network, and what of it has no posterior, by the names that its layers then have."""
    network = SequentialSettings(layers=tuple(describe(model.network)))
    if model.override_settings:
        raise LayerError("prior overrides go by the network's own names; give factory='package.module:function' to keep them")
    yaml_name = _names_in_yaml(model.network)
    return network, tuple(yaml_name(name) for name, _ in model.deterministic())


def describe(network: nn.Module) -> list[LayerSpec]:
    """The layers of an ``nn.Sequential`` as YAML writes them; raises LayerError for any other network.

    >>> describe(nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU()))
    [{'Linear': {'in_features': 4, 'out_features': 3, 'bias': False}}, 'ReLU']
    """
    if not isinstance(network, nn.Sequential):
        raise LayerError(
            f"the file cannot describe a {type(network).__name__}; give factory='package.module:function' that makes it"
        )
    return [_describe_layer(layer) for layer in network]


def _kind(layer: nn.Module) -> type[nn.Module]:
    """The torch layer that a layer is; those of :mod:`bitsback.nn` go by its name."""
    if type(layer).__module__ != "bitsback.nn":
        return type(layer)
    return next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn"))


def _names_in_yaml(network: nn.Module) -> Callable[[str], str]:
    """From names of parameters to those of the network that YAML describes: its layers are called by kind and number."""
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
