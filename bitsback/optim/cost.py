"""What the weights cost, KL(q||p), for one optimiser step: its gradient by tensor, and closed-form priors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.model import BayesianModel, Weight
from bitsback.optim.pieces import rows
from bitsback.posterior import GaussianPosterior
from bitsback.priors import Prior
from bitsback.priors.gaussian import GaussianPrior

Sums = tuple[float, float, float]
"""Of s^2, (m - mu)^2 and log s over a tensor."""


def has_one_scale(prior: Prior) -> bool:
    """Return True for N(mu, p^2) with one mu and one p for a whole tensor."""
    return type(prior) is GaussianPrior and prior.log_scale.ndim == 0


def sums_of(distance: Tensor, std: Tensor, log_std: Tensor) -> list[Tensor]:
    """Return the sums over a piece, in one order wherever they are taken: a resumed training goes on at the same bits."""
    return [torch.dot(std, std), torch.dot(distance, distance), log_std.sum()]


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
        self._sharing: dict[int, list[int]] = {}
        self._counts: dict[int, int] = dict.fromkeys(self.priors, 0)
        for weight in weights:
            self._sharing.setdefault(id(weight.prior), []).append(weight.number)
            self._counts[id(weight.prior)] += weight.posterior.weights

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
        total = [0.0, 0.0, 0.0]
        for m, log_std in zip(*map(rows, [q.mean, q.log_std]), strict=True):
            parts = sums_of(m - centre if centre else m, log_std.exp(), log_std)
            for place, part in enumerate(torch.stack(parts).tolist()):
                total[place] += part
        self.sums[weight.number] = total[0], total[1], total[2]
        self.marks[weight.number] = weight.versions()[1:]

    @torch.no_grad()
    def follow(self, rate: float, k: float) -> float:
        """Let priors that learn in closed form follow by ``rate`` of the way; return the KL in nats.

        Scales that learn by gradient get ``k`` times that of the KL.
        """
        nats = 0.0
        for identity, prior in self.priors.items():
            count, sums = self._counts[identity], [self.sums[number] for number in self._sharing[identity]]
            moment = sum(variance + distance for variance, distance, _ in sums)
            kept = prior.log_scale
            log_scale = float(kept)
            if rate and prior.learns_in_closed_form:
                log_scale += rate * (0.5 * math.log(max(moment / count, 1e-30)) - log_scale)
                log_scale = float(kept.fill_(log_scale))
            precision = self.precision[identity] = math.exp(-2 * log_scale)
            nats += 0.5 * moment * precision + count * (log_scale - 0.5) - sum(log_std for _, _, log_std in sums)
            if kept.requires_grad:
                slope = torch.full_like(kept, k * (count - moment * precision))
                kept.grad = slope if kept.grad is None else kept.grad.add_(slope)
        return nats


def weights_with_one_scale(model: BayesianModel, among: Sequence[Weight]) -> list[Weight]:
    """Return the weights ``among`` which :class:`GaussianCost` counts: those whose prior is shared with no other kind."""
    mine = {weight.number for weight in among}
    found = []
    for prior, sharing in model.weights_by_prior():
        if has_one_scale(prior) and all(weight.number in mine and weight.is_gaussian for weight in sharing):
            found += sharing
    return sorted(found, key=lambda weight: weight.number)
