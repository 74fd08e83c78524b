"""What every example costs, and how far its predicted probabilities can be trusted."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.data import Examples
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel, State
from bitsback.model.accounting import EVALUATION_BATCH, SHOWN_AFTER_SECONDS, seeded
from bitsback.model.modes import evaluating

__all__ = ["MOST_DRAWS", "OPERATIONS", "Judged", "judged"]

OPERATIONS = 3e11
"""For looking at a split: about six seconds."""
MOST_DRAWS = 10


@dataclass(frozen=True)
class Judged:
    """Bits (n,) and averaged predictions (n, ...) of some examples, whose ``numbers`` (n,) say which they are."""

    bits: Tensor
    predicted: Tensor
    targets: Tensor
    numbers: Tensor
    draws: int

    def __len__(self) -> int:
        return len(self.bits)

    def dearest(self, count: int) -> Tensor:
        """Places of the ``count`` most expensive examples, the most expensive first."""
        return self.bits.argsort(descending=True, stable=True)[:count]


@torch.no_grad()
def judged(
    model: BayesianModel, likelihood: Likelihood, examples: Examples, *, draws: int, numbers: Tensor, seed: int = 0,
    progress: bool = False,
) -> Judged:  # fmt: skip
    """Mean bits and mean prediction of each example over whole-network draws; generators and modes are left as they were.

    Args:
        model, likelihood: what predicts.
        examples: n of them.
        draws: how many; for a point estimate all are alike, and one is enough.
        numbers: (n,), what the examples are called.
    """
    device = next(model.parameters()).device
    given = examples.to(device, model.dtype)
    draws = draws if model.smallest_std() is not None else 1
    bits, predicted = torch.zeros(len(given), dtype=torch.float64), torch.zeros(())
    with evaluating(model.network), model.keeping(), seeded(seed, device):
        for number in tqdm(range(draws), desc="examples", leave=False, disable=not progress, delay=SHOWN_AFTER_SECONDS):
            model.hold(State("draw", seed, -1 - number))
            outputs = torch.cat([model(part) for part in given.inputs.split(EVALUATION_BATCH)])
            bits += likelihood.bits(outputs, given.targets).cpu().double()
            predicted = predicted + likelihood.predict(outputs).cpu()
    return Judged(bits / draws, predicted / draws, examples.targets.cpu(), numbers, draws)
