"""How many examples and draws a picture may cost: the same on every machine, so that two reports of a run agree."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from bitsback.data import Examples
from bitsback.model import BayesianModel
from bitsback.model.modes import evaluating

__all__ = ["affordable", "operations"]

OPERATIONS_PER_CALL = 20_000
"""What an example costs beside its multiply-adds, in the same unit; about 0.02 ns each on one core."""


def operations(model: BayesianModel, examples: Examples) -> float:
    """Floating-point operations of the network for one example, with what it costs to call it."""
    first = Examples(examples.inputs[:1], examples.targets[:1]).to(next(model.parameters()).device, model.dtype)
    with evaluating(model.network), FlopCounterMode(display=False) as counter, torch.no_grad(), model.mean():
        model(first.inputs)
    return OPERATIONS_PER_CALL + float(counter.get_total_flops())


def affordable(examples: Examples, samples: int, budget: float, each: float, *, least: int = 2) -> tuple[Examples, int]:
    """As many draws, then as many examples (evenly spread), as ``budget`` operations allow.

    Args:
        examples: what would be looked at.
        samples: how many draws would be taken.
        budget: operations that may be spent.
        each: operations for one example and draw.
        least: draws that are taken whatever they cost; examples are left out instead.

    >>> few, draws = affordable(Examples(torch.zeros(1000, 2), torch.zeros(1000)), samples=50, budget=4e7, each=1e4)
    >>> len(few), draws
    (1000, 4)
    """
    draws = max(min(samples, least), min(samples, int(budget / (each * len(examples)))))
    count = min(len(examples), max(1, int(budget / (each * draws))))
    if count == len(examples):
        return examples, draws
    kept = torch.linspace(0, len(examples) - 1, count, dtype=torch.float64).round().long()
    return Examples(examples.inputs[kept], examples.targets[kept], examples.name, examples.assumed), draws
