"""KL(q||p), the net cost of a weight tensor, using closed form, quadrature or Monte Carlo, in that order."""

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence
from torch.distributions.kl import _KL_REGISTRY as KL_REGISTRY

from bitsback.errors import BitsbackError
from bitsback.kl.quadrature import MAX_NODES_AT_ONCE, Panels, gaussian_expectation
from bitsback.posteriors import GaussianPosterior, PointPosterior, Posterior
from bitsback.priors import Prior
from bitsback.units import nats_to_bits

__all__ = ["KL", "Method", "has_closed_form", "kl", "kl_each"]

Method = Literal["auto", "closed_form", "quadrature", "monte_carlo"]
CHUNK = 1 << 18
"""Weights per part where a closed form is evaluated without gradients; bounds the memory."""

WIDER_ON_GPUS = 64
"""Factor of the sizes of parts on a GPU, where a part need not fit a cache, and many small ones take long to launch."""

HALF_LOG_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)
"""Differential entropy of the standard normal distribution, in nats."""


@dataclass(frozen=True)
class KL:
    """KL divergence of one weight tensor, with its standard error and the method that gave it.

    Attributes:
        nats: the divergence in nats, summed over the weights, (); differentiable.
        stderr_nats: standard error in nats; 0 without Monte Carlo, infinite for a single Monte Carlo sample.
        method: ``closed_form``, ``quadrature``, ``monte_carlo``, or ``penalty`` for a point estimate.
    """

    nats: Tensor
    stderr_nats: float
    method: str

    @property
    def bits(self) -> Tensor:
        """Return the divergence in bits, (); differentiable."""
        return nats_to_bits(self.nats)

    @property
    def stderr_bits(self) -> float:
        """Return the standard error in bits; 0 for closed form and quadrature."""
        return nats_to_bits(self.stderr_nats)


def kl(posterior: Posterior, prior: Prior, *, method: Method = "auto", panels: Panels | None = None, samples: int = 16) -> KL:
    """Return KL(q||p), summed over one weight tensor.

    Half precision is converted to float32 first, because a sum of many small terms loses its digits in 16 bits.

    Args:
        posterior: q. A point estimate has no density: its value is -log p(w), the penalty (L2, L1, ...), without a refund.
        prior: p.
        method: ``auto`` takes the closed form where torch or Pyro has one, else quadrature for a one-dimensional prior,
            else Monte Carlo.
        panels: panels of the quadrature; the default has a relative error below 1e-6.
        samples: number of weight draws of the Monte Carlo estimate.

    Returns:
        The divergence in nats with its standard error and method.

    Raises:
        BitsbackError: when the method does not exist for this pair, or the posterior is neither Gaussian nor a point.

    >>> from bitsback.priors import GaussianPrior
    >>> same = kl(GaussianPosterior(torch.zeros(4), std=0.3), GaussianPrior(scale=0.3))
    >>> round(same.nats.item(), 6), same.method
    (0.0, 'closed_form')
    """
    with torch.autocast(posterior.mean.device.type, enabled=False):
        p = prior()
        if isinstance(posterior, PointPosterior):
            nats = -p.log_prob(_precise(posterior.mean)).sum()
            return KL(nats, 0.0, "penalty")
        if not isinstance(posterior, GaussianPosterior):
            raise BitsbackError(f"no KL is known for {type(posterior).__name__}; use a Gaussian or a point posterior")
        mean, std = _precise(posterior.mean), _precise(posterior.log_std).exp()
        chosen = _choose(p) if method == "auto" else method
        if chosen == "closed_form":
            return _closed_form(mean, std, p)
        if chosen == "quadrature":
            return _quadrature(mean, std, prior, p, panels or Panels.exact())
        return _monte_carlo(mean, std, p, samples)


def kl_each(posterior: GaussianPosterior, prior: Prior, *, panels: Panels | None = None) -> Tensor:
    """Return KL(q||p) of every weight, by closed form or quadrature.

    Args:
        posterior: q.
        prior: p.
        panels: panels of the quadrature; the default has a relative error below 1e-6.

    Returns:
        Nats, the shape of the weight tensor; differentiable.

    Raises:
        BitsbackError: for a prior that does not code weights one by one.

    >>> from bitsback.priors import GaussianPrior
    >>> kl_each(GaussianPosterior(torch.zeros(2), std=0.3), GaussianPrior(scale=0.3)).abs().max().item() < 1e-6
    True
    """
    mean, std, p = _precise(posterior.mean), _precise(posterior.log_std).exp(), prior()
    chosen = _choose(p)
    if chosen == "closed_form":
        return kl_divergence(Normal(mean, std, validate_args=False), p).expand(mean.shape)
    if chosen == "quadrature":
        return _quadrature_each(mean, std, prior, p, panels or Panels.exact())
    raise BitsbackError(f"the prior '{prior.kind}' does not code its weights one by one; choose another prior")


def _precise(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor as float32, any other unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def has_closed_form(prior: Prior) -> bool:
    """Return whether the KL of a Gaussian posterior to the prior is known in closed form."""
    return _choose(prior()) == "closed_form"


@lru_cache
def _has_closed_form(kind: Hashable) -> bool:
    """Return whether torch or Pyro has registered KL(Normal || kind)."""
    return any(issubclass(Normal, q) and issubclass(kind, p) for q, p in KL_REGISTRY)  # type: ignore[arg-type]


def _choose(p: Distribution) -> str:
    """Return the method that ``auto`` takes for a prior."""
    if len(p.event_shape) > 0:
        return "monte_carlo"
    return "closed_form" if _has_closed_form(type(p)) else "quadrature"  # type: ignore[arg-type]


def _closed_form(mean: Tensor, std: Tensor, p: Distribution) -> KL:
    is_counted = not torch.is_grad_enabled() and not p.batch_shape
    pairs = zip(_flat_chunks(mean), _flat_chunks(std), strict=True) if is_counted else [(mean, std)]
    try:
        parts = [kl_divergence(Normal(m, s, validate_args=False), p).expand(m.shape).sum() for m, s in pairs]
    except NotImplementedError as error:
        raise BitsbackError(f"no closed form of KL(Normal || {type(p).__name__}) is known; use method='quadrature'") from error
    return KL(torch.stack(parts).sum(), 0.0, "closed_form")


def _flat_chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return flat parts small enough to stay in the processor's cache, with the intermediate results made of them."""
    return tensor.flatten().split(CHUNK * (WIDER_ON_GPUS if tensor.is_cuda else 1))


def _chunks(tensor: Tensor, nodes_each: int) -> Iterator[slice]:
    count = len(tensor)
    size = max(1, MAX_NODES_AT_ONCE * (WIDER_ON_GPUS if tensor.is_cuda else 1) // nodes_each)
    for start in range(0, count, size):
        yield slice(start, start + size)


def _quadrature(mean: Tensor, std: Tensor, prior: Prior, p: Distribution, panels: Panels) -> KL:
    return KL(_quadrature_each(mean, std, prior, p, panels).sum(), 0.0, "quadrature")


def _quadrature_each(mean: Tensor, std: Tensor, prior: Prior, p: Distribution, panels: Panels) -> Tensor:
    if p.event_shape or p.batch_shape.numel() != 1:
        raise BitsbackError(
            f"quadrature needs one one-dimensional density for all weights, got batch {tuple(p.batch_shape)} and event "
            f"{tuple(p.event_shape)}; use method='monte_carlo', or single numbers as the prior's arguments"
        )
    bends = prior.breakpoints(panels.fine)
    flat_mean, flat_std = mean.flatten(), std.flatten()
    nodes_each = (len(panels.edges) + bends.shape[-1]) * panels.order
    parts = [
        gaussian_expectation(lambda w: -p.log_prob(w), flat_mean[part], flat_std[part], bends, panels)
        for part in _chunks(flat_mean, nodes_each)
    ]
    return (torch.cat(parts) - (flat_std.log() + HALF_LOG_2_PI_E)).reshape(mean.shape)


def _monte_carlo(mean: Tensor, std: Tensor, p: Distribution, samples: int) -> KL:
    noise = torch.randn(samples, *mean.shape, dtype=mean.dtype, device=mean.device)
    entropy = (std.log() + HALF_LOG_2_PI_E).sum()
    log_p = p.log_prob(mean + std * noise)
    totals = -log_p.reshape(samples, -1).sum(1) - entropy
    stderr = float(totals.detach().std() / math.sqrt(samples)) if samples > 1 else math.inf
    return KL(totals.mean(), stderr, "monte_carlo")
