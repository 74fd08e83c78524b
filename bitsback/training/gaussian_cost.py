"""KL to Gaussian priors of many weight tensors at once, and its gradient in closed form."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.model import Weight
from bitsback.priors import Prior
from bitsback.priors.gaussian import GaussianPrior
from bitsback.units import nats_to_bits

BITS_PER_NAT = nats_to_bits(1.0)


def has_one_scale(prior: Prior) -> bool:
    """True for N(mu, p^2) with one mu and one p for a whole tensor."""
    return type(prior) is GaussianPrior and prior.log_scale.ndim == 0


class GaussianCost:
    """KL of weight tensors from priors that :func:`has_one_scale` is true of; tensors may share a prior.

    Few numbers describe each tensor, so they are read once a step and worked on as floats.

    Args:
        weights: at least one.
        pieces: into how many pieces each is cut.
    """

    def __init__(self, weights: Sequence[Weight], pieces: Sequence[int]) -> None:
        priors = {id(weight.prior): weight.prior for weight in weights}
        self.priors: list[GaussianPrior] = list(priors.values())  # type: ignore[arg-type]
        places = {identity: place for place, identity in enumerate(priors)}
        self.prior_of = [places[id(weight.prior)] for weight in weights]
        self.prior_of_piece = [place for place, count in zip(self.prior_of, pieces, strict=True) for _ in range(count)]
        self.counts = [0] * len(self.priors)
        for place, weight in zip(self.prior_of, weights, strict=True):
            self.counts[place] += weight.posterior.weights

    @torch.no_grad()
    def bits(self, sums: list[Tensor], rate: float) -> Tensor:
        """Let priors that learn in closed form follow by ``rate``; the KL in bits, a leaf: a loss leaves its gradient there.

        Args:
            sums: of s^2, (m - mu)^2 and log s for each piece in turn.
            rate: how much of the way to their best the priors go.
        """
        several = torch.stack(sums)
        numbers = iter(several.tolist())
        self.moments, log_stds = [0.0] * len(self.priors), 0.0  # the first: E_q[(w - mu)^2], summed
        for place in self.prior_of_piece:
            self.moments[place] += next(numbers) + next(numbers)
            log_stds += next(numbers)
        nats, self.precisions = -log_stds, []
        for prior, moment, count in zip(self.priors, self.moments, self.counts, strict=True):
            log_scale = float(prior.log_scale)
            if prior.learns_in_closed_form:
                log_scale += rate * (0.5 * math.log(max(moment / count, 1e-30)) - log_scale)
                prior.log_scale.fill_(log_scale)
            precision = math.exp(-2 * log_scale)
            nats += 0.5 * moment * precision + count * (log_scale - 0.5)
            self.precisions.append(precision)
        self.leaf = several.new_tensor(nats_to_bits(nats)).requires_grad_()
        return self.leaf

    @torch.no_grad()
    def pull(self) -> tuple[float, list[float]]:
        """After the backward pass: k, and k / p^2 for each tensor; scales that learn by gradient get theirs."""
        k = 0.0 if self.leaf.grad is None else float(self.leaf.grad) * BITS_PER_NAT
        for prior, moment, count, precision in zip(self.priors, self.moments, self.counts, self.precisions, strict=True):
            if prior.log_scale.requires_grad:
                slope = torch.full_like(prior.log_scale, k * (count - moment * precision))
                prior.log_scale.grad = slope if prior.log_scale.grad is None else slope.add_(prior.log_scale.grad)
        return k, [k * self.precisions[place] for place in self.prior_of]
