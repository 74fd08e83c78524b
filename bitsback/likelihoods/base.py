"""What every likelihood offers: bits per example, the uniform code beside it, and an error a person can read."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitsback.errors import DataError
from bitsback.learned import Learned
from bitsback.units import bits_to_nats, nats_to_bits

__all__ = [
    "Answer",
    "Likelihood",
    "krichevsky_trofimov_bits",
    "listed",
    "match",
    "numbers_per_example",
    "per_example",
    "require",
    "whole",
]

Answer = dict[str, Any]
"""What is predicted for one input, by name; nested lists where a target has axes."""


class Likelihood(Learned, ABC):
    """The code of the targets given the network's outputs."""

    family = "likelihood"
    error_name: ClassVar[str] = "error"
    described: ClassVar[str] = "labels"
    finds_noise: bool = False
    """Whether training finds the noise of real targets, which wants a KL warm-up."""

    @abstractmethod
    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log2 p(target given output) for each example: (n, ...) and (n, ...) to (n,); differentiable in ``outputs``."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean data cost in nats, a scalar: what the optimisers of :mod:`bitsback.optim` take for a loss.

        >>> from bitsback.likelihoods import CategoricalLikelihood
        >>> outputs, targets = torch.randn(3, 4), torch.tensor([0, 1, 1])
        >>> loss = CategoricalLikelihood(4).loss(outputs, targets)
        >>> bool(torch.isclose(loss, torch.nn.functional.cross_entropy(outputs, targets)))
        True
        """
        return bits_to_nats(self.bits(outputs, targets).mean())

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """The predictive mean (probabilities, a mean, a rate) for each example; average it over weight draws."""

    @abstractmethod
    def error(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Error of each example, (n,): 0 or 1 for classes, the squared error otherwise."""

    @abstractmethod
    def uniform_bits(self, targets: Tensor) -> float:
        """What the targets cost without a model."""

    @abstractmethod
    def check_targets(self, targets: Tensor, where: str) -> None:
        """Raise DataError for targets that this code cannot describe; ``where`` names the split."""

    @abstractmethod
    def outputs(self, targets: Tensor) -> int:
        """How many outputs the network needs for such targets."""

    @abstractmethod
    def marginal_bits(self, targets: Tensor) -> float:
        """What the targets cost under one distribution for all of them, fitted to them, its parameters charged."""

    @abstractmethod
    def answers(self, predicted: Tensor, std: Tensor | None = None) -> list[Answer]:
        """What to tell a user of predictive means (n, ...), and of predictive stds where the code has any, for each input."""

    def fit(self, targets: Tensor) -> None:
        """Find what the settings leave to the training targets, once; training and ledgers call this first."""
        return

    def variance(self, outputs: Tensor) -> Tensor | None:
        """Variance of the target given the outputs, in the shape of :meth:`predict`; None where the answer has none."""
        return None

    def notes(self) -> list[str]:
        """What a reader of the ledger should know about this code."""
        return []

    def values(self) -> dict[str, Tensor]:
        """The learned numbers in use, which a receiver needs beside the weights."""
        return {}

    def summary(self, mean_error: float) -> float:
        """The reported error from the mean of :meth:`error`: itself for classes, its root otherwise."""
        return mean_error


def per_example(bits: Tensor) -> Tensor:
    """Sum everything but the first axis: (n, ...) to (n,)."""
    return bits.flatten(1).sum(1) if bits.ndim > 1 else bits


def match(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs in the shape of the targets: a trailing axis of one output is dropped."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        outputs = outputs.squeeze(-1)
    if outputs.shape != targets.shape:
        raise DataError(
            f"the network gives outputs of shape {tuple(outputs.shape[1:])} for targets of shape {tuple(targets.shape[1:])} "
            "per example; change the last layer"
        )
    return outputs


def listed(**columns: Tensor | None) -> list[Answer]:
    """A record for each example out of tensors (n, ...); one trailing column is a plain number.

    >>> listed(mean=torch.tensor([[1.5], [2.0]]), std=None)
    [{'mean': 1.5}, {'mean': 2.0}]
    """
    named = {name: tensor for name, tensor in columns.items() if tensor is not None}
    plain = [(t.squeeze(1) if t.ndim == 2 and t.shape[1] == 1 else t).detach().double().cpu().tolist() for t in named.values()]
    return [dict(zip(named, map(_short, row), strict=True)) for row in zip(*plain, strict=True)]


def _short(value: Any) -> Any:
    """Round the numbers in nested lists to what a float64 computation can mean."""
    return [_short(item) for item in value] if isinstance(value, list) else float(f"{value:.12g}")


def krichevsky_trofimov_bits(counts: Tensor) -> Tensor:
    """Bits of n symbols whose counts are (..., classes), coded by adaptive frequencies that start at one half each.

    -log2 of Gamma(C/2) / Gamma(n + C/2) times the product of Gamma(n_c + 1/2) / Gamma(1/2) (Krichevsky & Trofimov 1981): a code
    of the labels whatever their order, without a parameter to charge. Counts are float64; the last axis is summed.

    >>> round(krichevsky_trofimov_bits(torch.tensor([1.0, 1.0]).double()).item(), 6)  # 1/2 * (1/2) / 2 = 1/8
    3.0
    """
    half = torch.tensor(0.5, dtype=counts.dtype)
    classes = counts.shape[-1] / 2
    start = torch.lgamma(torch.tensor(classes, dtype=counts.dtype)) - torch.lgamma(counts.sum(-1) + classes)
    nats = start + (torch.lgamma(counts + 0.5) - torch.lgamma(half)).sum(-1)
    return nats_to_bits(-nats)


def numbers_per_example(targets: Tensor) -> int:
    """Numbers per example in the targets."""
    return int(targets[0].numel())


def require(condition: Tensor, targets: Tensor, where: str, need: str) -> None:
    """Raise DataError naming the first target for which ``condition`` is false."""
    wrong = (~condition).flatten().nonzero()
    if len(wrong):
        value = targets.flatten()[wrong[0]].item()
        example = int(wrong[0]) // numbers_per_example(targets)
        raise DataError(f"{where} target of example {example} is {value:g}; {need}")


def whole(targets: Tensor) -> Tensor:
    """True where a target is a whole number."""
    return targets == targets.round() if torch.is_floating_point(targets) else torch.ones_like(targets, dtype=torch.bool)
