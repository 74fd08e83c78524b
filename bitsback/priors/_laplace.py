"""The Laplace prior: its code length is L1."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace

from bitsback.priors.base import ScalePrior

__all__ = ["LaplacePrior"]


class LaplacePrior(ScalePrior):
    """p(w) = exp(-|w - mean| / scale) / (2 scale). ``-log2 p(w)`` is a constant plus |w - mean| / (scale ln 2): L1.

    >>> round(LaplacePrior(scale=2.0)().log_prob(torch.tensor(0.0)).item(), 4)
    -1.3863
    """

    kind = "laplace"
    needs_draw = False

    def forward(self) -> Distribution:
        return Laplace(self.mean, self.typical_scale(), validate_args=False)

    @property
    def is_elementwise(self) -> bool:
        return True

    @torch.no_grad()
    def kl_gradient(self, mean: Tensor, log_std: Tensor, draw: Tensor, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        """Find the exact gradient, that of E|w - mu| / scale - log std.

        With z = (mean - mu) / (std sqrt 2): (erf(z) / scale, std sqrt(2 / pi) exp(-z^2) / scale - 1) (torch's closed form of
        KL(Normal || Laplace), differentiated).
        """
        scale, distance = self.typical_scale(), mean - self.mean
        std = log_std.exp().clamp_min_(torch.finfo(log_std.dtype).tiny)
        z = torch.div(distance, std).mul_(math.sqrt(0.5))
        by_mean = z.erf().div_(scale)
        by_log_std = z.square_().neg_().exp_().mul_(std).mul_(math.sqrt(2 / math.pi) / scale).sub_(1)
        self._learn_from_kl(by_mean, by_log_std, distance, rate)
        return by_mean, by_log_std

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        distance = weights - self.mean
        slope = distance.sign().div_(self.typical_scale())
        self._learn_from_slope(slope, distance, rate)
        return slope
