"""Mixtures of Gaussians as priors: fixed or adaptive, zero-mean or with learned means."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal

from bitsback.errors import PriorError
from bitsback.learned import BFLOAT16, LOGIT, plain
from bitsback.priors.base import KernelForm, Prior, add_gradient, around
from bitsback.registry import Learn

__all__ = ["AdaptiveMixturePrior", "MixturePrior", "ScaleMixturePrior", "SpikeAndSlabPrior"]

FARTHEST = 1e12
"""Bound on weights, such that (w / scale)^2 is finite in float32 for the narrowest scale on the grid."""

NOTHING = 80.0
"""Nats below the largest component at which a component's density is cut off; beyond, float32 exp gives slow denormals."""

AT_ONCE = 1 << 16
"""Weights times components processed at once, so that temporaries stay in a CPU's cache."""


class MixturePrior(Prior):
    """Mixture of Gaussians, p(w) = sum_k weight_k N(w; mean_k, scale_k^2).

    Learned numbers are the scales, the K - 1 free logits of the weights and, with ``learn_means``, the means.

    Args:
        scales: stds of the K components.
        weights: weights of the K components; they sum to one.
        means: means of the K components; default: zero.
        learn: how the numbers are learned.
        learn_means: learn the means too.

    Raises:
        PriorError: for a scale or weight that is not positive, weights that do not sum to one, or lists of unequal length.

    >>> mix = MixturePrior(scales=[0.01, 1.0], weights=[0.5, 0.5])
    >>> mix.values()["weights"]
    [0.5, 0.5]
    """

    kind = "mixture"
    mirrored = True
    means: Tensor
    log_scales: Tensor
    free_logits: Tensor

    def __init__(self, scales: list[float], weights: list[float], means: list[float] | None = None, *,
                 learn: Learn = "none", learn_means: bool = False) -> None:  # fmt: skip
        super().__init__()
        means = means if means is not None else [0.0] * len(scales)
        if not len(scales) == len(weights) == len(means) >= 2:
            raise PriorError(
                f"prior '{self.kind}' needs two or more components and as many weights as scales, "
                f"got {len(scales)} scales, {len(weights)} weights, {len(means)} means"
            )
        if min(weights) <= 0 or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
            raise PriorError(f"prior '{self.kind}' needs positive weights that sum to one, got {weights}")
        logits = torch.tensor(weights, dtype=torch.float64).log()
        self._store("means", means, learn if learn_means else "none", BFLOAT16)
        self._store_scale(scales, learn, "scales")
        self._store("free_logits", logits[1:] - logits[0], learn, LOGIT)

    def log_weights(self) -> Tensor:
        """Return the natural logarithms of the components' weights, (K,)."""
        return torch.nn.functional.pad(self.free_logits, (1, 0)).log_softmax(-1)

    def forward(self) -> Distribution:
        """Return the distribution p(w)."""
        components = Normal(self.means, self.log_scales.exp(), validate_args=False)
        return MixtureSameFamily(Categorical(logits=self.log_weights()), components, validate_args=False)

    @property
    def is_elementwise(self) -> bool:
        """Return True: all weights have the same scalar density."""
        return True

    def kernel_form(self) -> KernelForm:
        """Return the density as the GPU kernels know it."""
        return KernelForm("mixture", self.means, self.log_scales, self.free_logits)

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Return the slope of -log p: the components' slopes (w - mean_k) / scale_k^2, weighted by their share of p(w).

        Args:
            weights: weights, of any shape.
            rate: factor with which gradients by learned numbers are added to their ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        w, slope = weights.flatten(), torch.empty_like(weights).flatten()
        means, log_scales, log_weights = self.means.to(w), self.log_scales.to(w), self.log_weights().to(w)
        learns = rate != 0 and any(number.requires_grad for number in (self.means, self.log_scales, self.free_logits))
        heights, per_scale = (log_weights - log_scales).unsqueeze(1), (-log_scales).exp().mul_(math.sqrt(0.5)).unsqueeze(1)
        precisions, ones = (-2 * log_scales).exp(), torch.ones_like(means)
        held, distance, square = w.new_zeros(3, len(means))  # over all weights: share, share z, share z^2 of each component
        at_once = max(1, AT_ONCE // len(means)) if w.device.type == "cpu" else max(1, len(w))
        with torch.autocast(w.device.type, enabled=False):
            for part, into in zip(w.split(at_once), slope.split(at_once), strict=True):
                z = (part.clamp(-FARTHEST, FARTHEST) - means.unsqueeze(1)).mul_(per_scale)
                shares = z * z
                torch.sub(heights, shares, out=shares)
                shares.sub_(shares.amax(0)).clamp_min_(-NOTHING).exp_()
                total = shares.T.mv(ones)
                torch.mul(shares.T.mv(precisions), part, out=into).sub_(shares.T.mv(precisions * means)).div_(total)
                if learns:
                    held.add_(shares.div_(total).sum(1))
                    distance.add_(torch.mul(shares, z, out=shares).sum(1))
                    square.add_(torch.stack([torch.dot(one, other) for one, other in zip(shares, z, strict=True)]))
        if learns:
            add_gradient(self.free_logits, (log_weights.exp() * len(w) - held)[1:], rate)
            add_gradient(self.log_scales, held - 2 * square, rate)
            add_gradient(self.means, -2 * per_scale.squeeze(1) * distance, rate)
        return slope.view(weights.shape)

    def typical_scale(self) -> Tensor:
        """Return the root of the weighted mean of the components' variances."""
        return (self.log_weights().exp() * self.log_scales.exp().square()).sum().sqrt()

    def breakpoints(self, fine: bool = True) -> Tensor:
        """Return points at which quadrature splits its panels."""
        means = self.means.sort().values
        between = (means[1:] + means[:-1]) / 2  # the dominant component changes between neighbouring means
        return torch.cat([around(means, self.log_scales.exp(), (0, 4) if fine else (0, 2)).flatten(), between])

    def values(self) -> dict[str, Any]:
        """Return the current numbers by name."""
        scales, weights = plain(self.log_scales.double().exp()), plain(self._log_weights_in_float64().exp())
        return {"scales": scales, "weights": weights, "means": plain(self.means)}

    def _log_weights_in_float64(self) -> Tensor:
        return torch.nn.functional.pad(self.free_logits.double(), (1, 0)).log_softmax(-1)


class ScaleMixturePrior(MixturePrior):
    """Mixture of two or more zero-mean Gaussians (Blundell et al. 2015, equation 7)."""

    kind = "scale_mixture"


class AdaptiveMixturePrior(MixturePrior):
    """Mixture of K Gaussians with learned means, scales and weights (Hinton & van Camp 1993, section 6)."""

    kind = "adaptive_mixture"


class SpikeAndSlabPrior(MixturePrior):
    """Mixture of a narrow spike and a wide slab, both Gaussian, so that the KL of a Gaussian posterior is finite."""

    kind = "spike_and_slab"
