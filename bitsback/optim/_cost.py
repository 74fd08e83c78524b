"""KL(q||p) of weights whose prior is one Gaussian per tensor, from two sums, and the update of those priors' scales."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.distributed import ALONE, Ranks
from bitsback.model import BayesianModel, Weight
from bitsback.model.pieces import rows
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import Prior
from bitsback.priors.gaussian import GaussianPrior

__all__ = ["GaussianCost", "Sums", "has_one_scale", "sums_of", "weights_with_one_scale"]

Sums = tuple[float, float]
"""Sums of s^2 and of (m - mu)^2 over a tensor."""


def has_one_scale(prior: Prior) -> bool:
    """Return True for a prior N(mu, p^2) with a single mu and a single p for all weights."""
    return type(prior) is GaussianPrior and prior.log_scale.ndim == 0


def sums_of(distance: Tensor, std: Tensor) -> list[Tensor]:
    """Return the sums of squares of ``std`` and ``distance`` over a piece, as two scalar tensors.

    Args:
        distance: m - mu, (n,).
        std: posterior stds, (n,).

    Returns:
        Sum of std^2, sum of distance^2.
    """
    # Both callers (the sweep and `refresh`) sum in this order, so a resumed training is bit-identical to an uninterrupted one.
    return [torch.dot(std, std), torch.dot(distance, distance)]


class GaussianCost:
    """KL of weight tensors whose priors satisfy :func:`has_one_scale`; several tensors may share a prior.

    Under such a prior the KL and the best scale depend on sum s^2, sum (m - mu)^2 and sum log s alone. The first two are
    computed in the pass that moves a tensor, so the next step needs no extra pass for the prior's scale.

    Args:
        weights: weights with Gaussian posteriors.
        ranks: processes that hold shards of them, over which the sums are added up.
    """

    def __init__(self, weights: Sequence[Weight], ranks: Ranks = ALONE) -> None:
        self.weights, self.ranks = list(weights), ranks
        self.priors: dict[int, GaussianPrior] = {id(w.prior): w.prior for w in weights}  # type: ignore[misc]
        self.sums: dict[int, Sums] = {}
        self.precision: dict[int, float] = {}
        self.marks: dict[int, tuple[int, ...]] = {}
        """By weight index: version counters of mean and log std at which the sums were taken."""
        self._numbers = {weight.index for weight in weights}
        self._sharing: dict[int, list[int]] = {}
        self._counts: dict[int, int] = dict.fromkeys(self.priors, 0)
        for weight in weights:
            self._sharing.setdefault(id(weight.prior), []).append(weight.index)
            self._counts[id(weight.prior)] += weight.numel

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def precision_of(self, weight: Weight) -> float:
        """Return 1 / p^2 of a weight's prior as of the last :meth:`follow`."""
        return self.precision[id(weight.prior)]

    def refresh(self, weight: Weight) -> None:
        """Recompute the sums of a tensor whose posterior was changed outside the sweep."""
        q = weight.posterior
        assert isinstance(q, GaussianPosterior)
        centre = self.priors[id(weight.prior)].centre
        variance = distance = 0.0
        for m, log_std in zip(*map(rows, [q.mean, q.log_std]), strict=True):
            one, other = map(float, sums_of(m - centre if centre else m, log_std.exp()))
            variance, distance = variance + one, distance + other
        self.sums[weight.index] = variance, distance
        self.marks[weight.index] = weight.versions()[1:]

    @torch.no_grad()
    def follow(self, rate: float, k: float) -> None:
        """Update closed-form priors, and add the KL's gradient to the log scales that are learned by gradient.

        Args:
            rate: share of the way, in log scale, from the current scale to the optimum p^2 = mean of E_q[(w - mu)^2].
            k: factor of the KL gradient, beta / N in units of the loss.
        """
        moments = self._moments()
        for identity, prior in self.priors.items():
            count, moment, kept = self._counts[identity], moments[identity], prior.log_scale
            log_scale = float(kept)
            if rate and prior.learns_in_closed_form:
                log_scale += rate * (0.5 * math.log(max(moment / count, 1e-30)) - log_scale)
                log_scale = float(kept.fill_(log_scale))
            precision = self.precision[identity] = math.exp(-2 * log_scale)
            if kept.requires_grad:
                slope = torch.full_like(kept, k * (count - moment * precision))
                kept.grad = slope if kept.grad is None else kept.grad.add_(slope)

    def _moments(self) -> dict[int, float]:
        """Return the sum of E_q[(w - mu)^2] over the weights of each prior."""
        own = [sum(sum(self.sums[number]) for number in self._sharing[identity]) for identity in self.priors]
        return dict(zip(self.priors, self.ranks.sums(own), strict=True))

    @torch.no_grad()
    def nats(self) -> float:
        """Return KL(q||p) in nats, computed from the stored sums and the current log stds."""
        total, moments = 0.0, self._moments()
        for identity, prior in self.priors.items():
            log_scale = float(prior.log_scale)
            total += 0.5 * moments[identity] * math.exp(-2 * log_scale) + self._counts[identity] * (log_scale - 0.5)
        log_stds = [row.sum() for weight in self.weights for row in rows(weight.tensors()[2])]
        return total - self.ranks.sums([math.fsum(map(float, log_stds))])[0]


def weights_with_one_scale(model: BayesianModel, among: Sequence[Weight]) -> list[Weight]:
    """Return the weights that :class:`GaussianCost` can handle.

    A prior qualifies if it has one scale and every weight that shares it is Gaussian and in ``among``.

    Args:
        model: model whose priors are looked at.
        among: candidate weights.

    Returns:
        The qualifying weights, by index.
    """
    mine = {weight.index for weight in among}
    found = []
    for prior, sharing in model.weights_by_prior():
        if has_one_scale(prior) and all(weight.index in mine and weight.is_gaussian for weight in sharing):
            found += sharing
    return sorted(found, key=lambda weight: weight.index)
