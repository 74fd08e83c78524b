"""What every likelihood offers: bits per example, the uniform code beside it, and an error a person can read."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from bitsback.errors import DataError
from bitsback.learned import Learned
from bitsback.registry import Registry, Settings


class Likelihood(Learned, ABC):
    """The code of the targets given the network's outputs."""

    family = "likelihood"
    error_name: ClassVar[str] = "error"
    described: ClassVar[str] = "labels"

    @abstractmethod
    def bits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log2 p(target given output) for each example: (n, ...) and (n, ...) to (n,); differentiable in ``outputs``."""

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

    def notes(self) -> list[str]:
        """What a reader of the ledger should know about this code."""
        return []

    def values(self) -> dict[str, Tensor]:
        """The learned numbers in use, which a receiver needs beside the weights."""
        return {}

    def summary(self, mean_error: float) -> float:
        """The reported error from the mean of :meth:`error`: itself for classes, its root otherwise."""
        return mean_error


class LikelihoodSettings(Settings):
    """Settings of a likelihood."""

    kind: str

    @abstractmethod
    def build(self, classes: int | None) -> Likelihood:
        """The likelihood; ``classes`` is how many labels the data set has, if it has labels."""


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


def width(targets: Tensor) -> int:
    """Numbers per example in the targets."""
    return int(targets[0].numel())


def require(condition: Tensor, targets: Tensor, where: str, need: str) -> None:
    """Raise DataError naming the first target for which ``condition`` is false."""
    wrong = (~condition).flatten().nonzero()
    if len(wrong):
        value = targets.flatten()[wrong[0]].item()
        example = int(wrong[0]) // width(targets)
        raise DataError(f"{where} target of example {example} is {value:g}; {need}")


def whole(targets: Tensor) -> Tensor:
    """True where a target is a whole number."""
    return targets == targets.round() if torch.is_floating_point(targets) else torch.ones_like(targets, dtype=torch.bool)


registry: Registry[type[LikelihoodSettings]] = Registry("likelihood")
