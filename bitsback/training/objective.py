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
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitsback.certificates.bounds import complexity
from bitsback.errors import ConfigError
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.training.settings import AnyObjectiveSettings, BoundSettings
from bitsback.units import bits_to_nats


class Objective(nn.Module, ABC):
    """From the bits of a batch to the loss of a step; what it learns besides is a parameter."""

    @abstractmethod
    def forward(self, example_bits: Sequence[Tensor], weight_bits: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            example_bits: data bits of each example of a batch, in groups of shape (k,), each under a weight draw of its own.
            weight_bits: beta times KL(q || p), a scalar.
        """


class DescriptionLength(Objective):
    """Net bits per example.

    >>> DescriptionLength(examples=10)([torch.tensor([1.0, 3.0])], torch.tensor(5.0)).item()
    2.5
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples

    def forward(self, example_bits: Sequence[Tensor], weight_bits: Tensor) -> Tensor:
        data_bits = torch.stack([bits.sum() for bits in example_bits]).sum()
        return (data_bits * (self.examples / sum(map(len, example_bits))) + weight_bits) / self.examples


class RiskBound(Objective):
    """A bound on the risk.

    Args:
        settings: which bound, and its delta.
        examples: n.
        other_bits: what the ledger charges besides the KL, the same at every step.

    >>> from bitsback.training.settings import BoundSettings
    >>> bound = RiskBound(BoundSettings(kind="classic", p_min=0.25), examples=1000, other_bits=0.0)
    >>> round(bound([torch.tensor([1.0, 9.0])], torch.tensor(50.0)).item(), 4)
    0.8958
    """

    def __init__(self, settings: BoundSettings, examples: int, other_bits: float) -> None:
        super().__init__()
        self.settings, self.examples = settings, examples
        self.most_bits = -math.log2(settings.p_min)
        self.fixed = complexity(other_bits, examples, settings.delta)
        if settings.kind == "lambda":
            self.logit_lambda = nn.Parameter(torch.zeros(()))

    def forward(self, example_bits: Sequence[Tensor], weight_bits: Tensor) -> Tensor:
        risk = torch.cat(list(example_bits)).clamp_max(self.most_bits).mean() / self.most_bits
        c = bits_to_nats(weight_bits) / self.examples + self.fixed
        if self.settings.kind == "quad":
            return ((risk + c / 2).sqrt() + (c / 2).sqrt()).square()
        if self.settings.kind == "classic":
            return risk + (c / 2).sqrt()
        weight = self.logit_lambda.sigmoid()
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
