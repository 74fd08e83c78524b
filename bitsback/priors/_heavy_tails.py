"""Priors with heavier tails than the Gaussian, under which large weights cost fewer bits: Student's t, Cauchy, logistic."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Cauchy, Distribution, StudentT, constraints
from torch.nn.functional import softplus

from bitsback.errors import PriorError
from bitsback.priors.base import NO_SHAPE, KernelForm, ScalePrior, Shape
from bitsback.registry import Learn

__all__ = ["CauchyPrior", "Logistic", "LogisticPrior", "StudentTPrior"]


class StudentTPrior(ScalePrior):
    """Student's t with ``df`` degrees of freedom (fixed), location ``mean`` and ``scale``.

    Raises:
        PriorError: when ``df`` or ``scale`` is not positive.

    >>> round(StudentTPrior(df=1.0, scale=1.0)().log_prob(torch.tensor(0.0)).exp().item(), 4)  # Cauchy: 1 / pi
    0.3183
    """

    kind = "student_t"
    mirrored = True
    df: Tensor

    def __init__(self, scale: float = 0.3, *, df: float = 3.0, mean: float = 0.0, learn: Learn = "none") -> None:
        super().__init__(scale, mean=mean, learn=learn)
        if not df > 0:
            raise PriorError(f"prior 'student_t' needs positive degrees of freedom, got df = {df}; set prior.df above zero")
        self._store("df", df, "none")

    def forward(self) -> Distribution:
        """Return the distribution p(w)."""
        return StudentT(self.df, self.mean, self.typical_scale(), validate_args=False)

    @property
    def is_elementwise(self) -> bool:
        """Return True: all weights have the same scalar density."""
        return True

    def kernel_form(self) -> KernelForm:
        """Return the density as the GPU kernels know it."""
        return KernelForm("power", self.mean, self.log_scale, self.df)

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Return the slope of -log p.

        Args:
            weights: weights.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        return _power_slope(self, weights, self.df, rate)

    def values(self) -> dict[str, Any]:
        """Return the current numbers by name."""
        return {"df": float(self.df), **super().values()}


def _power_slope(prior: ScalePrior, weights: Tensor, df: Tensor | float, rate: float) -> Tensor:
    """Return the slope of -log p of Student's t, (df + 1) / (d + df scale^2 / d) with d = w - mu."""
    # In this form the result is correct at d = 0 and where d^2 overflows.
    distance = weights - prior.mean
    slope = (prior.typical_scale().square() * df / distance).add_(distance)
    torch.div(df + 1, slope, out=slope)
    prior._learn_from_slope(slope, distance, rate)
    return slope


class CauchyPrior(ScalePrior):
    """Cauchy density, p(w) = 1 / (pi scale (1 + ((w - mean) / scale)^2)).

    >>> round(CauchyPrior(scale=1.0)().log_prob(torch.tensor(0.0)).exp().item(), 4)
    0.3183
    """

    kind = "cauchy"
    mirrored = True

    def forward(self) -> Distribution:
        """Return the distribution p(w)."""
        return Cauchy(self.mean, self.typical_scale(), validate_args=False)

    @property
    def is_elementwise(self) -> bool:
        """Return True: all weights have the same scalar density."""
        return True

    def kernel_form(self) -> KernelForm:
        """Return the density as the GPU kernels know it."""
        return KernelForm("power", self.mean, self.log_scale, torch.ones_like(self.mean))

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Return the slope of -log p.

        Args:
            weights: weights.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        return _power_slope(self, weights, 1.0, rate)


class Logistic(Distribution):
    """Logistic distribution, density sech^2((x - loc) / (2 scale)) / (4 scale), which torch lacks.

    >>> round(Logistic(torch.tensor(0.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0)).exp().item(), 4)
    0.25
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        z = ((value - self.loc) / self.scale).abs()
        return -z - 2 * softplus(-z) - self.scale.log()

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Return samples by inversion of the distribution function, differentiable in location and scale."""
        tiny = torch.finfo(self.loc.dtype).tiny
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * torch.logit(uniform.clamp(tiny, 1 - torch.finfo(self.loc.dtype).eps))


class LogisticPrior(ScalePrior):
    """Logistic density: like a Gaussian near its centre, with exponential tails like a Laplace, and smooth.

    >>> round(LogisticPrior(scale=1.0)().log_prob(torch.tensor(0.0)).exp().item(), 4)
    0.25
    """

    kind = "logistic"
    mirrored = True

    def forward(self) -> Distribution:
        """Return the distribution p(w)."""
        return Logistic(self.mean, self.typical_scale())

    @property
    def is_elementwise(self) -> bool:
        """Return True: all weights have the same scalar density."""
        return True

    def kernel_form(self) -> KernelForm:
        """Return the density as the GPU kernels know it."""
        return KernelForm("logistic", self.mean, self.log_scale)

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Return the slope of -log p.

        Args:
            weights: weights.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        distance, scale = weights - self.mean, self.typical_scale()
        slope = (distance / (2 * scale)).tanh_().div_(scale)
        self._learn_from_slope(slope, distance, rate)
        return slope
