"""Likelihoods of counts: whole numbers from zero up."""

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bitsback.errors import DataError
from bitsback.learned import LOG_SCALE
from bitsback.likelihoods._uncertainty import CountMixture
from bitsback.likelihoods.base import (
    Answer,
    SymbolLikelihood,
    by_column,
    chunks,
    listed,
    match,
    mean_per_example,
    numbers_per_example,
    require,
    whole,
    with_hidden,
)
from bitsback.registry import GradientLearn
from bitsback.units import nats_to_bits

__all__ = ["NegativeBinomialLikelihood", "PoissonLikelihood"]

DISPERSION = 10.0
"""Initial dispersion: the std of large counts is about a third of their mean. It must not be small: a wide distribution
explains the counts by itself, and the KL then prunes the network, as with wide Gaussian noise.
"""

LOWEST_LOG, HIGHEST_LOG = LOG_SCALE.low, LOG_SCALE.low + (LOG_SCALE.levels - 1) * LOG_SCALE.step
"""Range of the log dispersion: that of its grid."""

EXACT = 50.0
"""Number above which log(1 + e^x) is x in float64."""


class _CountLikelihood(SymbolLikelihood):
    """Base class of likelihoods of counts; the outputs are log means, in the shape of the targets."""

    error_name = "rmse"
    described = "counts"

    def __init__(self, *, ignore: int | None = None) -> None:
        super().__init__()
        if ignore is not None and ignore >= 0:
            raise DataError(f"likelihood.ignore {ignore} is a count; mark what is not coded by one below zero, such as -100")
        self.ignore = ignore

    @abstractmethod
    def _count_nats(self, log_mean: Tensor, count: Tensor) -> Tensor:
        """Return -ln p(count), elementwise; both have the same shape."""

    def _nats(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_cpu:  # elsewhere a look at values waits for the device; training looked before it moved them there
            self._check_values(targets, "a")
        coded = self.coded(targets)
        log_mean, count = with_hidden(match(outputs, targets), coded), with_hidden(targets, coded).to(outputs.dtype)
        return with_hidden(self._count_nats(log_mean, count), coded)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return outputs.exp()

    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of the mean.

        Args:
            predicted: (n, ...), means.
            targets: (n, ...), counts.

        Returns:
            (n,), mean over the coded numbers of an example; 0 if it has none.
        """
        return mean_per_example((match(predicted, targets) - targets).square(), self.coded(targets))

    def uniform_bits(self, targets: Tensor) -> float:
        """Return the bits under the uniform code from 0 to the largest count."""
        largest = max(float(with_hidden(part, self.coded(part)).max()) for part in chunks(targets))
        return self.symbols(targets) * math.log2(largest + 1)

    def _columns(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield a matrix of counts, 0 where they are not coded, and where they are, for one chunk of rows after the other."""
        for part in chunks(targets):
            coded = self.coded(part)
            yield by_column(with_hidden(part, coded)), None if coded is None else coded.cpu().reshape(len(part), -1)

    def _log_means(self, targets: Tensor) -> Tensor:
        """Return the log mean of each column's coded counts, on :data:`LOG_SCALE`, in float64."""
        total, seen = (torch.zeros(numbers_per_example(targets), dtype=torch.float64) for _ in range(2))
        for counts, coded in self._columns(targets):
            total += counts.sum(0)
            seen += len(counts) if coded is None else coded.sum(0)
        return LOG_SCALE.round((total / seen.clamp_min(1)).log())

    def _check_values(self, targets: Tensor, where: str) -> None:
        need = "counts must be whole numbers from 0 up"
        require(lambda y: whole(y) & (y >= 0), targets, where, need, ignore=self.ignore)

    def outputs(self, targets: Tensor) -> int:
        """Return the number of counts per example."""
        return numbers_per_example(targets)

    def summary(self, mean_error: float) -> float:
        """Return the root mean squared error."""
        return math.sqrt(mean_error)


class PoissonLikelihood(_CountLikelihood):
    """Poisson likelihood of counts; the outputs are log rates, in the shape of the targets.

    Args:
        ignore: value of targets that are not coded, such as -100; default: all are coded.

    Raises:
        DataError: if the value is a count.

    >>> round(PoissonLikelihood().bits(torch.zeros(1), torch.zeros(1)).item(), 4)  # rate 1, count 0: 1 / ln 2
    1.4427
    """

    kind = "poisson"

    def _count_nats(self, log_mean: Tensor, count: Tensor) -> Tensor:
        return log_mean.exp() - count * log_mean + torch.lgamma(count + 1)

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

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under one fitted rate, at least 1e-7, for each number of a target, charged on :data:`LOG_SCALE`."""
        log_rate, nats = self._log_means(targets), 0.0
        for counts, coded in self._columns(targets):
            nats += float(with_hidden(self._count_nats(log_rate, counts), coded).sum())
        return nats_to_bits(nats) + len(log_rate) * LOG_SCALE.bits_each


class NegativeBinomialLikelihood(_CountLikelihood):
    """Likelihood of counts that vary more than Poisson's; the outputs are log means, in the shape of the targets.

    With mean m and dispersion r, p(k) = Gamma(k + r) / (Gamma(r) k!) (r / (r + m))^r (m / (r + m))^k, of variance m + m^2 / r:
    the mixture of Poisson distributions whose rates have a Gamma distribution of shape r (Greenwood & Yule 1920). All counts
    share one r, which is learned by gradient and charged on :data:`LOG_SCALE`. Bits are computed in float64, because they are
    small differences of large numbers where r is large.

    Args:
        dispersion: r, its initial value if it is learned; the larger, the closer to Poisson.
        learn: ``gradient``, or ``none``: r is fixed.
        ignore: value of targets that are not coded, such as -100; default: all are coded.

    Raises:
        DataError: if the value that is not coded is a count, and for a dispersion that is not positive.

    >>> likelihood = NegativeBinomialLikelihood(1.0, learn="none")  # geometric: p(k) = 2^-(k + 1) for mean 1
    >>> likelihood.bits(torch.zeros(3), torch.tensor([0.0, 1.0, 5.0])).round(decimals=4).tolist()
    [1.0, 2.0, 6.0]
    """

    kind = "negative_binomial"
    mistake = DataError
    log_dispersion: Tensor

    def __init__(self, dispersion: float = DISPERSION, *, learn: GradientLearn = "gradient", ignore: int | None = None) -> None:
        super().__init__(ignore=ignore)
        self._store_scale(dispersion, learn, "dispersion")
        self.learn, self.finds_noise = learn, learn != "none"

    def _count_nats(self, log_mean: Tensor, count: Tensor) -> Tensor:
        if self.learn != "none":
            with torch.no_grad():
                self.log_dispersion.clamp_(LOWEST_LOG, HIGHEST_LOG)  # else it could drift far beyond its grid
        return _nats(*map(_exact, (log_mean, count, self.log_dispersion))).to(log_mean)

    def variance(self, outputs: Tensor) -> Tensor:
        """Return m + m^2 / r in the shape of the outputs."""
        mean = outputs.exp()
        return mean + mean.square() / self.log_dispersion.exp()

    def mixture(self) -> CountMixture:
        """Return an empty mixture of negative binomial distributions with this dispersion."""
        return CountMixture(math.exp(float(self.log_dispersion)))

    def values(self) -> dict[str, Tensor]:
        """Return the dispersion, if it is learned."""
        return {"dispersion": self.log_dispersion.exp()} if self.learn != "none" else {}

    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """Return means, and stds if they are known, rounded to six digits.

        Args:
            predicted: (n, ...), means.
            std: (n, ...), predictive stds, or None.

        Returns:
            a record ``{"mean": ..., "std": ...}`` for each input.
        """
        return listed(mean=_six_digits(predicted), std=None if std is None else _six_digits(std))

    def marginal_bits(self, targets: Tensor) -> float:
        """Return the bits under one fitted mean and dispersion for each number of a target, charged on :data:`LOG_SCALE`.

        The dispersion is the best of its grid, found by bisection: given the mean, the likelihood has one maximum in r.

        Args:
            targets: (n, ...), counts.

        Returns:
            bits of all counts and parameters.
        """
        log_mean = self._log_means(targets)

        def nats(level: Tensor) -> Tensor:
            """Return -ln p of each column's counts with the dispersion of this level."""
            total = torch.zeros_like(log_mean)
            for counts, coded in self._columns(targets):
                total += with_hidden(_nats(log_mean, counts, LOG_SCALE.value(level)), coded).sum(0)
            return total

        low, high = torch.zeros_like(log_mean), torch.full_like(log_mean, LOG_SCALE.levels - 1)
        while bool((low < high).any()):
            middle, is_open = ((low + high) / 2).floor(), low < high
            falls = nats((middle + 1).clamp_max(LOG_SCALE.levels - 1)) < nats(middle)
            low, high = low.where(~(is_open & falls), middle + 1), high.where(~(is_open & ~falls), middle)
        return nats_to_bits(float(nats(low).sum())) + 2 * len(log_mean) * LOG_SCALE.bits_each


def _nats(log_mean: Tensor, count: Tensor, log_dispersion: Tensor) -> Tensor:
    """Return -ln of the negative binomial probability, elementwise, of float64 numbers."""
    dispersion, log_odds = log_dispersion.exp(), log_mean - log_dispersion
    ways = torch.lgamma(count + 1) + torch.lgamma(dispersion) - torch.lgamma(count + dispersion)
    return ways + dispersion * softplus(log_odds, threshold=EXACT) + count * softplus(-log_odds, threshold=EXACT)


def _exact(tensor: Tensor) -> Tensor:
    """Convert to float64, on the CPU where the device has none."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def _six_digits(rates: Tensor) -> Tensor:
    scale = 10.0 ** (rates.double().clamp_min(1e-300).log10().floor() - 5)
    return (rates.double() / scale).round() * scale
