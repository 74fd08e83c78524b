"""Likelihood of counts: whole numbers from zero up."""

import math

import torch
from torch import Tensor

from bitsback.learned import LOG_SCALE
from bitsback.likelihoods._uncertainty import CountMixture
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
    """Poisson likelihood of counts; the outputs are log rates, in the shape of the targets.

    >>> round(PoissonLikelihood().bits(torch.zeros(1), torch.zeros(1)).item(), 4)  # rate 1, count 0: 1 / ln 2
    1.4427
    """

    kind = "poisson"
    error_name = "rmse"
    described = "counts"

    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -log2 of the Poisson probability of each example.

        Args:
            outputs: (n, ...), log rates.
            targets: (n, ...), counts.

        Returns:
            (n,).
        """
        self.check_targets(targets, "a")
        log_rate, count = match(outputs, targets), targets.to(outputs.dtype)
        return nats_to_bits(per_example(log_rate.exp() - count * log_rate + torch.lgamma(count + 1)))

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the rates."""
        return outputs.exp()

    def variance(self, outputs: Tensor) -> Tensor:
        """Return the variance of the counts, which is the rate."""
        return outputs.exp()

    def mixture(self) -> CountMixture:
        """Return an empty mixture of Poisson distributions."""
        return CountMixture()

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """Return the rates, rounded to six digits.

        Args:
            predicted: (n, ...), rates.
            std: not used.

        Returns:
            a record ``{"rate": ...}`` for each input.
        """
        return listed(rate=_six_digits(predicted))

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of the rate.

        Args:
            predicted: (n, ...), rates.
            targets: (n, ...), counts.

        Returns:
            (n,), mean over the numbers of an example.
        """
        return per_example((match(predicted, targets) - targets).square()) / numbers_per_example(targets)

    def uniform_bits(self, targets: Tensor) -> float:
        """Return the bits under the uniform code from 0 to the largest count."""
        return targets.numel() * math.log2(float(targets.max()) + 1)

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under one fitted rate, at least 1e-7, for each number of a target, charged on :data:`LOG_SCALE`."""
        counts = targets.detach().double().cpu().reshape(len(targets), -1)
        log_rate = LOG_SCALE.round(counts.mean(0).log())
        nats = log_rate.exp() - counts * log_rate + torch.lgamma(counts + 1)
        return nats_to_bits(float(nats.sum())) + counts.shape[1] * LOG_SCALE.bits_each

    def check_targets(self, targets: Tensor, where: str) -> None:
        """Check that targets are counts.

        Args:
            targets: (n, ...).
            where: name of the split.

        Raises:
            DataError: for the first that is not a whole number from 0 up.
        """
        require(whole(targets) & (targets >= 0), targets, where, "counts must be whole numbers from 0 up")

    def outputs(self, targets: Tensor) -> int:
        """Return the number of counts per example."""
        return numbers_per_example(targets)

    def summary(self, mean_error: float) -> float:
        """Return the root mean squared error."""
        return math.sqrt(mean_error)


def _six_digits(rates: Tensor) -> Tensor:
    scale = 10.0 ** (rates.double().clamp_min(1e-300).log10().floor() - 5)
    return (rates.double() / scale).round() * scale
