"""Bits and mean predictions of single examples."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.data import Examples
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, State
from bitsback.model.draws import SHOWN_AFTER_SECONDS
from bitsback.model.modes import evaluating
from bitsback.torch_state import seeded

__all__ = ["MOST_DRAWS", "OPERATIONS", "Judged", "judged"]

OPERATIONS = 3e11
"""Floating-point operations for one split: about six seconds."""
MOST_DRAWS = 10


@dataclass(frozen=True)
class Judged:
    """Bits (n,) and mean predictions (n, ...) of some examples; ``numbers`` (n,) are their indices in the data set."""

    bits: Tensor
    predicted: Tensor
    targets: Tensor
    numbers: Tensor
    draws: int

    def __len__(self) -> int:
        return len(self.bits)

    def most_expensive(self, count: int) -> Tensor:
        """Return indices (count,) of the most expensive examples, in order of decreasing bits."""
        return self.bits.argsort(descending=True, stable=True)[:count]


@torch.no_grad()
def judged(
    model: BayesianModel, likelihood: Likelihood, examples: Examples, *, draws: int, numbers: Tensor, seed: int = 0,
    progress: bool = False,
) -> Judged:  # fmt: skip
    """Average bits and predictions of each example over weight draws; random generators and modes are restored.

    Args:
        model: the network.
        likelihood: of the targets.
        examples: n examples.
        draws: number of weight draws; one is used for a point estimate.
        numbers: (n,), indices of the examples in the data set.
        seed: of the draws.
        progress: show a progress bar after two seconds.

    Returns:
        Mean bits and mean predictions.
    """
    device = next(model.parameters()).device
    given = examples.to(device, model.dtype)
    draws = draws if model.smallest_std() is not None else 1
    bits, predicted = torch.zeros(len(given), dtype=torch.float64), torch.zeros(())
    with evaluating(model.network), model.keeping(), seeded(seed, device):
        for number in tqdm(range(draws), desc="examples", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS):
            model.hold(State("draw", seed, -1 - number))
            start, parts = 0, []
            for inputs, targets in given.batches(given.ranges(model.evaluation_batch)):
                outputs, stop = model.outputs(inputs), start + len(targets)
                bits[start:stop] += likelihood.bits(outputs, targets).cpu().double()
                parts.append(likelihood.predict(outputs).cpu())
                start = stop
            alike = len({part.shape[1:] for part in parts}) == 1  # not if a collate function pads every batch by itself
            predicted = predicted + torch.cat(parts) if alike else torch.zeros(len(given), 0)
    return Judged(bits / draws, predicted / draws, examples.targets.cpu(), numbers, draws)
