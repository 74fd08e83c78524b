"""What a step lowers: the description length, or a bound on the risk.

The bounds are those of Perez-Ortiz, Rivasplata, Shawe-Taylor & Szepesvari 2021, "Tighter risk certificates for neural networks"
(JMLR 22), with R the mean of cut-off, scaled cross-entropies and c = (KL + ln(2 sqrt(n) / delta)) / n in nats:

- ``quad`` (equation 8): (sqrt(R + c/2) + sqrt(c/2))^2,
- ``lambda`` (equation 9): R / (1 - lambda/2) + c / (lambda (1 - lambda/2)), for a learned lambda in (0, 1),
- ``classic`` (equation 10): R + sqrt(c/2).

They are for training only: a certificate is taken afterwards, of the 0-1 loss (:mod:`bitsback.certificates`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bitsback.certificates.bounds import complexity
from bitsback.errors import ConfigError
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.training.settings import AnyObjectiveSettings, BoundSettings
from bitsback.units import bits_to_nats

__all__ = ["DescriptionLength", "Objective", "RiskBound", "make_objective"]


class Objective(nn.Module, ABC):
    """From the mean cost of a batch and the bits of the weights to the loss of a step; what it learns is a parameter."""

    examples: int

    def cost(self, bits: Tensor) -> Tensor:
        """Return what each example counts for, (k,), from its data bits, (k,)."""
        return bits

    @abstractmethod
    def forward(self, mean_cost: Tensor, weight_bits: Tensor) -> Tensor:
        """Return the loss, a scalar, from the mean of :meth:`cost` and beta times KL(q || p)."""

    def weigh(self, mean_cost: float, weight_bits: float, gradients: Callable[[], list[Tensor]]) -> float:
        """Turn gradients of the mean cost into those of the loss, in place; returns the loss's gradient for N x bits of KL.

        Args:
            mean_cost, weight_bits: of this step.
            gradients: all that the mean cost has left.
        """
        data, weights = (torch.tensor(cost, dtype=torch.float64, requires_grad=True) for cost in (mean_cost, weight_bits))
        with torch.enable_grad():
            self(data, weights).backward()
        assert data.grad is not None
        assert weights.grad is not None
        own = {id(p.grad) for p in self.parameters()}
        torch._foreach_mul_([g for g in gradients() if id(g) not in own], float(data.grad))
        return float(weights.grad) * self.examples


class DescriptionLength(Objective):
    """Net bits per example.

    >>> DescriptionLength(examples=10)(torch.tensor(2.0), torch.tensor(5.0)).item()
    2.5
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples

    def forward(self, mean_cost: Tensor, weight_bits: Tensor) -> Tensor:
        return mean_cost + weight_bits / self.examples

    def weigh(self, mean_cost: float, weight_bits: float, gradients: Callable[[], list[Tensor]]) -> float:
        return 1.0  # they are the loss's already


class RiskBound(Objective):
    """A bound on the risk.

    Args:
        settings: which bound, and its delta.
        examples: n.
        other_bits: what the ledger charges besides the KL, the same at every step.

    >>> from bitsback.training.settings import BoundSettings
    >>> bound = RiskBound(BoundSettings(kind="classic", p_min=0.25), examples=1000, other_bits=0.0)
    >>> round(bound(bound.cost(torch.tensor([1.0, 9.0])).mean(), torch.tensor(50.0)).item(), 4)
    0.8958
    """

    def __init__(self, settings: BoundSettings, examples: int, other_bits: float) -> None:
        super().__init__()
        self.settings, self.examples = settings, examples
        self.most_bits = -math.log2(settings.p_min)
        self.fixed = complexity(other_bits, examples, settings.delta)
        if settings.kind == "lambda":
            self.logit_lambda = nn.Parameter(torch.zeros(()))

    def cost(self, bits: Tensor) -> Tensor:
        return bits.clamp_max(self.most_bits) / self.most_bits

    def forward(self, mean_cost: Tensor, weight_bits: Tensor) -> Tensor:
        risk, c = mean_cost, bits_to_nats(weight_bits) / self.examples + self.fixed
        if self.settings.kind == "quad":
            return ((risk + c / 2).sqrt() + (c / 2).sqrt()).square()
        if self.settings.kind == "classic":
            return risk + (c / 2).sqrt()
        weight = self.logit_lambda.sigmoid().to(mean_cost.device)
        return risk / (1 - weight / 2) + c / (weight * (1 - weight / 2))


def make_objective(settings: AnyObjectiveSettings, likelihood: Likelihood, examples: int, other_bits: float) -> Objective:
    """The objective of a training on so many examples; ``other_bits`` are charged besides the KL and do not change.

    Raises:
        ConfigError: for a bound without labels.
    """
    if not isinstance(settings, BoundSettings):
        return DescriptionLength(examples)
    if not isinstance(likelihood, CategoricalLikelihood):
        raise ConfigError(
            f"training.objective: {settings.kind} bounds the probability of a wrong label, and a '{likelihood.kind}' "
            "likelihood has none; use kind: elbo"
        )
    return RiskBound(settings, examples, other_bits)
