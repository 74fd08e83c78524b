"""Gaussian prior, under which -log2 p(w) is an L2 penalty."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from bitsback.distributed import number_over_ranks, over_ranks
from bitsback.learned import plain
from bitsback.priors.base import KernelForm, Moments, Prior, add_gradient
from bitsback.registry import Learn

__all__ = ["GaussianPrior", "NormalPrior"]


class NormalPrior(Prior):
    """Base class of Gaussian priors, N(mean, scale^2) with mean and scale that broadcast to the weight tensor.

    With ``learn="closed_form"`` each scale is set to the root of the second moment E_q[(w - mean)^2] of the weights that
    share it, which minimises the KL exactly (empirical Bayes; Hinton & van Camp 1993, section 6).
    """

    has_closed_form = True
    needs_draw = False
    log_scale: Tensor

    def __init__(self, mean: float | Tensor, scale: float | Tensor, learn: Learn) -> None:
        super().__init__()
        self._store("mean", mean, "none")
        self._store_scale(scale, learn)

    def forward(self) -> Distribution:
        """Return the normal distribution."""
        return Normal(self.mean, self.typical_scale(), validate_args=False)

    def typical_scale(self) -> Tensor:
        """Return the scale or scales."""
        return self.log_scale.exp()

    def values(self) -> dict[str, Any]:
        """Return ``scale`` and ``mean``."""
        return {"scale": plain(self.log_scale.double().exp()), "mean": plain(self.mean)}

    @property
    def is_elementwise(self) -> bool:
        """Return True if mean and scale are single numbers."""
        return self.mean.ndim == 0 and self.log_scale.ndim == 0

    def kernel_form(self) -> KernelForm:
        """Return the density as the GPU kernels know it."""
        return KernelForm("normal", self.mean, self.log_scale)

    @torch.no_grad()
    def kl_gradient(self, mean: Tensor, log_std: Tensor, draw: Tensor, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the exact gradient of the KL, ((mean - mu) / scale^2, std^2 / scale^2 - 1).

        Args:
            mean: posterior means.
            log_std: posterior log stds, the same shape.
            draw: not used.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Gradients by mean and by log std.
        """
        precision = self.typical_scale().square().reciprocal_()
        distance = mean - self.mean
        by_mean = distance * precision
        by_log_std = (2 * log_std).exp_().mul_(precision).sub_(1)
        if rate and self.log_scale.requires_grad:
            add_gradient(self.log_scale, -torch.addcmul(by_log_std, by_mean, distance).sum_to_size(self.log_scale.shape), rate)
        return by_mean, by_log_std

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Return the slope of -log p, (w - mean) / scale^2.

        Args:
            weights: weights.
            rate: factor with which the gradient by the log scale is added to its ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        distance = weights - self.mean
        slope = distance / self.typical_scale().square()
        if rate and self.log_scale.requires_grad:
            add_gradient(self.log_scale, (1 - slope * distance).sum_to_size(self.log_scale.shape), rate)
        return slope

    def update(self, weights: Sequence[Moments], rate: float | Tensor = 1.0) -> None:
        """Move each log scale towards that of the root mean of E_q[(w - mean)^2], if it learns in closed form.

        Args:
            weights: posterior (mean, std) of every weight tensor that shares this prior.
            rate: share of the way; 1 goes to the optimum.
        """
        if self.learns_in_closed_form:
            sums, counts = zip(*(self._second_moment(mean, std) for mean, std in weights), strict=True)
            best = 0.5 * (over_ranks(torch.stack(sums).sum(0)) / number_over_ranks(sum(counts))).clamp_min(1e-30).log()
            self.log_scale.lerp_(best, rate.to(best) if isinstance(rate, Tensor) else rate)

    def _second_moment(self, mean: Tensor, std: Tensor | None) -> tuple[Tensor, float]:
        """Return the sum of E_q[(w - mean)^2] over the weights of each scale, and the number of weights of each."""
        moment = (mean - self.mean).square() + (0.0 if std is None else std.square())
        total = moment.sum_to_size(self.log_scale.shape)
        return total, moment.numel() / total.numel()


class GaussianPrior(NormalPrior):
    """Gaussian density, p(w) = N(w; mean, scale^2).

    ``-log2 p(w)`` is a constant plus (w - mean)^2 / (2 scale^2 ln 2), an L2 penalty.

    >>> prior = GaussianPrior(scale=2.0)
    >>> round(prior().log_prob(torch.tensor(0.0)).item(), 4)
    -1.6121
    """

    kind = "gaussian"

    @property
    def centre(self) -> float:
        """Return the mean as a float."""
        # Cached, because float() of a tensor on an accelerator waits for the device; the mean is never learned.
        found: float | None = self.__dict__.get("_centre")
        if found is None:
            found = self.__dict__["_centre"] = float(self.mean)
        return found

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.__dict__.pop("_centre", None)

    def __init__(self, scale: float = 0.3, *, mean: float = 0.0, learn: Learn = "none") -> None:
        super().__init__(mean, scale, learn)
