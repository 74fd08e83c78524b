"""The Laplace prior: its code length is L1."""

from typing import Literal

from torch.distributions import Distribution, Laplace

from bitsback.learned import GradientLearn
from bitsback.priors.base import ScalePrior, ScaleSettings, WeightInfo, registry


class LaplacePrior(ScalePrior):
    """p(w) = exp(-|w - mean| / scale) / (2 scale). ``-log2 p(w)`` is a constant plus |w - mean| / (scale ln 2): L1.

    >>> import torch
    >>> round(LaplacePrior(scale=2.0)().log_prob(torch.tensor(0.0)).item(), 4)
    -1.3863
    """

    kind = "laplace"

    def forward(self) -> Distribution:
        return Laplace(self.mean, self.width(), validate_args=False)


@registry.register("laplace")
class LaplacePriorSettings(ScaleSettings):
    """Laplace(mean, scale): L1 as a code."""

    kind: Literal["laplace"] = "laplace"
    learn: GradientLearn = "gradient"

    def build(self, weight: WeightInfo) -> LaplacePrior:
        return LaplacePrior(self.start_scale(weight), mean=self.mean, learn=self.learn)
