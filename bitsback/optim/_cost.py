"""What the weights cost, KL(q||p), for one optimiser step: its gradient by tensor, and closed-form priors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.model import BayesianModel, Weight
from bitsback.model.pieces import rows
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import Prior
from bitsback.priors.gaussian import GaussianPrior

__all__ = ["GaussianCost", "Sums", "has_one_scale", "sums_of", "weights_with_one_scale"]

Sums = tuple[float, float]
"""Of s^2 and (m - mu)^2 over a tensor."""


def has_one_scale(prior: Prior) -> bool:
    """Return True for N(mu, p^2) with one mu and one p for a whole tensor."""
    return type(prior) is GaussianPrior and prior.log_scale.ndim == 0


def sums_of(distance: Tensor, std: Tensor) -> list[Tensor]:
    """Return the sums over a piece, in one order wherever they are taken: a resumed training goes on at the same bits."""
    return [torch.dot(std, std), torch.dot(distance, distance)]


class GaussianCost:
    """KL of tensors under priors that :func:`has_one_scale` is true of; tensors may share a prior.

    Two sums describe each tensor. They come out of the pass that moved it, so that the KL's gradient and the best scale are
    known before the next one begins.

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
        self._numbers = {weight.index for weight in weights}
        self._sharing: dict[int, list[int]] = {}
        self._counts: dict[int, int] = dict.fromkeys(self.priors, 0)
        for weight in weights:
            self._sharing.setdefault(id(weight.prior), []).append(weight.index)
            self._counts[id(weight.prior)] += weight.posterior.numel

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def precision_of(self, weight: Weight) -> float:
        """Return 1 / p^2 of a weight's prior, as :meth:`follow` left it."""
        return self.precision[id(weight.prior)]

    def refresh(self, weight: Weight) -> None:
        """Take the sums of a tensor that others have moved."""
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
        """Let priors that learn in closed form follow by ``rate`` of the way; others get ``k`` times the KL's gradient."""
        for identity, prior in self.priors.items():
            count, moment, kept = self._counts[identity], self._moment(identity), prior.log_scale
            log_scale = float(kept)
            if rate and prior.learns_in_closed_form:
                log_scale += rate * (0.5 * math.log(max(moment / count, 1e-30)) - log_scale)
                log_scale = float(kept.fill_(log_scale))
            precision = self.precision[identity] = math.exp(-2 * log_scale)
            if kept.requires_grad:
                slope = torch.full_like(kept, k * (count - moment * precision))
                kept.grad = slope if kept.grad is None else kept.grad.add_(slope)

    def _moment(self, identity: int) -> float:
        """The sum of E_q[(w - mu)^2] over the weights of a prior."""
        return sum(sum(self.sums[number]) for number in self._sharing[identity])

    @torch.no_grad()
    def nats(self) -> float:
        """Return KL(q||p) as the sums have it."""
        total = 0.0
        for identity, prior in self.priors.items():
            log_scale = float(prior.log_scale)
            total += 0.5 * self._moment(identity) * math.exp(-2 * log_scale) + self._counts[identity] * (log_scale - 0.5)
        log_stds = [row.sum() for weight in self.weights for row in rows(weight.tensors()[2])]
        return total - math.fsum(map(float, log_stds))


def weights_with_one_scale(model: BayesianModel, among: Sequence[Weight]) -> list[Weight]:
    """Return the weights ``among`` which :class:`GaussianCost` counts: those whose prior is shared with no other kind."""
    mine = {weight.index for weight in among}
    found = []
    for prior, sharing in model.weights_by_prior():
        if has_one_scale(prior) and all(weight.index in mine and weight.is_gaussian for weight in sharing):
            found += sharing
    return sorted(found, key=lambda weight: weight.index)
