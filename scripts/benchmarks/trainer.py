"""What every contestant is: something that takes training steps, follows one schedule, and shows its posterior."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WARM_UP = 0.02
"""Share of the training over which the rate rises."""

Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and std of every Bayesian weight tensor, by its name in the plain network."""


@dataclass(frozen=True)
class Task:
    """What a contestant is to train.

    Attributes:
        network: plain, with its initial weights; the contestant takes it over.
        examples: N, how many examples the KL is spread over.
        lr: learning rate.
        prior_std: of the Gaussian prior of every weight; ours learns it and only starts there.
        initial_std: of the posterior of every weight, at the start.
        batch_size: examples in a step.
        shape: of one input.
    """

    network: nn.Module
    examples: int = 60_000
    lr: float = 1e-3
    prior_std: float = 0.3
    initial_std: float = 0.05
    batch_size: int = 128
    shape: tuple[int, ...] = (1, 28, 28)


def wait(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Missing(Exception):
    """The contestant cannot take part here; says why."""


class Trainer(ABC):
    """A training under way. Its loss is in nats per example: data cost, and KL / N."""

    optimizer: Optimizer

    def step(self, x: Tensor, y: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.optimizer.step()

    def timed(self, supply: Iterator[tuple[Tensor, Tensor]], steps: int) -> tuple[float, float]:
        """CPU and wall seconds of a step, over ``steps`` of them after one that is not counted."""
        x, y = next(supply)
        self.step(x, y)
        wait(x.device)
        began_wall, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step(*next(supply))
        wait(x.device)
        return (time.process_time() - began_cpu) / steps, (time.perf_counter() - began_wall) / steps

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch."""

    def moments(self) -> Moments:
        """The posterior; empty where there is none."""
        return {}

    def optimizers(self) -> list[Optimizer]:
        """The torch optimisers at work."""
        return [self.optimizer]

    def progress(self, done: float) -> None:
        """Set the rates for this share of the training: the same short rise and cosine for everybody."""
        factor = max(1e-3, min(1.0, done / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done)))
        for optimizer in self.optimizers():
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
