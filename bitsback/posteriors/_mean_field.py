"""Mean-field Gaussian posterior: an independent N(mean, std^2) over every weight, stored as mean and log std."""

import math

import torch
from torch import Tensor

from bitsback.errors import LayerError
from bitsback.posteriors.base import Noticed, Posterior

__all__ = ["GaussianPosterior"]


class GaussianPosterior(Posterior):
    """q(w) = N(mean, std^2), independent over the weights (Hinton & van Camp 1993; Graves 2011).

    Args:
        mean: start of the means, any shape and floating dtype.
        std: start of the standard deviations, a positive number or a tensor that broadcasts to ``mean``.

    Raises:
        LayerError: when a std is not positive and finite.

    >>> q = GaussianPosterior(torch.zeros(2, 3), std=0.5)
    >>> q.draw().shape, round(q.std().mean().item(), 3)
    (torch.Size([2, 3]), 0.5)
    """

    def __init__(self, mean: Tensor, std: float | Tensor) -> None:
        super().__init__()
        self.mean = Noticed(mean.detach().clone())
        self.log_std = Noticed(torch.empty_like(self.mean))
        self.set_std(std)

    def set_std(self, std: float | Tensor) -> None:
        """Set every standard deviation, in place."""
        width = torch.as_tensor(std, dtype=self.mean.dtype, device=self.mean.device)
        if not bool((width > 0).all() and torch.isfinite(width).all()):
            raise LayerError(f"posterior std must be positive and finite, got {std}; set posterior.std above zero")
        with torch.no_grad():
            self.log_std.copy_(width.log().expand_as(self.mean))

    def std(self) -> Tensor:
        """Return the standard deviation, the shape of the mean."""
        return self.log_std.exp()

    def draw(self, noise: Tensor | None = None) -> Tensor:
        """Return mean + std noise, with fresh standard normal noise by default."""
        return torch.addcmul(self.mean, self.std(), torch.randn_like(self.mean) if noise is None else noise)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, elementwise: log std + log(2 pi e) / 2."""
        return self.log_std + 0.5 * math.log(2 * math.pi * math.e)

    def scale_std(self, factor: float) -> None:
        """Multiply every standard deviation by ``factor``, in place."""
        with torch.no_grad():
            self.log_std.add_(math.log(factor))
