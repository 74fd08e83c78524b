"""Friedman's regression benchmark: the targets depend on five of the inputs.

y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise, with every input uniform on [0, 1] (Friedman 1991,
"Multivariate adaptive regression splines", equation 61). The data are generated, so that regression needs no file.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitsback import limits
from bitsback.data._dataset import Dataset, split
from bitsback.errors import DataError

if TYPE_CHECKING:
    from bitsback.data.settings import FriedmanSettings

__all__ = ["friedman", "load_friedman"]


def friedman(examples: int, inputs: int, noise_std: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw inputs and targets.

    Args:
        examples: n.
        inputs: d, at least five.
        noise_std: std of the noise on the targets.
        seed: of inputs and noise.

    Returns:
        inputs (n, d) and targets (n,), float32.

    >>> x, y = friedman(examples=5, inputs=10, noise_std=0.0, seed=0)
    >>> x.shape, y.shape
    (torch.Size([5, 10]), torch.Size([5]))
    """
    draw = np.random.default_rng(seed)
    x = draw.uniform(size=(examples, inputs))
    y = 10 * np.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = y + noise_std * draw.normal(size=examples)
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def load_friedman(settings: "FriedmanSettings") -> Dataset:
    """Generate, split and preprocess the benchmark; raises DataError if it would exceed the memory limit."""
    needed = limits.data_bytes(settings.examples * (settings.inputs + 3), 8)
    limits.MEMORY.check(needed, "data.kind=friedman", DataError, "make fewer examples")
    made = friedman(settings.examples, settings.inputs, settings.noise_std, settings.data_seed)
    train, test = split(*made, settings.test_fraction, settings.split_seed)
    return settings.finish("friedman", train, test)
