"""Settings of priors and posteriors from a kind, a mapping or a settings object, and the priors built from them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.distributions import Distribution

from bitsback.errors import LayerError, PriorError, near_miss
from bitsback.kl import mass
from bitsback.layers import ParameterRef, fan_in, matches
from bitsback.ledger.entry import Charge
from bitsback.posteriors import GaussianPosteriorSettings, PointPosteriorSettings, Posterior, PosteriorSettings
from bitsback.priors import Prior, PriorSettings, PyroPrior, WeightInfo, settings_of_distribution
from bitsback.priors import registry as prior_registry
from bitsback.priors.settings import OWN, OwnPriorSettings

__all__ = [
    "PosteriorChoice",
    "PriorChoice",
    "build_prior",
    "charges_of",
    "posterior_settings_of",
    "priors_of",
    "settings_class",
    "settings_of",
]

PriorChoice = PriorSettings | Mapping[str, Any] | str | Distribution
"""Settings of a prior, a mapping of the same keys with ``kind``, the kind alone, or a distribution of torch or Pyro."""

PosteriorChoice = PosteriorSettings | Mapping[str, Any] | str
"""Settings of a posterior, a mapping of the same keys with ``kind``, or the kind alone."""


def settings_class(kind: str) -> type[PriorSettings]:
    """Return the settings class of a registered prior, or that of priors made by a user's function."""
    return OwnPriorSettings if kind == OWN else prior_registry[kind]


def settings_of(choice: PriorChoice) -> PriorSettings:
    """Return the settings given by a :data:`PriorChoice`.

    Args:
        choice: settings, mapping with ``kind``, kind, or a distribution.

    Returns:
        Settings of the prior.

    Raises:
        PriorError: for an unknown kind, an unknown key or an invalid value.

    >>> settings_of("laplace").kind, settings_of({"kind": "student_t", "df": 5}).df
    ('laplace', 5.0)
    """
    if isinstance(choice, PriorSettings):
        return choice
    if isinstance(choice, Distribution):
        return settings_of_distribution(choice)
    if not isinstance(choice, str | Mapping):
        raise PriorError(f"a prior is a kind, a mapping with kind, settings, or a distribution; got {choice!r}")
    values = {"kind": choice} if isinstance(choice, str) else dict(choice)
    wanted = settings_class(str(values.get("kind", "gaussian")))
    try:
        return wanted(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        hint = near_miss(key, wanted.model_fields) if first["type"] == "extra_forbidden" else ""
        raise PriorError(f"prior.{key}: {first['msg']}{hint}, got {first['input']!r}") from error


def posterior_settings_of(choice: PosteriorChoice | None) -> PosteriorSettings:
    """Return the settings given by a :data:`PosteriorChoice`.

    Args:
        choice: settings, mapping with ``kind``, kind, or None for the default Gaussian.

    Returns:
        Settings of the posterior.

    Raises:
        LayerError: for an unknown kind, an unknown key or an invalid value.

    >>> posterior_settings_of("point").kind
    'point'
    """
    if isinstance(choice, GaussianPosteriorSettings | PointPosteriorSettings):
        return choice
    values = {"kind": choice} if isinstance(choice, str) else dict(choice or {})
    kinds = {"gaussian": GaussianPosteriorSettings, "point": PointPosteriorSettings}
    kind = values.get("kind", "gaussian")
    if kind not in kinds:
        raise LayerError(f"unknown posterior '{kind}'{near_miss(str(kind), kinds)}; known: {', '.join(kinds)}")
    try:
        return kinds[kind](**values)
    except ValidationError as error:
        raise LayerError(f"posterior: {error.errors()[0]['msg']}, got {error.errors()[0]['input']!r}") from error


def priors_of(
    weights: Sequence[tuple[ParameterRef, Posterior]],
    default: PriorSettings,
    overrides: Mapping[str, PriorSettings] | None = None,
) -> list[Prior]:
    """Return the prior of each weight; weights that share a prior (setting ``per``) get the same object.

    Args:
        weights: location in the network and posterior of each weight.
        default: settings for weights that no override matches.
        overrides: settings by weight-name pattern; the first pattern that matches wins.

    Returns:
        Priors in the order of ``weights``, each checked to have mass one and to fit the weight's shape.

    Raises:
        LayerError: for an override that matches no weight.
        PriorError: for a prior that does not fit its weight's shape or has not mass one.
    """
    overrides, found, used = overrides or {}, [], set()
    groups: dict[tuple[str, str], Prior] = {}
    for ref, posterior in weights:
        pattern = next((p for p in overrides if matches(ref.name, [p])), "")
        used.add(pattern)
        settings = overrides.get(pattern, default)
        key = (pattern, {"tensor": ref.name, "layer": ref.name.rpartition(".")[0], "model": ""}[settings.per])
        if key not in groups:
            groups[key] = build_prior(settings, ref.name, ref.owner, ref.local, posterior)
        groups[key].check(posterior.mean.shape)
        found.append(groups[key])
    for pattern in overrides:
        if pattern not in used:
            names = ", ".join(ref.name for ref, _ in weights)
            raise LayerError(f"prior override '{pattern}' matches no weight; weights: {names}")
    return found


def charges_of(prior: Prior, first: str) -> list[Charge]:
    """Return the cost of a prior's learned hyper-parameters.

    Args:
        prior: prior of one or several weights.
        first: name of the first of those weights, part of the charges' names.

    Returns:
        One charge for each group of learned numbers.
    """
    return [Charge(f"{prior.kind}.{c.name}[{first}]", c.numbers, c.bits_each) for c in prior.charges()]


def build_prior(settings: PriorSettings, name: str, module: nn.Module, local: str, posterior: Posterior) -> Prior:
    """Build the prior of one weight tensor, or of the group of tensors that begins with it.

    Args:
        settings: settings of the prior.
        name: dotted name of the weight.
        module: module that owns the weight.
        local: name of the weight in that module.
        posterior: its posterior, for shape, device and dtype.

    Returns:
        Prior, in float32 or wider, checked to have mass one and to fit the weight's shape.
    """
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    axes = (1, 0) if transposed else (0, 1)
    shape = posterior.mean.shape
    prior = settings.build(WeightInfo(name, shape, fan_in(module, local), output_axis=axes[0], input_axis=axes[1]))
    prior.check(shape)
    _check_mass(prior)
    return prior.to(device=posterior.mean.device, dtype=torch.promote_types(posterior.mean.dtype, torch.float32))


def _check_mass(prior: Prior) -> None:
    """Raise PriorError if the density of a prior from outside this package does not integrate to one (Kraft inequality)."""
    # The package's own priors are tested for it (bitsback.testing.check_prior).
    is_ours = type(prior).__module__.startswith("bitsback.") and not isinstance(prior, PyroPrior)
    if is_ours or prior().event_shape or prior().batch_shape.numel() != 1:
        return
    exact = copy.deepcopy(prior).double()
    total = float(mass(exact(), exact.breakpoints()).detach())
    if abs(total - 1) > 1e-3:
        name = getattr(prior, "distribution", prior.kind)
        raise PriorError(f"prior '{name}' has mass {total:.4f}; a code needs mass one (Kraft)")
