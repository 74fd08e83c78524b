"""The weights of one training step, plainly: layers draw for themselves, and autograd finds every gradient."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from bitsback.model import BayesianModel


class StepWeights(Protocol):
    """What a training step asks of a model's weights, in this order."""

    def restart(self) -> None:
        """Begin an epoch: what is drawn from now on depends on the generator alone."""

    def cost(self, rate: float) -> Tensor:
        """Begin a step: move closed-form priors by ``rate`` of the way to their best, and say what the weights cost in bits."""

    def group(self, number: int) -> AbstractContextManager[None]:
        """Inside, the network sees draw ``number`` of this step."""

    def add_gradients(self) -> None:
        """After the backward pass: complete the gradients of the parameters."""


class PlainWeights:
    """The reference, which :class:`bitsback.training.fused.FusedWeights` is tested against."""

    def __init__(self, model: BayesianModel) -> None:
        self.model = model

    def restart(self) -> None:
        pass

    def cost(self, rate: float) -> Tensor:
        self.model.update_priors(rate)
        return self.model.kl_bits()

    def group(self, number: int) -> AbstractContextManager[None]:
        return nullcontext()

    def add_gradients(self) -> None:
        pass
