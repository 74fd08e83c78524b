"""Compute budget of report figures, the same on every machine, so that two reports of a run agree."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from bitsback.data import Examples
from bitsback.model import BayesianModel
from bitsback.model.modes import evaluating

__all__ = ["operations", "subsample_to_budget"]

OPERATIONS_PER_CALL = 20_000
"""Overhead of an example beside its floating-point operations, in the same unit; about 0.02 ns each on one core."""


def operations(model: BayesianModel, examples: Examples) -> float:
    """Count the floating-point operations of the network for one example, overhead included.

    Args:
        model: the network.
        examples: the first is used.

    Returns:
        Operations.
    """
    given = examples.to(model.device, model.dtype)

    def counted(count: int) -> float:
        with evaluating(model.network), FlopCounterMode(display=False) as counter, torch.no_grad(), model.mean():
            model.outputs(given.inputs[:count])
        return float(counter.get_total_flops()) / count

    try:
        return OPERATIONS_PER_CALL + counted(1)
    except (RuntimeError, ValueError, IndexError):  # a network that takes whole batches only
        return OPERATIONS_PER_CALL + counted(min(len(examples), model.evaluation_batch))


def subsample_to_budget(
    examples: Examples, samples: int, budget: float, each: float, *, least: int = 2
) -> tuple[Examples, int]:
    """Choose the draws, then the evenly spread examples, that ``budget`` operations allow.

    Args:
        examples: all examples.
        samples: wanted number of draws.
        budget: operations allowed.
        each: operations for one example and draw.
        least: minimum number of draws; examples are left out instead.

    Returns:
        The chosen examples and the number of draws.

    >>> few, draws = subsample_to_budget(Examples(torch.zeros(1000, 2), torch.zeros(1000)), samples=50, budget=4e7, each=1e4)
    >>> len(few), draws
    (1000, 4)
    """
    draws = max(min(samples, least), min(samples, int(budget / (each * len(examples)))))
    count = min(len(examples), max(1, int(budget / (each * draws))))
    return examples.spread(count), draws
