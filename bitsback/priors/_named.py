"""Settings of a prior from a distribution of torch or Pyro."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from bitsback.errors import PriorError
from bitsback.learned import plain
from bitsback.priors._pyro import pyro_class
from bitsback.priors.settings import (
    GaussianPriorSettings,
    LaplacePriorSettings,
    PriorSettings,
    PyroPriorSettings,
    StudentTPriorSettings,
)

__all__ = ["settings_of_distribution"]

ALTERNATIVES = (("probs", "logits"), ("scale_tril", "covariance_matrix", "precision_matrix"))
"""Arguments of which a distribution takes one: the first is read."""


def settings_of_distribution(distribution: Distribution) -> PriorSettings:
    """Return the settings of a prior with the density of a distribution of torch or Pyro, its numbers fixed.

    Args:
        distribution: one density for all weights, such as ``Laplace(0.0, 0.3)``, of any batch shape if its numbers are alike.

    Returns:
        Settings; those of ``gaussian``, ``laplace`` and ``student_t`` where it is one of these.

    Raises:
        PriorError: for a distribution that cannot be named by numbers, such as a transformed one.

    >>> import pyro.distributions as dist
    >>> settings_of_distribution(dist.Laplace(0.0, 0.5).expand([3]).to_event(1)).kind
    'laplace'
    >>> settings_of_distribution(dist.SoftLaplace(0.0, 0.5)).arguments
    {'loc': 0.0, 'scale': 0.5}
    """
    distribution = _bare(distribution)
    name, values = _named(distribution, len(distribution.batch_shape))
    located = {key: values.get(key) for key in ("loc", "scale")}
    if name in ("Normal", "Laplace", "StudentT") and all(isinstance(value, float) for value in values.values()):
        place: dict[str, Any] = {"mean": located["loc"], "scale": located["scale"], "learn": "none"}
        if name == "StudentT":
            return StudentTPriorSettings(df=values["df"], **place)
        return (GaussianPriorSettings if name == "Normal" else LaplacePriorSettings)(**place)
    return PyroPriorSettings(distribution=name, arguments=values, learn="none")


def _named(distribution: Any, batch_axes: int) -> tuple[str, dict[str, Any]]:
    """Return the name of a distribution in ``pyro.distributions`` and its arguments, alike along its batch axes."""
    distribution = _bare(distribution)
    name = type(distribution).__name__
    taken = [key for key in inspect.signature(pyro_class(name).__init__).parameters if key not in ("self", "validate_args")]
    for first, *others in ALTERNATIVES:
        taken = [key for key in taken if first not in taken or key not in others]
    values: dict[str, Any] = {}
    for key in taken:
        value = getattr(distribution, key, getattr(distribution, f"_{key}", None))
        if isinstance(value, Distribution):
            inner, arguments = _named(value, batch_axes)
            values[key] = {"distribution": inner, "arguments": arguments}
        elif isinstance(value, Tensor | float | int):
            values[key] = _alike(torch.as_tensor(value).detach(), batch_axes, f"{name}, {key}")
        else:
            raise PriorError(f"a {name} is not given by numbers alone ({key} is a {type(value).__name__}); give a prior "
                             "by name, or "
                             "one of your own (kind: factory)")  # fmt: skip
    return name, values


def _bare(distribution: Any) -> Distribution:
    """Return the distribution within those that only declare axes or repeat it."""
    while isinstance(distribution, Independent) or type(distribution).__name__ == "ExpandedDistribution":
        distribution = distribution.base_dist
    found: Distribution = distribution
    return found


def _alike(value: Tensor, batch_axes: int, what: str) -> Any:
    """Return the numbers of one batch element; raises PriorError unless all have the same."""
    axes = min(batch_axes, value.ndim)
    rows = value.reshape(-1, *value.shape[axes:])
    if not bool((rows == rows[:1]).all()):
        raise PriorError(f"the prior differs from weight to weight ({what}); give one for all weights of a tensor")
    return plain(rows[0])
