"""Point estimate: q(w) has all mass on one vector. It has gross bits on a grid and no refund."""

import torch
from torch import Tensor

from bitsback.posteriors.base import Noticed, Posterior

__all__ = ["PointPosterior"]


class PointPosterior(Posterior):
    """Point estimate of one weight tensor; the penalty -log2 p(w) is L2 under a Gaussian prior and L1 under a Laplace prior.

    Args:
        mean: start of the weights, any shape and floating dtype.
        grid_step: grid step to which the weights are rounded for the ledger; default: chosen from the prior.

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
        """Return None: a point has no standard deviation."""
        return None

    def draw(self, noise: Tensor | None = None) -> Tensor:
        """Return a copy of the weights; the noise is not used."""
        return self.mean.clone()

    def round_to(self, step: float) -> None:
        """Round every weight to a multiple of ``step``, in place."""
        with torch.no_grad():
            self.mean.copy_((self.mean / step).round() * step)
