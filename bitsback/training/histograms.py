"""Histogram data of the posteriors, for each weight tensor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitsback.errors import BitsbackError
from bitsback.kl import Panels
from bitsback.kl.kl import kl_each
from bitsback.model import BayesianModel, Weight
from bitsback.posteriors import GaussianPosterior
from bitsback.torch_state import seeded
from bitsback.units import nats_to_bits

__all__ = ["MOST_WEIGHTS", "Plain", "flat", "histograms"]

MOST_WEIGHTS = 4096
"""Most weights of a tensor in a histogram; larger tensors are represented by a fixed random sample."""

Plain = bool | int | float | str
"""Values that dashboards accept for settings."""


@torch.no_grad()
def histograms(model: BayesianModel, most: int = MOST_WEIGHTS) -> dict[str, Tensor]:
    """Collect the numbers to plot for every weight tensor.

    ``weights/NAME/mean``, and for a Gaussian posterior ``log2_std``, ``signal_to_noise`` (mean over std, absolute) and, if the
    prior treats weights as independent, ``net_bits``. Model and random generators are not changed.

    Args:
        model: the model.
        most: most numbers under one name.

    Returns:
        finite numbers by name, on the CPU.

    >>> from bitsback.model import bayesianize
    >>> drawn = histograms(bayesianize(torch.nn.Linear(300, 100), prior="laplace"))
    >>> sorted(drawn)[:4]
    ['weights/bias/log2_std', 'weights/bias/mean', 'weights/bias/net_bits', 'weights/bias/signal_to_noise']
    >>> drawn["weights/weight/mean"].shape
    torch.Size([4096])
    """
    found: dict[str, Tensor] = {}
    for weight in model.weights:
        with seeded(0, weight.posterior.mean.device):
            seen = _sample(weight.posterior.numel, most).to(weight.posterior.mean.device)
            for name, values in _numbers(weight, seen).items():
                finite = values[values.isfinite()].cpu()
                if len(finite):
                    found[f"weights/{weight.name}/{name}"] = finite
    return found


def _sample(count: int, most: int) -> Tensor:
    """Return at most ``most`` indices of ``count`` weights."""
    return torch.arange(count) if count <= most else torch.randint(count, (most,)).sort().values


def _numbers(weight: Weight, seen: Tensor) -> dict[str, Tensor]:
    posterior = weight.posterior
    mean = posterior.mean.detach().flatten()[seen].float()
    if not isinstance(posterior, GaussianPosterior):
        return {"mean": mean}
    std = posterior.log_std.detach().flatten()[seen].float().exp()
    numbers = {"mean": mean, "log2_std": std.log2(), "signal_to_noise": mean.abs() / std}
    try:
        return {**numbers, "net_bits": nats_to_bits(_nats(weight, posterior, seen))}
    except (BitsbackError, NotImplementedError):  # a joint prior over groups of weights has no KL of a single weight
        return numbers


def _nats(weight: Weight, posterior: GaussianPosterior, seen: Tensor) -> Tensor:
    """Return KL(q||p) of each sampled weight, in nats."""
    if weight.prior().batch_shape.numel() > 1:  # a prior per weight: compute all of them in closed form, then sample
        return kl_each(posterior, weight.prior).flatten()[seen]
    mean, log_std = posterior.mean.detach().flatten()[seen], posterior.log_std.detach().flatten()[seen]
    return kl_each(GaussianPosterior(mean, log_std.exp()), weight.prior, panels=Panels.fast())


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    """Flatten nested settings to dotted names, as in overrides on the command line; None is left out.

    Args:
        settings: nested mappings.
        prefix: put before each name.

    Returns:
        values by dotted name.

    >>> flat({"prior": {"kind": "laplace", "scale": None}, "seed": 0, "tags": ["a", "b"]})
    {'prior.kind': 'laplace', 'seed': 0, 'tags': "['a', 'b']"}
    """
    found: dict[str, Plain] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
