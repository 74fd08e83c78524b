"""Experiments on a model, likelihood and data made in Python; the configuration marks what it cannot describe as "given"."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from bitsback.config._explain import describe_all
from bitsback.config.experiment import Experiment, try_out
from bitsback.config.network import GivenNetworkSettings
from bitsback.config.schema import BayesianSettings, Config
from bitsback.data import Dataset, Examples, source
from bitsback.data.settings import GivenDataSettings
from bitsback.errors import ConfigError
from bitsback.likelihoods import (
    CategoricalLikelihood,
    GaussianLikelihood,
    Likelihood,
    LikelihoodSettings,
    NegativeBinomialLikelihood,
)
from bitsback.likelihoods.classes import class_count
from bitsback.likelihoods.given import checked_likelihood
from bitsback.likelihoods.settings import GivenLikelihoodSettings
from bitsback.likelihoods.settings import registry as likelihoods
from bitsback.model import BayesianModel
from bitsback.model.modes import evaluating
from bitsback.posteriors import GaussianPosteriorSettings, PointPosterior, PointPosteriorSettings

__all__ = ["default_likelihood", "given_experiment", "likelihood_settings"]


MOST_BATCHES = 32
"""Batches among which one is looked for that shows the axis of the classes."""


def given_experiment(
    model: BayesianModel,
    likelihood: Likelihood | None,
    dataset: Any,
    sections: Mapping[str, Any],
    seed: int = 0,
) -> Experiment:
    """Return the experiment of a model, a likelihood and data that were made in Python.

    Args:
        model: trained in place.
        likelihood: default: categorical, with as many classes as the network has outputs.
        dataset: a data set, or training examples without a test split, in anything that :func:`bitsback.data.source` takes.
        sections: ``training``, ``ledger`` and ``logging``: settings, mappings as in YAML, or None.
        seed: of batches and weight draws.

    Returns:
        the experiment, with its likelihood fitted to the targets.

    Raises:
        ConfigError: for invalid settings, and for a network that fails on the inputs.
        DataError: for targets that the likelihood cannot describe, or that do not fit the outputs.
    """
    settings = _settings(sections)
    likelihood = None if likelihood is None else checked_likelihood(likelihood)
    given = dataset if isinstance(dataset, Dataset) else Dataset("in memory", source(dataset), None)
    dataset = replace(given, in_memory=True)
    some = dataset.train.to(model.device, model.dtype)
    count = settings.training.batch_size  # a network may accept whole batches only
    with torch.no_grad(), evaluating(model.network), model.mean():
        inputs, targets = some.batch(slice(0, min(count, len(some))))
        output = try_out(model, inputs, type(model.network).__name__, model.output)
    if likelihood is None:
        likelihood = default_likelihood(output, targets, dataset.train.labels)
    for examples in (dataset.train, dataset.test):
        if examples is not None:
            likelihood.check_split(examples.targets, examples.name)
    likelihood.fit(dataset.train.targets)
    if isinstance(likelihood, CategoricalLikelihood) and likelihood.class_axis is None and targets.ndim > 1:
        axis, likelihood = _class_axis(likelihood, model, some, count), copy.copy(likelihood)  # the caller's may serve others
        likelihood.class_axis = axis
    likelihood.to(model.device, model.dtype).bits(output, targets)  # the likelihood raises if shapes do not fit
    likelihood.predict(output)
    config = settings.model_copy(
        update={
            "data": GivenDataSettings(name=dataset.name, examples=len(dataset.train)),
            "network": GivenNetworkSettings(of=type(model.network).__name__, output=model.output),
            "posterior": _posterior_settings(model),
            "prior": model.prior_settings,
            "prior_overrides": model.override_settings,
            "bayesian": BayesianSettings(exclude=tuple(name for name, _ in model.deterministic())),
            "likelihood": _likelihood_settings(likelihood),
            "seed": seed,
        }
    )
    training = config.training.settled(len(dataset.train), likelihood)
    return Experiment(config.model_copy(update={"training": training}), dataset, model, likelihood)


def default_likelihood(output: Tensor, targets: Tensor, texts: Sequence[str] | None) -> CategoricalLikelihood:
    """Return a categorical likelihood with as many classes as a network has outputs.

    Args:
        output: (n, ...), the network's outputs for some examples.
        targets: (n, ...), their targets.
        texts: labels of the data, which name the classes if there are as many.

    Returns:
        the likelihood.
    """
    classes = class_count(output, targets.shape[1:]) or output.shape[-1]
    return CategoricalLikelihood(classes, names=texts if texts and len(texts) == classes else None)


def _class_axis(likelihood: CategoricalLikelihood, model: BayesianModel, examples: Examples, count: int) -> int | None:
    """Return the axis of the classes if outputs alone would not always show it, as where batches are padded; None otherwise.

    A padded batch may be as long as there are classes, so that two axes fit; the axis is the one that fits all batches.
    """
    fit: set[int] = set()
    with torch.no_grad(), evaluating(model.network), model.mean():
        for number, (inputs, targets) in enumerate(examples.batches(examples.ranges(count)[:MOST_BATCHES])):
            output = model.outputs(inputs)
            if not examples.pads and len(likelihood.class_axes(output)) < 2:
                return None
            axes = set(likelihood.class_axes(output, targets))
            fit = fit & axes if number else axes
            if len(fit) < 2 or not examples.pads:
                break
    if len(fit) != 1:
        return None
    (axis,) = fit
    return -1 if axis == output.ndim - 1 else axis


def _settings(sections: Mapping[str, Any]) -> Config:
    """Validate the given sections; errors are worded as for YAML."""
    values = {name: value for name, value in sections.items() if value is not None}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(describe_all(error.errors(), values, {}, "train"))) from error


def _posterior_settings(model: BayesianModel) -> GaussianPosteriorSettings | PointPosteriorSettings:
    points = [q for q in model.posteriors() if isinstance(q, PointPosterior)]
    return PointPosteriorSettings(grid_step=points[0].grid_step) if points else GaussianPosteriorSettings()


def _likelihood_settings(likelihood: Likelihood) -> LikelihoodSettings:
    if not type(likelihood).__module__.startswith("bitsback."):
        return GivenLikelihoodSettings(of=type(likelihood).__name__)
    return likelihoods[likelihood.kind].model_validate(likelihood_settings(likelihood))


def likelihood_settings(likelihood: Likelihood) -> dict[str, Any]:
    """Return the keyword arguments from which the settings of a likelihood's kind rebuild it."""
    if isinstance(likelihood, GaussianLikelihood):
        # in the targets' units, as settings have it; the stored number is in those of standardised targets
        std = float((likelihood.log_std.detach().double() + likelihood.scale.double().log().mean()).exp())
        std = max(std, likelihood.target_step)
        said = {"std": std, "noise": likelihood.noise, "target_step": likelihood.target_step}
        return {**said, "standardise": likelihood.standardises}
    found: dict[str, Any] = {"ignore": likelihood.ignore}
    if isinstance(likelihood, CategoricalLikelihood):
        found["classes"] = likelihood.classes
        if likelihood.names is not None and all(isinstance(name, str) for name in likelihood.names):
            found["class_names"] = likelihood.names
    if likelihood.kind == "categorical":
        found["class_axis"] = likelihood.class_axis
    if isinstance(likelihood, NegativeBinomialLikelihood):
        found |= {"dispersion": float(likelihood.log_dispersion.detach().exp()), "learn": likelihood.learn}
    return found
