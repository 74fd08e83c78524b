"""What the weights cost, KL(q||p), for one optimiser step: its gradient by tensor, and closed-form priors."""

import math
from collections.abc import Sequence

import torch

from bitsback.model import BayesianModel, Weight
from bitsback.posterior import GaussianPosterior
from bitsback.priors import Prior
from bitsback.priors.gaussian import GaussianPrior

Sums = tuple[float, float, float]
"""Of s^2, (m - mu)^2 and log s over a tensor."""


def has_one_scale(prior: Prior) -> bool:
    """Return True for N(mu, p^2) with one mu and one p for a whole tensor."""
    return type(prior) is GaussianPrior and prior.log_scale.ndim == 0


class GaussianCost:
    """KL of tensors under priors that :func:`has_one_scale` is true of; tensors may share a prior.

    Three sums describe each tensor. They come out of the pass that moved it, so that the KL, its gradient and the best scale
    are known before the next one begins.

    Args:
        weights: with Gaussian posteriors.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        self.weights = list(weights)
        self.priors: dict[int, GaussianPrior] = {id(w.prior): w.prior for w in weights}  # type: ignore[misc]
        self.sums: dict[int, Sums] = {}
        self.precision: dict[int, float] = {}
        self.marks: dict[int, tuple[int, ...]] = {}
        """Versions of the posteriors that the sums are of."""
        self._numbers = {weight.number for weight in weights}

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def precision_of(self, weight: Weight) -> float:
        """Return 1 / p^2 of a weight's prior, as :meth:`follow` left it."""
        return self.precision[id(weight.prior)]

    def refresh(self, weight: Weight) -> None:
        """Take the sums of a tensor that others have moved."""
        q = weight.posterior
        assert isinstance(q, GaussianPosterior)
        distance = q.mean - self.priors[id(weight.prior)].centre
        parts = torch.stack([(2 * q.log_std).exp().sum(), distance.square().sum(), q.log_std.sum()]).double()
        variance, square, log_std = parts.tolist()
        self.sums[weight.number] = variance, square, log_std
        self.marks[weight.number] = weight.versions()[1:]

    def moments(self) -> dict[int, tuple[float, int]]:
        """Return the sum of E_q[(w - mu)^2], and of how many weights, by prior."""
        found: dict[int, tuple[float, int]] = dict.fromkeys(self.priors, (0.0, 0))
        for weight in self.weights:
            variance, distance, _ = self.sums[weight.number]
            moment, count = found[id(weight.prior)]
            found[id(weight.prior)] = moment + variance + distance, count + weight.posterior.weights
        return found

    @torch.no_grad()
    def follow(self, rate: float, k: float) -> float:
        """Let priors that learn in closed form follow by ``rate`` of the way; return the KL in nats.

        Scales that learn by gradient get ``k`` times that of the KL.
        """
        nats = -math.fsum(self.sums[weight.number][2] for weight in self.weights)
        for identity, (moment, count) in self.moments().items():
            prior = self.priors[identity]
            log_scale = float(prior.log_scale)
            if prior.learns_in_closed_form and rate:
                log_scale += rate * (0.5 * math.log(max(moment / count, 1e-30)) - log_scale)
                prior.log_scale.fill_(log_scale)
                log_scale = float(prior.log_scale)
            precision = math.exp(-2 * log_scale)
            nats += 0.5 * moment * precision + count * (log_scale - 0.5)
            self.precision[identity] = precision
            if prior.log_scale.requires_grad:
                slope = torch.full_like(prior.log_scale, k * (count - moment * precision))
                prior.log_scale.grad = slope if prior.log_scale.grad is None else prior.log_scale.grad.add_(slope)
        return nats


def weights_with_one_scale(model: BayesianModel, among: Sequence[Weight]) -> list[Weight]:
    """Return the weights ``among`` which :class:`GaussianCost` counts: those whose prior is shared with no other kind."""
    mine = {weight.number for weight in among}
    found = []
    for prior, sharing in model.weights_by_prior():
        if has_one_scale(prior) and all(weight.number in mine and weight.is_gaussian for weight in sharing):
            found += sharing
    return sorted(found, key=lambda weight: weight.number)
