"""Cost of one block of labels, and calibration of its predictions."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Block", "Calibration", "minimum"]

WIDTHS = {"temperature": 0.25, "uniform_share": 1.5}
"""Prior stds of the natural logarithms of the two numbers of a calibration."""


START = {"temperature": 1.5, "uniform_share": 1e-3}
"""Values before any label has been coded, and prior medians."""


LIMITS = {"temperature": (0.2, 8.0), "uniform_share": (1e-7, 0.2)}
"""Smallest and largest values of the fit."""


ROUNDS = 3
"""Rounds of coordinate-wise minimisation in a fit."""


@dataclass(frozen=True)
class Calibration:
    """Calibrated probabilities p'(y) = (1 - e) p(y)^(1/T) / Z + e / C, with C classes and normaliser Z.

    Attributes:
        temperature: T.
        uniform_share: e, the share of the uniform distribution; above zero, so that no label is impossible.

    >>> Calibration(temperature=1.0, uniform_share=0.1)(torch.tensor([[0.9, 0.1]]).double().log()).exp()
    tensor([[0.8600, 0.1400]], dtype=torch.float64)
    """

    temperature: float = START["temperature"]
    uniform_share: float = START["uniform_share"]

    def __call__(self, log_probabilities: Tensor) -> Tensor:
        """Return calibrated log-probabilities (n, classes) in nats, float64, from those of the network."""
        sharp = torch.log_softmax(log_probabilities / self.temperature, 1) + math.log1p(-self.uniform_share)
        uniform = torch.tensor(math.log(self.uniform_share / sharp.shape[1]), dtype=sharp.dtype)
        return torch.logaddexp(sharp, uniform)

    @classmethod
    def fit(cls, log_probabilities: Tensor, labels: Tensor) -> "Calibration":
        """Return the maximum a posteriori calibration of predictions whose labels are known, under log-normal priors.

        Args:
            log_probabilities: (n, classes) in nats, float64, each made without knowing its label.
            labels: (n,).

        Returns:
            the calibration; its starting values if there are no labels.
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
"""Ratio by which a golden section shrinks the interval."""


def minimum(function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-3) -> float:
    """Return the argument that minimises a unimodal function, by golden sections (Kiefer 1953).

    Args:
        function: function with one minimum.
        low: lower end of the interval.
        high: upper end of the interval.
        tolerance: width of the interval at which the search ends.

    Returns:
        the middle of the last interval.

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
    """Cost of one block of labels.

    Attributes:
        start: first example of the block, in the order of the code.
        end: one past its last example.
        bits: -log2 of the predictive probabilities of its labels.
        error: share of its labels that were not the most probable ones.
        calibration: calibration of its predictions.
        steps: optimiser steps behind the predictions, summed over networks.
        seconds: time of training and prediction.
    """

    start: int
    end: int
    bits: float
    error: float
    calibration: Calibration
    steps: int
    seconds: float

    def facts(self) -> dict[str, Any]:
        """Return all attributes in one flat dictionary, for JSON."""
        facts = asdict(self)
        return {**facts, **facts.pop("calibration")}
