"""Local histograms of gradient orientations."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from bitsback.errors import DataError

if TYPE_CHECKING:
    from bitsback.data.settings import GradientHistogramSettings

__all__ = ["gradient_histograms"]

BLUR = (0.25, 0.5, 0.25)
"""Binomial filter, applied along both axes before gradients are taken."""


def gradient_histograms(images: Tensor, settings: "GradientHistogramSettings") -> Tensor:
    """Compute the histograms.

    Args:
        images: (n, channels, height, width).
        settings: orientations, cell and focus.

    Returns:
        (n, k), each row of Euclidean length one.

    Raises:
        DataError: if the inputs are not images, or are smaller than a cell.
    """
    if images.ndim != 4 or min(images.shape[2:]) < settings.cell:
        raise DataError(
            f"data.features: gradient_histograms needs images (n, channels, height, width) no smaller than a cell, got "
            f"shape {tuple(images.shape)} and cell {settings.cell}; use data.features.cell=4"
        )
    planes = images.flatten(0, 1)[:, None]
    blur = torch.tensor(BLUR, dtype=images.dtype)
    planes = conv2d(planes, (blur[:, None] * blur)[None, None], padding=1)
    across = pad(planes[..., 2:] - planes[..., :-2], (1, 1))
    down = pad(planes[..., 2:, :] - planes[..., :-2, :], (0, 0, 1, 1))
    size, angle = torch.hypot(across, down), torch.atan2(down, across)
    shares = [
        size * torch.cos(angle - 2 * math.pi * k / settings.orientations).clamp_min(0) ** settings.focus
        for k in range(settings.orientations)
    ]
    offset = torch.arange(-settings.cell, settings.cell + 1, dtype=images.dtype)
    window = torch.exp(-(offset**2) / (2 * (0.6 * settings.cell) ** 2))
    window = window / window.sum()
    kernel = (window[:, None] * window).expand(settings.orientations, 1, -1, -1)
    found = conv2d(torch.cat(shares, 1), kernel, stride=settings.cell, padding=settings.cell // 2, groups=settings.orientations)
    roots = found.reshape(len(images), -1).clamp_min(0).sqrt()
    return roots / roots.norm(dim=1, keepdim=True).clamp_min(1e-12)
