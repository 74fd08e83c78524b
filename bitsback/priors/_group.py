"""Gaussian prior with one scale for every unit (automatic relevance determination)."""

import torch

from bitsback.priors.gaussian import NormalPrior
from bitsback.registry import Learn

__all__ = ["GroupGaussianPrior"]


class GroupGaussianPrior(NormalPrior):
    """N(mean, scale_g^2) with one scale for every slice g of the tensor along ``axis`` (MacKay 1992; Neal 1996).

    Args:
        shape: shape of the weight tensor.
        axis: axis whose slices have one scale each; a tensor with fewer than two axes, or without it, has a single scale.
        scale: scale of every slice, at the start if it is learned.
        mean: location, the same for every weight.
        learn: how the scales are learned.

    >>> GroupGaussianPrior(torch.Size([10, 64]), axis=1, scale=0.3)().batch_shape
    torch.Size([1, 64])
    """

    kind = "group_gaussian"

    def __init__(self, shape: torch.Size, axis: int, scale: float = 0.3, *, mean: float = 0.0, learn: Learn = "none") -> None:
        grouped = len(shape) >= 2
        scales = [size if grouped and position == axis else 1 for position, size in enumerate(shape)]
        super().__init__(mean, torch.full(scales, float(scale)), learn)
