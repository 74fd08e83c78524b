"""Friedman's regression benchmark: five inputs matter, the others do not.

y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise, with every input uniform on [0, 1] (Friedman 1991,
"Multivariate adaptive regression splines", equation 61). Made on the spot, so that regression needs no file.
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from bitsback import limits
from bitsback.data.dataset import Dataset, DataSettings, registry, split
from bitsback.errors import DataError


def friedman(examples: int, inputs: int, noise_std: float, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and targets (n,).

    >>> x, y = friedman(examples=5, inputs=10, noise_std=0.0, seed=0)
    >>> x.shape, y.shape
    (torch.Size([5, 10]), torch.Size([5]))
    """
    draw = np.random.default_rng(seed)
    x = draw.uniform(size=(examples, inputs))
    y = 10 * np.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = y + noise_std * draw.normal(size=examples)
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


@registry.register("friedman")
class FriedmanSettings(DataSettings):
    """Friedman's regression benchmark, made on the spot."""

    kind: Literal["friedman"] = "friedman"
    examples: PositiveInt = Field(1000, description="how many examples to make, test examples included")
    inputs: int = Field(10, ge=5, description="inputs per example, of which five matter")
    noise_std: NonNegativeFloat = Field(1.0, description="std of the noise on the targets")
    data_seed: int = Field(0, ge=0, description="seed of inputs and noise")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share of examples held out")

    def load(self) -> Dataset:
        needed = limits.data_bytes(self.examples * (self.inputs + 3), 8)
        limits.MEMORY.check(needed, "data.kind=friedman", DataError, "make fewer examples")
        made = friedman(self.examples, self.inputs, self.noise_std, self.data_seed)
        train, test = split(*made, self.test_fraction, self.split_seed)
        return self.finish("friedman", train, test)
