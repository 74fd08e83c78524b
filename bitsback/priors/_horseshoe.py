"""Horseshoe prior: a proper density with an integrable pole at its centre and heavy tails."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Cauchy, Distribution, constraints

from bitsback.coding.densities import EULER_GAMMA
from bitsback.priors._kl_table import CELL, LOWEST, expected_pull, kl_table, pull_at
from bitsback.priors.base import NO_SHAPE, KernelForm, ScalePrior, Shape, around

__all__ = ["Horseshoe", "HorseshoePrior", "scaled_exp1"]

SERIES_BELOW = 2.0
"""Argument of e^x E1(x) below which the power series is used."""

NEAREST = 1e-15
"""Distance from the pole, in scales, within which the density is set to its value at that distance."""


def scaled_exp1(x: Tensor) -> Tensor:
    """Return e^x E1(x) for x > 0, to about 1e-14 in float64: power series below 2, continued fraction above.

    Source: Abramowitz & Stegun 1964, 5.1.11 and 5.1.22. Differentiable: d/dx = e^x E1(x) - 1/x.

    Args:
        x: positive arguments.

    Returns:
        Tensor of the shape of ``x``.

    >>> round(scaled_exp1(torch.tensor(1.0, dtype=torch.float64)).item(), 12)
    0.596347362323
    """
    return _ScaledExp1.apply(x)


def _by_series(x: Tensor) -> Tensor:
    term, total = torch.ones_like(x), torch.zeros_like(x)
    for k in range(1, 31):
        term = term * (-x / k)
        total = total - term / k
    return x.exp() * (total - x.log() - EULER_GAMMA)


def _fraction(x: Tensor) -> Tensor:
    """Return 1 / (e^x E1(x)) - x, which tends to 1 for large x."""
    fraction = torch.zeros_like(x)
    for k in range(70, 0, -1):
        fraction = k / (1 + k / (x + fraction))
    return fraction


def _by_continued_fraction(x: Tensor) -> Tensor:
    return 1 / (x + _fraction(x))


class _ScaledExp1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        small = _by_series(x.clamp(torch.finfo(x.dtype).tiny, SERIES_BELOW))
        return torch.where(x < SERIES_BELOW, small, _by_continued_fraction(x.clamp_min(SERIES_BELOW)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (scaled_exp1(x) - 1 / x)


class Horseshoe(Distribution):
    """Exact marginal of w | lambda ~ N(loc, (lambda scale)^2), lambda ~ C+(0, 1) (Carvalho, Polson & Scott 2010).

    p(w) = e^x E1(x) / (scale sqrt(2 pi^3)) with x = ((w - loc) / scale)^2 / 2. The density is infinite at ``loc``, with an
    integrable logarithmic pole; within 1e-15 scales of it the value there is used.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        z = ((value - self.loc) / self.scale).abs().clamp_min(NEAREST)
        return scaled_exp1(0.5 * z.square()).log() - self.scale.log() - 0.5 * math.log(2 * math.pi**3)

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Return samples, drawn through the local scale lambda."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            local = Cauchy(torch.zeros_like(self.loc), torch.ones_like(self.scale)).sample(sample_shape).abs()
            noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            return self.loc + self.scale * local * noise


class HorseshoePrior(ScalePrior):
    """Horseshoe marginal with global ``scale``: strong shrinkage of small weights, almost none of large ones.

    >>> prior = HorseshoePrior(scale=1.0)
    >>> bool(prior().log_prob(torch.tensor(1e-6)) > prior().log_prob(torch.tensor(1e-3)))
    True
    """

    kind = "horseshoe"
    needs_draw = False

    def forward(self) -> Distribution:
        """Return the distribution p(w)."""
        return Horseshoe(self.mean, self.typical_scale())

    def breakpoints(self, fine: bool = True) -> Tensor:
        """Return points at which quadrature splits its panels."""
        return around(self.mean, self.typical_scale(), (-30, 6) if fine else (-6, 0))

    @property
    def is_elementwise(self) -> bool:
        """Return True: all weights have the same scalar density."""
        return True

    def kernel_form(self) -> KernelForm:
        """Return the density as the GPU kernels know it."""
        table = _table(self.log_scale.dtype, self.log_scale.device)
        return KernelForm("horseshoe", self.mean, self.log_scale, table, LOWEST, CELL)

    @torch.no_grad()
    def kl_gradient(self, mean: Tensor, log_std: Tensor, draw: Tensor, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the gradient of the KL from a table.

        With r^2 = (mean - mu)^2 + std^2 the error of the gradient by the log std is below 2e-4, and that by the mean below
        2e-4 / r, for r above 1e-12 scales (tested against exact quadrature).

        Args:
            mean: posterior means.
            log_std: posterior log stds, the same shape.
            draw: not used.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Gradients by mean and by log std.
        """
        # The estimator at a draw has infinite variance near the pole.
        scale, distance = self.typical_scale(), mean - self.mean
        u = distance / scale
        pull, by_log_std = expected_pull(_table(mean.dtype, mean.device), u, log_std - self.log_scale)
        by_mean = pull.div_(scale)
        by_log_std.sub_(1)
        self._learn_from_kl(by_mean, by_log_std, distance, rate)
        return by_mean, by_log_std

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Return the slope of -log p from a table, to a relative error of 2e-4.

        Args:
            weights: weights.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Slopes; zero within 1e-15 scales of the pole.
        """
        distance, scale = weights - self.mean, self.typical_scale()
        u = distance / scale
        slope = pull_at(_table(u.dtype, u.device), u.abs()).div_(distance).masked_fill_(u.abs() < NEAREST, 0.0)
        self._learn_from_slope(slope, distance, rate)
        return slope


def _pull(log_distance: Tensor) -> Tensor:
    """Return u d/du (-log p) at u = e^log_distance scales from the pole, without cancellation."""
    x = (2 * log_distance).exp() / 2
    near = 1 / scaled_exp1(x.clamp_max(SERIES_BELOW)) - x
    return 2 * torch.where(x < SERIES_BELOW, near, _fraction(x.clamp_min(SERIES_BELOW)))


@lru_cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return kl_table(_pull).to(device, dtype) if dtype == torch.float64 else _table(torch.float64, device).to(dtype)
