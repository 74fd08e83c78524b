"""The moments of a weight tensor in float64, all of them or an even sample where each costs much."""

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
"""Of a tensor whose cost under its prior has no closed form."""


@dataclass(frozen=True)
class Sampled:
    """Mean and std of some weights of a tensor, and how many weights each stands for."""

    mean: Tensor
    std: Tensor
    scale: float = 1.0

    @torch.no_grad()
    def net_bits(self, prior: Prior, factor: float = 1.0, panels: Panels | None = None) -> float:
        """Net bits of the whole tensor under ``prior``, with every std ``factor`` times as large."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a prior that is sampled sees the same noise at every width
            return self.scale * float(
                kl(GaussianPosterior(self.mean, self.std * factor), prior, panels=panels, samples=100).bits
            )


def exact(prior: Prior) -> Prior:
    """A copy of a prior in float64, on the processor."""
    return copy.deepcopy(prior).cpu().double()


@torch.no_grad()
def sampled(weight: Weight, prior: Prior, most: int = WEIGHTS_LOOKED_AT) -> Sampled:
    """The moments of ``weight``: at most ``most`` of them where ``prior`` costs a quadrature for each.

    Args:
        weight: with a Gaussian posterior.
        prior: in float64; decides whether the cost is in closed form, and whether weights may be left out at all.
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
