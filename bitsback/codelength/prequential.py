"""The prequential code: every label under a model that has seen only the labels before it (Dawid 1984).

L(y) = sum over blocks of -log2 p(labels of the block | inputs, all earlier labels). In blocks, as in Blier & Ollivier, "The
Description Length of Deep Learning Models" (2018): the first block under the uniform code, each later one under a network that
was trained on all that is before it. Here are the blocks, the temperature and what is reported; the networks are trained in
:mod:`bitsback.shipping.prequential_walk`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from bitsback.errors import ConfigError
from bitsback.registry import Settings

Kind = Literal["point", "samples", "ensemble"]


class GrowingBlocks(Settings):
    """Blocks that end at first, first * growth, first * growth^2, ..., rounded; the last one ends with the data."""

    first: PositiveInt = Field(8, description="examples of the first block, whose labels are coded without a model")
    growth: float = Field(2.0, ge=1.01, description="each block ends at this multiple of the end before")

    def ends(self, examples: int) -> tuple[int, ...]:
        """The ends of all blocks.

        >>> GrowingBlocks(first=8, growth=2.0).ends(100)
        (8, 16, 32, 64, 100)
        """
        found: list[int] = []
        end = float(self.first)
        while round(end) < examples:
            if not found or round(end) > found[-1]:
                found.append(round(end))
            end *= self.growth
        return (*found, examples)


class PrequentialSettings(Settings):
    """The blocks of the prequential code, and who predicts them."""

    blocks: GrowingBlocks | tuple[int, ...] | tuple[float, ...] = Field(
        GrowingBlocks(), description="{first: 8, growth: 2}, or the ends of all blocks, in examples or as shares of them"
    )
    predict: Kind = Field(
        "point",
        description="point: one network (its posterior means); samples: draws of one posterior, averaged; ensemble: networks "
        "trained from different seeds, averaged",
    )
    members: PositiveInt = Field(1, description="how many draws or networks are averaged")
    calibrate: bool = Field(True, description="fit a temperature to labels that have been coded, for the next block")
    shuffle: bool = Field(True, description="code the labels in an order drawn by seed, not in that of the data")
    least_steps: PositiveInt = Field(
        300, description="optimiser steps on a block's earlier labels, where training.epochs would be fewer"
    )

    @model_validator(mode="after")
    def _check(self) -> "PrequentialSettings":
        if (self.predict == "point") != (self.members == 1):
            raise ValueError(
                f"predict '{self.predict}' does not go with {self.members} members; one network is predict=point, members=1; "
                "several are predict=ensemble (or samples) with members of 2 or more"
            )
        return self

    def ends(self, examples: int) -> tuple[int, ...]:
        """The ends of all blocks of so many examples.

        Raises:
            ConfigError: when the blocks do not rise from above 0 to the last example.

        >>> PrequentialSettings(blocks=(0.25, 1.0)).ends(80)
        (20, 80)
        """
        if isinstance(self.blocks, GrowingBlocks):
            return self.blocks.ends(examples)
        ends = tuple(end if isinstance(end, int) else round(end * examples) for end in self.blocks)
        if not ends or ends[-1] != examples:
            last = f"end at {ends[-1]:,} of {examples:,} examples" if ends else "are none"
            raise ConfigError(f"prequential.blocks {last}; the last block must end at {examples} (or at the share 1.0)")
        if any(end <= start for start, end in pairwise((0, *ends))):
            raise ConfigError(f"prequential.blocks {list(self.blocks)} must rise, from above 0; leave out empty blocks")
        return ends


WIDTHS = {"temperature": 0.25, "uniform_share": 1.5}
"""Standard deviations of the natural logarithms, before any label has been seen."""
START = {"temperature": 1.5, "uniform_share": 1e-3}
LIMITS = {"temperature": (0.2, 8.0), "uniform_share": (1e-7, 0.2)}
ROUNDS = 3


@dataclass(frozen=True)
class Calibration:
    """p'(y) = (1 - e) p(y)^(1/T) / Z + e / C: temperature T, and a share e of the uniform code, so that no label is impossible.

    >>> Calibration(temperature=1.0, uniform_share=0.1)(torch.tensor([[0.9, 0.1]]).double().log()).exp()
    tensor([[0.8600, 0.1400]], dtype=torch.float64)
    """

    temperature: float = START["temperature"]
    uniform_share: float = START["uniform_share"]

    def __call__(self, log_probabilities: Tensor) -> Tensor:
        """Log-probabilities (n, classes) in nats, from those of the network; float64."""
        sharp = torch.log_softmax(log_probabilities / self.temperature, 1) + math.log1p(-self.uniform_share)
        uniform = torch.tensor(math.log(self.uniform_share / sharp.shape[1]), dtype=sharp.dtype)
        return torch.logaddexp(sharp, uniform)

    @classmethod
    def fit(cls, log_probabilities: Tensor, labels: Tensor) -> "Calibration":
        """The likeliest calibration of predictions whose labels are known, under log-normal priors for its two numbers.

        Args:
            log_probabilities: (n, classes), float64, each made without knowing its label.
            labels: (n,).
        """
        found = dict(START)
        for _ in range(ROUNDS if len(labels) else 0):
            for name, (low, high) in LIMITS.items():

                def cost(log_value: float, name: str = name) -> float:
                    trial = cls(**{**found, name: math.exp(log_value)})
                    surprise = ((log_value - math.log(START[name])) / WIDTHS[name]) ** 2 / 2
                    return surprise - float(trial(log_probabilities).gather(1, labels[:, None]).sum())

                found[name] = math.exp(minimum(cost, math.log(low), math.log(high)))
        return cls(**found)


GOLDEN = (math.sqrt(5) - 1) / 2


def minimum(function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-3) -> float:
    """Where a function of one minimum is least between two ends, by golden sections (Kiefer 1953).

    >>> round(minimum(lambda x: (x - 1) ** 2, -3.0, 4.0, tolerance=1e-6), 5)
    1.0
    """
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2


@dataclass(frozen=True)
class Block:
    """What one block of labels cost.

    Attributes:
        start, end: the block is examples start .. end - 1, in the order of the code.
        bits: -log2 of the predictive probabilities of its labels.
        error: share of its labels that were not the likeliest.
        calibration: of the predictions.
        steps: optimiser steps behind the prediction, over all networks.
        seconds: what training and prediction took.
    """

    start: int
    end: int
    bits: float
    error: float
    calibration: Calibration
    steps: int
    seconds: float

    def facts(self) -> dict[str, Any]:
        """Everything, for JSON."""
        facts = asdict(self)
        return {**facts, **facts.pop("calibration")}
