"""Random augmentation of images in training: shifts, rotations, zooms. The ledger is taken on unchanged images."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from bitsback.errors import TrainingError
from bitsback.inputs import Inputs, described
from bitsback.training.settings import AugmentSettings

__all__ = ["augmented"]


def augmented(images: Inputs, settings: AugmentSettings) -> Tensor:
    """Apply a random affine map to each image, with bilinear interpolation and zeros beyond the border.

    Args:
        images: (n, channels, height, width).
        settings: ranges of the maps.

    Returns:
        images of the same shape.

    Raises:
        TrainingError: for inputs that are not images.

    >>> images = torch.zeros(2, 1, 8, 8)
    >>> augmented(images, AugmentSettings(shift_pixels=1.0)).shape
    torch.Size([2, 1, 8, 8])
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = described(images)
        raise TrainingError(f"augmentation needs images (n, channels, height, width), got inputs of {got}; leave it out")
    count, _, height, width = images.shape

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, dtype=images.dtype, device=images.device) - 1

    angle = uniform(count) * math.radians(settings.rotate_degrees)
    stretch = 1 + uniform(count, 2) * settings.zoom
    shear = uniform(count) * settings.shear
    size = torch.tensor([width, height], dtype=images.dtype, device=images.device)
    shift = uniform(count, 2) * settings.shift_pixels * 2 / size
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * stretch[:, 0], (shear - sin) * stretch[:, 1], shift[:, 0]], 1),
        torch.stack([sin * stretch[:, 0], cos * stretch[:, 1], shift[:, 1]], 1),
    ]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)
