"""The point estimate: all mass on one vector. It has a gross cost on a grid, and nothing to give back."""

import torch
from torch import Tensor

from bitsback.posteriors.base import Noticed, Posterior

__all__ = ["PointPosterior"]


class PointPosterior(Posterior):
    """q(w) is one point. Its penalty -log2 p(w) *is* L2 under a Gaussian prior and L1 under a Laplace prior.

    ``grid_step`` is the grid its weights are written on when the ledger is taken; None picks one from the prior.

    >>> q = PointPosterior(torch.tensor([0.26]))
    >>> q.round_to(0.25)
    >>> q.mean.item()
    0.25
    """

    def __init__(self, mean: Tensor, grid_step: float | None = None) -> None:
        super().__init__()
        self.mean = Noticed(mean.detach().clone())
        self.grid_step = grid_step

    def std(self) -> None:
        return None

    def draw(self, noise: Tensor | None = None) -> Tensor:
        return self.mean.clone()

    def round_to(self, step: float) -> None:
        """Round every weight to a multiple of ``step``, in place."""
        with torch.no_grad():
            self.mean.copy_((self.mean / step).round() * step)
