"""Counts: whole numbers from zero up."""

import math

import torch
from torch import Tensor

from bitsback.learned import LOG_SCALE
from bitsback.likelihoods.base import (
    Answer,
    Likelihood,
    listed,
    match,
    numbers_per_example,
    per_example,
    require,
    whole,
)
from bitsback.units import nats_to_bits

__all__ = ["PoissonLikelihood"]


class PoissonLikelihood(Likelihood):
    """Poisson counts; the outputs are log rates, in the shape of the targets.

    >>> round(PoissonLikelihood().bits(torch.zeros(1), torch.zeros(1)).item(), 4)  # rate 1, count 0: 1 / ln 2
    1.4427
    """

    kind = "poisson"
    error_name = "rmse"
    described = "counts"

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.check_targets(targets, "a")
        log_rate, count = match(outputs, targets), targets.to(outputs.dtype)
        return nats_to_bits(per_example(log_rate.exp() - count * log_rate + torch.lgamma(count + 1)))

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.exp()

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        return listed(rate=_six_digits(predicted))

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        return per_example((match(predicted, targets) - targets).square()) / numbers_per_example(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        return targets.numel() * math.log2(float(targets.max()) + 1)

    def marginal_bits(self, targets: Tensor) -> float:
        """Poisson counts of one rate for each number of a target, charged on the grid of scales; never below 1e-7."""
        counts = targets.detach().double().cpu().reshape(len(targets), -1)
        log_rate = LOG_SCALE.round(counts.mean(0).log())
        nats = log_rate.exp() - counts * log_rate + torch.lgamma(counts + 1)
        return nats_to_bits(float(nats.sum())) + counts.shape[1] * LOG_SCALE.bits_each

    def check_targets(self, targets: Tensor, where: str) -> None:
        require(whole(targets) & (targets >= 0), targets, where, "counts must be whole numbers from 0 up")

    def outputs(self, targets: Tensor) -> int:
        return numbers_per_example(targets)

    def summary(self, mean_error: float) -> float:
        return math.sqrt(mean_error)


def _six_digits(rates: Tensor) -> Tensor:
    scale = 10.0 ** (rates.double().clamp_min(1e-300).log10().floor() - 5)
    return (rates.double() / scale).round() * scale
