"""Counts: whole numbers from zero up."""

import math
from typing import Literal

import torch
from torch import Tensor

from bitsback.likelihoods.base import Likelihood, LikelihoodSettings, match, per_example, registry, require, whole, width
from bitsback.units import nats_to_bits


class PoissonLikelihood(Likelihood):
    """Poisson counts; the outputs are log rates, in the shape of the targets.

    >>> round(PoissonLikelihood().bits(torch.zeros(1), torch.zeros(1)).item(), 4)  # rate 1, count 0: 1 / ln 2
    1.4427
    """

    kind = "poisson"
    error_name = "rmse"
    described = "counts"

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_rate, count = match(outputs, targets), targets.to(outputs.dtype)
        return nats_to_bits(per_example(log_rate.exp() - count * log_rate + torch.lgamma(count + 1)))

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.exp()

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        return per_example((match(predicted, targets) - targets).square()) / width(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        return targets.numel() * math.log2(float(targets.max()) + 1)

    def check_targets(self, targets: Tensor, where: str) -> None:
        require(whole(targets) & (targets >= 0), targets, where, "counts must be whole numbers from 0 up")

    def outputs(self, targets: Tensor) -> int:
        return width(targets)

    def summary(self, mean_error: float) -> float:
        return math.sqrt(mean_error)


@registry.register("poisson")
class PoissonSettings(LikelihoodSettings):
    """Counts, from log rates."""

    kind: Literal["poisson"] = "poisson"

    def build(self, classes: int | None) -> PoissonLikelihood:
        return PoissonLikelihood()
