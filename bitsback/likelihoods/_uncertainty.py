"""Mixtures, over weight draws, of the distributions that likelihoods give to targets: their entropies and quantiles."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bitsback.errors import DataError
from bitsback.units import nats_to_bits

__all__ = ["CountMixture", "LabelMixture", "Mixture", "NormalMixture"]

NUMBERS_AT_ONCE = 1 << 21
"""Numbers of a temporary tensor."""

BREAKS = torch.tensor([-8.5, -5.0, -2.5, 0.0, 2.5, 5.0, 8.5], dtype=torch.float64)
"""Distances from the mean, in stds, at which the integral over a mixture of normals is divided."""
NODES = 8
"""Gauss-Legendre nodes between two divisions; the error is below 1e-7 bits, measured against finer divisions."""
HALVINGS = 64
"""Bisections of a quantile of a mixture of normals; float64 has 53 bits."""

COUNTS_AT_ONCE = 256
TAIL = 1e-14
"""Probability of larger counts at which a sum over counts ends."""
LOWEST = 72.0
"""P(X <= m - t) <= exp(-t^2 / 2v) for counts of mean m and variance v: below e^-36 for t^2 = 72 v."""
MOST_COUNTS = 1 << 22
"""Largest number of counts that are summed over for one distribution."""


class Mixture(ABC):
    """Equal mixture, over weight draws, of the distributions of n targets.

    Entropies and quantiles are those of each label or number of a target by itself.
    """

    @abstractmethod
    def add(self, mean: Tensor, variance: Tensor | None) -> None:
        """Add the distributions under one more draw.

        Args:
            mean: (n, ...), float64, as :meth:`Likelihood.predict` returns it.
            variance: (n, ...), float64, as :meth:`Likelihood.variance` returns it, or None.
        """

    @abstractmethod
    def entropies_bits(self) -> tuple[Tensor, Tensor]:
        """Return the entropy of the mixture and the mean entropy of its components, each (n, ...), in bits.

        The difference is the mutual information of target and weights (Houlsby et al. 2011, "Bayesian active learning for
        classification and preference learning").
        """

    @abstractmethod
    def quantile(self, level: float) -> Tensor:
        """Return the smallest value up to which the mixture has the probability ``level``, (n, ...), in the targets' units.

        Raises:
            DataError: if the targets have no order, or just two values.
        """


class LabelMixture(Mixture):
    """Mixture of distributions of labels; only the sum of the probabilities and of the entropies is kept.

    Args:
        has_classes: whether the last axis holds the probabilities of all classes; else each number is a probability of 1.

    >>> mixture = LabelMixture(has_classes=True)
    >>> for probabilities in ([[1.0, 0.0]], [[0.0, 1.0]]):
    ...     mixture.add(torch.tensor(probabilities).double(), None)
    >>> [bits.tolist() for bits in mixture.entropies_bits()]
    [[1.0], [0.0]]
    """

    def __init__(self, *, has_classes: bool) -> None:
        self.has_classes = has_classes
        self._draws = 0
        self._probability: Tensor = torch.zeros(())
        self._entropy: Tensor = torch.zeros(())

    def add(self, mean: Tensor, variance: Tensor | None) -> None:
        """Add probabilities.

        Args:
            mean: (n, ..., C) or (n, ...), probabilities.
            variance: not used.
        """
        self._draws += 1
        self._probability = self._probability + mean
        self._entropy = self._entropy + self._bits(mean)

    def entropies_bits(self) -> tuple[Tensor, Tensor]:
        """Return the entropy of the mean probabilities, and the mean entropy."""
        return self._bits(self._probability / self._draws), self._entropy / self._draws

    def _bits(self, p: Tensor) -> Tensor:
        terms = torch.special.entr(p)
        return nats_to_bits(terms.sum(-1) if self.has_classes else terms + torch.special.entr(1 - p))

    def quantile(self, level: float) -> Tensor:
        """Refuse: labels have probabilities."""
        raise DataError("labels have probabilities, not intervals; read prediction.mean")


class _Kept(Mixture):
    """Mixture whose components are kept: 16 bytes for each draw and number."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []

    def add(self, mean: Tensor, variance: Tensor | None) -> None:
        """Keep mean and variance.

        Args:
            mean: (n, ...).
            variance: (n, ...).
        """
        assert variance is not None
        self._means.append(mean)
        self._variances.append(variance)

    def entropies_bits(self) -> tuple[Tensor, Tensor]:
        """Return the entropy of the mixture and the mean entropy of its components, in bits of each number on its grid."""
        found = [self._entropies(*part) for part in self._parts()]
        total, each = (nats_to_bits(torch.cat(pieces).reshape(self._means[0].shape)) for pieces in zip(*found, strict=True))
        return total, each

    def quantile(self, level: float) -> Tensor:
        """Return a quantile of each number.

        Raises:
            DataError: for a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise DataError(f"a quantile has a level between 0 and 1, got {level}; give one such as 0.95")
        found = [self._quantile(*part, level) for part in self._parts()]
        return torch.cat(found).reshape(self._means[0].shape)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield means and variances, each (draws, k), of some of the numbers at once."""
        draws, count = len(self._means), self._means[0].numel()
        means, variances = ([each.reshape(-1) for each in kept] for kept in (self._means, self._variances))
        size = max(1, NUMBERS_AT_ONCE // (draws * self._numbers_each))
        for start in range(0, max(count, 1), size):
            part = slice(start, start + size)
            yield torch.stack([each[part] for each in means]), torch.stack([each[part] for each in variances])

    _numbers_each: int

    @abstractmethod
    def _entropies(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entropy of mixtures and the mean entropy of their components, (k,), in nats; arguments (draws, k)."""

    @abstractmethod
    def _quantile(self, means: Tensor, variances: Tensor, level: float) -> Tensor:
        """Return quantiles (k,) of mixtures of components (draws, k)."""


class NormalMixture(_Kept):
    """Mixture of normals on a grid, whose probabilities are density times step.

    The entropy is the differential entropy less log2 of the step: bits of a number on its grid. The integral is divided at
    fixed distances from every mean, in stds of that component, with a Gauss-Legendre rule in between.

    Args:
        step: width of the grid, in the targets' units.

    >>> mixture = NormalMixture(step=1 / 1024)
    >>> mixture.add(torch.zeros(1).double(), torch.ones(1).double())
    >>> round(mixture.entropies_bits()[0].item(), 3)  # log2(sqrt(2 pi e)) + 10
    12.047
    >>> round(mixture.quantile(0.975).item(), 3)
    1.96
    """

    _numbers_each = len(BREAKS) * NODES

    def __init__(self, step: float) -> None:
        super().__init__()
        self._step = step

    def _entropies(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        each = (0.5 * (2 * math.pi * math.e * variances).log()).mean(0) - math.log(self._step)
        if len(means) == 1:
            return each, each
        away, stds = means - means[0], variances.sqrt()  # from one of the means, which may be far from zero
        ends = (away + stds * BREAKS[:, None, None]).flatten(0, 1).sort(0).values
        half, middle = (ends[1:] - ends[:-1]) / 2, (ends[1:] + ends[:-1]) / 2
        nodes, weights = (torch.from_numpy(found) for found in np.polynomial.legendre.leggauss(NODES))
        y = middle + half * nodes[:, None, None]
        density = torch.zeros_like(y)
        for mean, std in zip(away, stds, strict=True):
            density += (-0.5 * ((y - mean) / std).square()).exp() / (std * math.sqrt(2 * math.pi) * len(means))
        nats = (half * (weights[:, None, None] * torch.special.entr(density)).sum(0)).sum(0)
        return nats - math.log(self._step), each

    def _quantile(self, means: Tensor, variances: Tensor, level: float) -> Tensor:
        stds = variances.sqrt()
        each = means + stds * torch.special.ndtri(torch.tensor(level, dtype=torch.float64))
        low, high = each.amin(0), each.amax(0)  # the mixture's quantile lies between those of its components
        for _ in range(HALVINGS):
            middle = low + (high - low) / 2
            is_below = torch.special.ndtr((middle - means) / stds).mean(0) < level
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        return high


class CountMixture(_Kept):
    """Mixture of distributions of counts: Poisson, or negative binomial with variance m + m^2 / r.

    Args:
        dispersion: r of the negative binomial; None for Poisson.

    >>> mixture = CountMixture()
    >>> mixture.add(torch.ones(1).double(), torch.ones(1).double())
    >>> mixture.quantile(0.5).item(), mixture.quantile(0.95).item()
    (1.0, 3.0)
    """

    _numbers_each = COUNTS_AT_ONCE

    def __init__(self, dispersion: float | None = None) -> None:
        super().__init__()
        self._dispersion = dispersion

    def _entropies(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        total, each = torch.zeros_like(means[0]), torch.zeros_like(means[0])
        for _, pmf in self._blocks(means, variances):
            total += torch.special.entr(pmf.mean(1)).sum(0)
            each += torch.special.entr(pmf).mean(1).sum(0)
        return total, each

    def _quantile(self, means: Tensor, variances: Tensor, level: float) -> Tensor:
        below, found = torch.zeros_like(means[0]), torch.zeros_like(means[0])
        for counts, pmf in self._blocks(means, variances):
            cumulated = below + pmf.mean(1).cumsum(0)
            found = torch.where(below < level, counts[0] + (cumulated < level).sum(0), found)
            below = cumulated[-1]
        return found

    def _blocks(self, means: Tensor, variances: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield successive counts (c, k) and their probabilities (c, draws, k), until what is left is negligible."""
        r = self._dispersion
        spread = means / r if r is not None else torch.zeros_like(means)
        breadth = float((-math.log(TAIL) * spread + math.sqrt(LOWEST) * variances.sqrt()).amax()) if means.numel() else 0.0
        if not breadth + float(means.amax() - means.amin()) < MOST_COUNTS:
            raise DataError(
                f"a predicted rate is {float(means.amax()):.3g}, and its distribution spreads over more than {MOST_COUNTS:,} "
                "counts; entropies and intervals need smaller rates"
            )
        start = (means - (LOWEST * variances).sqrt()).amin(0).floor().clamp_min(0)
        limit = spread / (1 + spread) if r is not None else torch.zeros_like(means)  # of the ratio of two probabilities
        while True:
            counts = start + torch.arange(COUNTS_AT_ONCE, dtype=means.dtype)[:, None]
            pmf = self._log_pmf(counts[:, None], means).exp()
            yield counts, pmf
            last = counts[-1]
            ratio = (limit * (last + r) / (last + 1)).maximum(limit) if r is not None else means / (last + 1)
            if bool(((ratio < 1) & (pmf[-1] * ratio <= TAIL * (1 - ratio))).all()):  # a geometric series
                return
            start = last + 1

    def _log_pmf(self, counts: Tensor, means: Tensor) -> Tensor:
        r = self._dispersion
        if r is None:
            return torch.xlogy(counts, means) - means - torch.lgamma(counts + 1)
        chosen = torch.lgamma(counts + r) - math.lgamma(r) - torch.lgamma(counts + 1)
        return chosen - r * torch.log1p(means / r) + torch.xlogy(counts, means / (r + means))
