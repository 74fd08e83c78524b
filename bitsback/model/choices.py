"""What a user may say for a prior or a posterior, and the objects that it becomes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from bitsback.errors import LayerError, PriorError, near_miss
from bitsback.kl import mass
from bitsback.layers import ParameterRef, fan_in, matches
from bitsback.ledger.entry import Charge
from bitsback.posteriors import GaussianPosteriorSettings, PointPosteriorSettings, Posterior, PosteriorSettings
from bitsback.priors import Prior, PriorSettings, PyroPrior, WeightInfo
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

PriorChoice = PriorSettings | Mapping[str, Any] | str
"""A prior's settings, the same as a mapping with ``kind``, or only its kind."""

PosteriorChoice = PosteriorSettings | Mapping[str, Any] | str
"""A posterior's settings, the same as a mapping with ``kind``, or only its kind."""


def settings_class(kind: str) -> type[PriorSettings]:
    """The settings of a registered prior, or of one of the user's own."""
    return OwnPriorSettings if kind == OWN else prior_registry[kind]


def settings_of(choice: PriorChoice) -> PriorSettings:
    """The settings behind a :data:`PriorChoice`.

    >>> settings_of("laplace").kind, settings_of({"kind": "student_t", "df": 5}).df
    ('laplace', 5.0)
    """
    if isinstance(choice, PriorSettings):
        return choice
    if not isinstance(choice, str | Mapping):
        raise PriorError(f"a prior is a kind, a mapping with kind, or settings; got {choice!r}")
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
    """The settings behind a :data:`PosteriorChoice`; a Gaussian when nothing is said.

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
    """Return the prior of each weight, in order, each checked to be a code that fits; those that share one get the same object.

    Args:
        weights: where each lies in its network, and its posterior.
        default: of every weight that no override is for.
        overrides: by weight-name pattern; the first that fits wins.

    Raises:
        LayerError: for an override that is for no weight.
        PriorError: for a prior that does not fit.
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
    """Return what the learned numbers of a prior cost, named by the ``first`` weight that it is for."""
    return [Charge(f"{prior.kind}.{c.name}[{first}]", c.numbers, c.bits_each) for c in prior.charges()]


def build_prior(settings: PriorSettings, name: str, module: nn.Module, local: str, posterior: Posterior) -> Prior:
    """The prior of one weight tensor (or of the group that begins with it), checked to be a code that fits."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    axes = (1, 0) if transposed else (0, 1)
    shape = posterior.mean.shape
    prior = settings.build(WeightInfo(name, shape, fan_in(module, local), output_axis=axes[0], input_axis=axes[1]))
    prior.check(shape)
    _check_mass(prior)
    return prior.to(device=posterior.mean.device, dtype=torch.promote_types(posterior.mean.dtype, torch.float32))


def _check_mass(prior: Prior) -> None:
    """A code has mass one (Kraft). Our own priors are held to it by their tests; a foreign density is held to it here."""
    is_ours = type(prior).__module__.startswith("bitsback.") and not isinstance(prior, PyroPrior)
    if is_ours or prior().event_shape or prior().batch_shape.numel() != 1:
        return
    exact = copy.deepcopy(prior).double()
    total = float(mass(exact(), exact.breakpoints()).detach())
    if abs(total - 1) > 1e-3:
        name = getattr(prior, "distribution", prior.kind)
        raise PriorError(f"prior '{name}' has mass {total:.4f}; a code needs mass one (Kraft)")
