"""Learned numbers that are not weights, as whole numbers on the grids on which the ledger charges them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.ans import Integers
from bitsback.coding.densities import LocatedDensity
from bitsback.errors import FileError
from bitsback.learned import BFLOAT16, FLOAT32, Grid
from bitsback.likelihoods import Likelihood
from bitsback.model import BayesianModel
from bitsback.priors.exact_densities import density_of

__all__ = ["SideInformation", "Slot", "densities_of"]

Slot = tuple[str, Tensor, Grid]
"""Name, tensor that holds the numbers, and their grid."""


@dataclass(frozen=True)
class SideInformation:
    """Learned numbers of a model and its likelihood, each with its grid: references, not copies.

    Attributes:
        slots: name, tensor and grid, in the order of the file.
    """

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, model: BayesianModel, likelihood: Likelihood, *, with_frozen: bool = False) -> "SideInformation":
        """Collect the numbers of a model and its likelihood, in the order in which files hold them.

        Args:
            model: a model.
            likelihood: its likelihood.
            with_frozen: add frozen weights and fixed buffers, which the ledger assumes to be known and does not charge.

        Returns:
            references to the numbers.
        """
        slots: list[Slot] = []
        for prior, weights in model.weights_by_prior():
            first = weights[0].name
            slots += [(f"{prior.kind}.{name}[{first}]", getattr(prior, name), grid) for name, grid in prior.grids().items()]
        slots += [(f"likelihood.{name}", getattr(likelihood, name), grid) for name, grid in likelihood.grids().items()]
        slots += [(name, buffer, BFLOAT16) for name, buffer in model.statistics()]
        slots += [(name, p, FLOAT32) for name, p in model.deterministic() if p.requires_grad or with_frozen]
        if with_frozen:
            charged = {name for name, _ in model.statistics()}
            buffers = [(name, b) for name, b in model.network.named_buffers() if name not in charged and b.is_floating_point()]
            slots += [(name, buffer, FLOAT32) for name, buffer in buffers]
        return cls(tuple(slots))

    def bits_each(self) -> Integers:
        """Return the bits of every number, (numbers,)."""
        parts = [np.full(tensor.numel(), int(grid.bits_each), dtype=np.int64) for _, tensor, grid in self.slots]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def levels(self) -> Integers:
        """Return the level of every number on its grid, (numbers,)."""
        parts = [grid.level(tensor.detach().cpu()).flatten().numpy() for _, tensor, grid in self.slots]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    @torch.no_grad()
    def round(self) -> None:
        """Round every number to its grid, in place, so that both sides use the same values."""
        for _, tensor, grid in self.slots:
            tensor.copy_(grid.round(tensor))

    @torch.no_grad()
    def assign(self, levels: Integers) -> None:
        """Write numbers into the model, in place, from their levels; raises FileError if one is not finite."""
        start = 0
        for _, tensor, grid in self.slots:
            part = torch.from_numpy(levels[start : start + tensor.numel()].copy())
            values = grid.value(part)
            if not bool(torch.isfinite(values).all()):
                raise FileError("the file holds a learned number that is NaN or infinite; it is damaged")
            tensor.copy_(values.reshape(tensor.shape))
            start += tensor.numel()


def densities_of(model: BayesianModel) -> list[LocatedDensity]:
    """Return the prior density of every weight tensor, in order."""
    return [density_of(weight.prior, weight.name) for weight in model.weights]
