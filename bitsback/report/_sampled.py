"""Moments of a weight tensor in float64; an even sample of them if each costs a quadrature."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from bitsback.kl import Panels, kl
from bitsback.model import Weight
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import Prior

__all__ = ["Sampled", "exact", "sampled"]

WEIGHTS_LOOKED_AT = 5_000
"""Maximum number of weights of a tensor whose KL has no closed form."""


@dataclass(frozen=True)
class Sampled:
    """Mean and std of some weights of a tensor; ``scale`` is the number of weights that each represents."""

    mean: Tensor
    std: Tensor
    scale: float = 1.0

    @torch.no_grad()
    def net_bits(self, prior: Prior, factor: float = 1.0, panels: Panels | None = None) -> float:
        """Return the net bits of the whole tensor under a prior.

        Args:
            prior: in float64.
            factor: multiplies every std.
            panels: of the quadrature; default: as in :func:`bitsback.kl.kl`.

        Returns:
            Bits.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same Monte Carlo noise at every width
            return self.scale * float(
                kl(GaussianPosterior(self.mean, self.std * factor), prior, panels=panels, samples=100).bits
            )


def exact(prior: Prior) -> Prior:
    """Return a copy of a prior in float64 on the CPU."""
    return copy.deepcopy(prior).cpu().double()


@torch.no_grad()
def sampled(weight: Weight, prior: Prior, most: int = WEIGHTS_LOOKED_AT) -> Sampled:
    """Return the moments of a weight tensor, or an even sample of them if each costs a quadrature under ``prior``.

    Args:
        weight: with a Gaussian posterior.
        prior: in float64; all weights are used if its KL has a closed form or it differs between weights.
        most: maximum size of the sample.

    Returns:
        Moments, flat if sampled.
    """
    assert isinstance(weight.posterior, GaussianPosterior)
    mean, std = weight.posterior.mean.detach().cpu().double(), weight.posterior.std().cpu().double()
    density = prior()
    if len(mean.flatten()) <= most or density.batch_shape.numel() != 1 or density.event_shape:
        return Sampled(mean, std)
    mean, std = mean.flatten(), std.flatten()
    if kl(GaussianPosterior(mean[:1], std[:1]), prior).method == "closed_form":
        return Sampled(mean, std)
    kept = torch.linspace(0, len(mean) - 1, most, dtype=torch.float64).round().long()
    return Sampled(mean[kept], std[kept], len(mean) / most)
