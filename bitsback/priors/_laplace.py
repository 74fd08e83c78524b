"""Laplace prior, under which -log2 p(w) is an L1 penalty."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace

from bitsback.priors.base import KernelForm, ScalePrior

__all__ = ["LaplacePrior"]


class LaplacePrior(ScalePrior):
    """Laplace density, p(w) = exp(-|w - mean| / scale) / (2 scale).

    ``-log2 p(w)`` is a constant plus |w - mean| / (scale ln 2), an L1 penalty.

    >>> round(LaplacePrior(scale=2.0)().log_prob(torch.tensor(0.0)).item(), 4)
    -1.3863
    """

    kind = "laplace"
    needs_draw = False

    def forward(self) -> Distribution:
        """Return the distribution p(w)."""
        return Laplace(self.mean, self.typical_scale(), validate_args=False)

    @property
    def is_elementwise(self) -> bool:
        """Return True: all weights have the same scalar density."""
        return True

    def kernel_form(self) -> KernelForm:
        """Return the density as the GPU kernels know it."""
        return KernelForm("laplace", self.mean, self.log_scale)

    @torch.no_grad()
    def kl_gradient(self, mean: Tensor, log_std: Tensor, draw: Tensor, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the exact gradient of the KL, which is E|w - mu| / scale - log std plus a constant.

        With z = (mean - mu) / (std sqrt 2): (erf(z) / scale, std sqrt(2 / pi) exp(-z^2) / scale - 1) (torch's closed form of
        KL(Normal || Laplace), differentiated).

        Args:
            mean: posterior means.
            log_std: posterior log stds, the same shape.
            draw: not used.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Gradients by mean and by log std.
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
        """Return the slope of -log p.

        Args:
            weights: weights.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        distance = weights - self.mean
        slope = distance.sign().div_(self.typical_scale())
        self._learn_from_slope(slope, distance, rate)
        return slope
