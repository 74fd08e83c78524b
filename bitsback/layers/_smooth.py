"""Convolutions whose filters are smooth by construction: independent weights, correlated pixels."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError

__all__ = ["SmoothConv2d"]

NUGGET = 1e-4
"""Variance that is independent from pixel to pixel, so that no filter is ruled out."""


@lru_cache(maxsize=64)
def _axis_root(size: int, length: float) -> Tensor:
    """B (size, size), float64, with B B^T = exp(-d^2 / (2 length^2)) + nugget; its columns are orthogonal."""
    with torch.device("cpu"):  # whatever device is the default: what is kept has numbers
        position = torch.arange(size, dtype=torch.float64)
        nugget = NUGGET * torch.eye(size, dtype=torch.float64)
        covariance = torch.exp((position[:, None] - position).square() / (-2 * length**2)) + nugget
        variances, directions = torch.linalg.eigh(covariance)
        largest = directions[directions.abs().argmax(0), torch.arange(size)]
        return directions * largest.sign() * variances.clamp_min(0).sqrt()


class SmoothConv2d(nn.Conv2d):
    """A Conv2d whose filters are ``root @ weight``: neighbouring pixels of a filter are alike before any data are seen.

    With independent weights N(0, s^2), a filter is a Gaussian field of variance s^2 and correlation exp(-d^2 / (2 length^2))
    between pixels at distance d (plus a nugget of 10^-4). Filters of trained networks are smooth (Fortuin et al. 2022,
    "Bayesian neural network priors revisited"), so this prior codes them in fewer bits; a weight is the share of one smooth
    pattern, from a plain average to the finest ripple. Posterior, ledger and files work as with any other weight.

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
        """The filters of a weight tensor of this layer's shape, in its dtype and on its device."""
        rows, columns = (_axis_root(size, self.length).to(weight.device, weight.dtype) for size in weight.shape[-2:])
        return rows @ weight @ columns.T

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self.filters(weight), bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, length={self.length:g}"
