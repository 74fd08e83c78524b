"""Objectives of training: the description length, or a bound on the risk.

The bounds are those of Perez-Ortiz, Rivasplata, Shawe-Taylor & Szepesvari 2021, "Tighter risk certificates for neural
networks" (JMLR 22), with R the mean of truncated, rescaled cross-entropies and c = (KL + ln(2 sqrt(n) / delta)) / n in nats:

- ``quad`` (equation 8): (sqrt(R + c/2) + sqrt(c/2))^2,
- ``lambda`` (equation 9): R / (1 - lambda/2) + c / (lambda (1 - lambda/2)), for a learned lambda in (0, 1),
- ``classic`` (equation 10): R + sqrt(c/2).

They are used in training only: a certificate is computed afterwards, for the 0-1 loss (:mod:`bitsback.certificates`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bitsback.certificates.bounds import complexity
from bitsback.errors import ConfigError
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.base import numbers_per_example
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.training.settings import AnyObjectiveSettings, BoundSettings
from bitsback.units import bits_to_nats

__all__ = ["DescriptionLength", "Objective", "RiskBound", "make_objective"]


class Objective(nn.Module, ABC):
    """Base class of objectives: a loss of the mean cost of a batch and the bits of the weights. Its parameters are trained too.

    Attributes:
        examples: number of training examples, N.
    """

    examples: int

    def cost(self, bits: Tensor) -> Tensor:
        """Return the cost of each example, (k,), from its data bits, (k,)."""
        return bits

    @abstractmethod
    def forward(self, mean_cost: Tensor, weight_bits: Tensor) -> Tensor:
        """Return the loss.

        Args:
            mean_cost: mean of :meth:`cost` over a batch, a scalar.
            weight_bits: beta times KL(q || p), in bits, a scalar.

        Returns:
            a scalar.
        """

    def weigh(self, mean_cost: float, weight_bits: float, gradients: Callable[[], list[Tensor]]) -> float:
        """Rescale gradients of the mean cost to gradients of the loss, in place.

        Args:
            mean_cost: of this step.
            weight_bits: beta times KL(q || p) of this step, in bits.
            gradients: returns all gradients of the mean cost.

        Returns:
            derivative of the loss with respect to the weight bits, times N: the factor of the KL's gradient.
        """
        data, weights = (torch.tensor(cost, dtype=torch.float64, requires_grad=True) for cost in (mean_cost, weight_bits))
        with torch.enable_grad():
            self(data, weights).backward()
        assert data.grad is not None
        assert weights.grad is not None
        # backward() has set the gradients of the objective's own parameters; they must not be rescaled
        own = {id(p.grad) for p in self.parameters()}
        torch._foreach_mul_([g for g in gradients() if id(g) not in own], float(data.grad))
        return float(weights.grad) * self.examples


class DescriptionLength(Objective):
    """Net bits per example: the mean data bits plus KL / N.

    >>> DescriptionLength(examples=10)(torch.tensor(2.0), torch.tensor(5.0)).item()
    2.5
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples

    def forward(self, mean_cost: Tensor, weight_bits: Tensor) -> Tensor:
        """Return bits per example.

        Args:
            mean_cost: mean data bits of a batch.
            weight_bits: beta times KL(q || p), in bits.

        Returns:
            a scalar.
        """
        return mean_cost + weight_bits / self.examples


class RiskBound(Objective):
    """PAC-Bayes bound on the risk.

    Args:
        settings: kind of the bound, and its delta.
        examples: n.
        other_bits: bits that the ledger charges besides the KL, constant during training.

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
        """Return the data bits, truncated at log2(1 / p_min) and rescaled to [0, 1]."""
        return bits.clamp_max(self.most_bits) / self.most_bits

    def forward(self, mean_cost: Tensor, weight_bits: Tensor) -> Tensor:
        """Return the bound.

        Args:
            mean_cost: R, mean of :meth:`cost` over a batch.
            weight_bits: beta times KL(q || p), in bits.

        Returns:
            a scalar.
        """
        risk, c = mean_cost, bits_to_nats(weight_bits) / self.examples + self.fixed
        if self.settings.kind == "quad":
            return ((risk + c / 2).sqrt() + (c / 2).sqrt()).square()
        if self.settings.kind == "classic":
            return risk + (c / 2).sqrt()
        weight = self.logit_lambda.sigmoid().to(mean_cost.device)
        return risk / (1 - weight / 2) + c / (weight * (1 - weight / 2))


def make_objective(settings: AnyObjectiveSettings, likelihood: Likelihood, targets: Tensor, other_bits: float) -> Objective:
    """Make the objective of a training.

    Args:
        settings: kind of the objective.
        likelihood: of the targets.
        targets: of the training examples, (n, ...).
        other_bits: bits that the ledger charges besides the KL, constant during training.

    Returns:
        the objective.

    Raises:
        ConfigError: for a bound without labels, or with several for an example.
    """
    if not isinstance(settings, BoundSettings):
        return DescriptionLength(len(targets))
    if not isinstance(likelihood, CategoricalLikelihood):
        raise ConfigError(
            f"training.objective: {settings.kind} bounds the probability of a wrong label, and a '{likelihood.kind}' "
            "likelihood has none; use kind: elbo"
        )
    if numbers_per_example(targets) > 1:
        raise ConfigError(
            f"training.objective: {settings.kind} bounds the probability of one wrong label, and targets of shape "
            f"{tuple(targets.shape[1:])} have several for each example; use kind: elbo"
        )
    return RiskBound(settings, len(targets), other_bits)
