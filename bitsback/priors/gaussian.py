"""The Gaussian prior: its code length is L2."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from bitsback.learned import Learn, plain
from bitsback.priors.base import Moments, Prior, ScaleSettings, WeightInfo, registry


class NormalPrior(Prior):
    """N(mean, scale^2) whose mean and scale broadcast to the weight tensor; the base of every Gaussian prior.

    With ``learn="closed_form"`` each scale is set to the root of the second moment E_q[(w - mean)^2] of the weights that
    share it, which minimises the KL exactly (empirical Bayes; Hinton & van Camp 1993, section 6).
    """

    has_closed_form = True
    log_scale: Tensor

    def __init__(self, mean: float | Tensor, scale: float | Tensor, learn: Learn) -> None:
        super().__init__()
        self._store("mean", mean, "none")
        self._store_scale(scale, learn)

    def forward(self) -> Distribution:
        return Normal(self.mean, self.width(), validate_args=False)

    def width(self) -> Tensor:
        return self.log_scale.exp()

    def values(self) -> dict[str, Any]:
        return {"scale": plain(self.log_scale.double().exp()), "mean": plain(self.mean)}

    def update(self, weights: Sequence[Moments], rate: float = 1.0) -> None:
        if self.learns_in_closed_form:
            sums, counts = zip(*(self._second_moment(mean, std) for mean, std in weights), strict=True)
            best = 0.5 * (torch.stack(sums).sum(0) / sum(counts)).clamp_min(1e-30).log()
            self.log_scale.lerp_(best, rate)

    def _second_moment(self, mean: Tensor, std: Tensor | None) -> tuple[Tensor, float]:
        """Sum of E_q[(w - mean)^2] over the weights of each scale, and how many those are."""
        moment = (mean - self.mean).square() + (0.0 if std is None else std.square())
        total = moment.sum_to_size(self.log_scale.shape)
        return total, moment.numel() / total.numel()


class GaussianPrior(NormalPrior):
    """p(w) = N(mean, scale^2). ``-log2 p(w)`` is a constant plus (w - mean)^2 / (2 scale^2 ln 2): L2 is its code length.

    >>> prior = GaussianPrior(scale=2.0)
    >>> round(prior().log_prob(torch.tensor(0.0)).item(), 4)
    -1.6121
    """

    kind = "gaussian"

    @property
    def centre(self) -> float:
        """mu as a number, read once: it is never learned."""
        found: float | None = self.__dict__.get("_centre")
        if found is None:
            found = self.__dict__["_centre"] = float(self.mean)
        return found

    def __init__(self, scale: float = 0.3, *, mean: float = 0.0, learn: Learn = "none") -> None:
        super().__init__(mean, scale, learn)


@registry.register("gaussian")
class GaussianPriorSettings(ScaleSettings):
    """N(mean, scale^2): L2 as a code."""

    kind: Literal["gaussian"] = "gaussian"
    learn: Learn = "closed_form"

    def build(self, weight: WeightInfo) -> GaussianPrior:
        return GaussianPrior(self.start_scale(weight), mean=self.mean, learn=self.learn)
