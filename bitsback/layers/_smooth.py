"""Convolution whose filters are a fixed linear map of independent weights, with correlated neighbouring pixels."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError

__all__ = ["SmoothConv2d"]

NUGGET = 1e-4
"""Variance of independent noise for each pixel, which makes the covariance of full rank: every filter is possible."""


@lru_cache(maxsize=64)
def _axis_root(size: int, length: float) -> Tensor:
    """Return B (size, size), float64, with B B^T = exp(-d^2 / (2 length^2)) + nugget I; its columns are orthogonal."""
    with torch.device("cpu"):  # the default device may be "meta", and the result is cached
        position = torch.arange(size, dtype=torch.float64)
        nugget = NUGGET * torch.eye(size, dtype=torch.float64)
        covariance = torch.exp((position[:, None] - position).square() / (-2 * length**2)) + nugget
        variances, directions = torch.linalg.eigh(covariance)
        largest = directions[directions.abs().argmax(0), torch.arange(size)]
        return directions * largest.sign() * variances.clamp_min(0).sqrt()


class SmoothConv2d(nn.Conv2d):
    """Conv2d with filters B_h weight B_w^T, whose neighbouring pixels are correlated under an independent prior on weights.

    With independent weights N(0, s^2), a filter is a Gaussian field of variance s^2 and correlation exp(-d^2 / (2 length^2))
    between pixels at distance d (plus a nugget of 10^-4). Filters of trained networks are smooth (Fortuin et al. 2022,
    "Bayesian neural network priors revisited"), so this prior codes them in fewer bits. Each weight is the coefficient of one
    pattern, from low to high spatial frequency. Posterior, ledger and files work as with any other weight.

    Args:
        in_channels, out_channels, kernel_size, ...: as for :class:`torch.nn.Conv2d`.
        length: correlation length in pixels.

    Shapes: ``weight`` (out_channels, in_channels / groups, height, width), as in Conv2d, over patterns instead of pixels.

    Raises:
        LayerError: for a length that is not above zero.

    >>> layer = SmoothConv2d(1, 2, 5, length=1.0)
    >>> layer(torch.zeros(3, 1, 28, 28)).shape, layer.filters(layer.weight).shape
    (torch.Size([3, 2, 24, 24]), torch.Size([2, 1, 5, 5]))
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, *args: Any, length: float = 1.0, **kwargs: Any):
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)
        if not length > 0:
            raise LayerError(f"SmoothConv2d needs a correlation length above zero, got {length:g}; 1 is one pixel")
        self.length = float(length)

    def filters(self, weight: Tensor) -> Tensor:
        """Return the filters of a weight tensor of this layer's shape; same shape, dtype and device."""
        rows, columns = (_axis_root(size, self.length).to(weight.device, weight.dtype) for size in weight.shape[-2:])
        return rows @ weight @ columns.T

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self.filters(weight), bias)

    def extra_repr(self) -> str:
        """Return the options of the convolution and ``length``, for ``repr``."""
        return f"{super().extra_repr()}, length={self.length:g}"
