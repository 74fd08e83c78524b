"""Slant correction of images from their moments."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from bitsback.errors import DataError

if TYPE_CHECKING:
    from bitsback.data.settings import DeskewSettings

__all__ = ["deskewed"]


def deskewed(images: Tensor, settings: "DeskewSettings") -> Tensor:
    """Centre images and remove their slant.

    Args:
        images: (n, channels, height, width), grey levels of zero or more.
        settings: target sizes.

    Returns:
        images of the same shape and dtype.

    Raises:
        DataError: if the inputs are not such images.
    """
    if images.ndim != 4 or not bool((images >= 0).all()):
        raise DataError(
            f"data.features: deskew needs images (n, channels, height, width) of grey levels from zero up, got shape "
            f"{tuple(images.shape)}; use data.scaling=unit or none"
        )
    tall, wide = images.shape[-2:]
    mass = images.double().sum(1)
    mass = mass / mass.sum((1, 2), keepdim=True).clamp_min(1e-12)
    rows = torch.arange(tall, dtype=torch.float64) - (tall - 1) / 2
    columns = torch.arange(wide, dtype=torch.float64) - (wide - 1) / 2
    row, column = (mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)
    off_row, off_column = rows - row[:, None], columns - column[:, None]
    tallness = (mass.sum(2) * off_row.square()).sum(1).clamp_min(1e-12)
    lean = (mass * off_row[:, :, None] * off_column[:, None, :]).sum((1, 2)) / tallness
    wideness = ((mass.sum(1) * off_column.square()).sum(1) - lean.square() * tallness).clamp_min(1e-12)
    down, across = (
        _stretch(tallness, settings.height, settings.height_share),
        _stretch(wideness, settings.width, settings.width_share),
    )
    zero = torch.zeros_like(row)
    first = torch.stack([across, lean * down * tall / wide, 2 * column / wide], dim=1)
    second = torch.stack([zero, down, 2 * row / tall], dim=1)
    grid = affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return grid_sample(images.double(), grid, align_corners=False).to(images.dtype)


def _stretch(variance: Tensor, std: float | None, share: float) -> Tensor:
    """Return stored pixels per new pixel along one axis, clamped to within a factor of 4."""
    if std is None:
        return torch.ones_like(variance)
    return (variance.sqrt() / std).pow(share).clamp(0.25, 4.0)
