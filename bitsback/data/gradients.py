"""Where in an image its edges point: local histograms of gradient orientations."""

import math
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import conv2d, pad

from bitsback.data.feature_map import PerInputSettings
from bitsback.errors import DataError

BLUR = (0.25, 0.5, 0.25)


class GradientHistogramSettings(PerInputSettings):
    """Local histograms of gradient orientations (Dalal & Triggs 2005), whose distances mean more than those of pixels.

    Each channel is blurred, its gradients are shared out among ``orientations`` directions, and each direction is averaged
    under Gaussian windows ``cell`` pixels apart. Square roots of the averages, at length one, are the features: their distance
    is then the Hellinger distance. Nothing is fitted.

    >>> GradientHistogramSettings(cell=4).fit(torch.empty(0))(torch.rand(2, 1, 16, 16)).shape
    torch.Size([2, 72])
    """

    kind: Literal["gradient_histograms"] = "gradient_histograms"
    orientations: PositiveInt = Field(8, le=256, description="directions that gradients are shared out among")
    cell: PositiveInt = Field(4, description="pixels between the windows; their std is 0.6 of it")
    focus: PositiveFloat = Field(2.0, description="power of the cosine that a gradient counts for a direction with")

    def map(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or min(images.shape[2:]) < self.cell:
            raise DataError(
                f"data.features: gradient_histograms needs images (n, channels, height, width) no smaller than a cell, got "
                f"shape {tuple(images.shape)} and cell {self.cell}; use data.features.cell=4"
            )
        planes = images.flatten(0, 1)[:, None]
        blur = torch.tensor(BLUR, dtype=images.dtype)
        planes = conv2d(planes, (blur[:, None] * blur)[None, None], padding=1)
        across = pad(planes[..., 2:] - planes[..., :-2], (1, 1))
        down = pad(planes[..., 2:, :] - planes[..., :-2, :], (0, 0, 1, 1))
        size, angle = torch.hypot(across, down), torch.atan2(down, across)
        shares = [
            size * torch.cos(angle - 2 * math.pi * k / self.orientations).clamp_min(0) ** self.focus
            for k in range(self.orientations)
        ]
        place = torch.arange(-self.cell, self.cell + 1, dtype=images.dtype)
        window = torch.exp(-(place**2) / (2 * (0.6 * self.cell) ** 2))
        window = window / window.sum()
        kernel = (window[:, None] * window).expand(self.orientations, 1, -1, -1)
        found = conv2d(torch.cat(shares, 1), kernel, stride=self.cell, padding=self.cell // 2, groups=self.orientations)
        roots = found.reshape(len(images), -1).clamp_min(0).sqrt()
        return roots / roots.norm(dim=1, keepdim=True).clamp_min(1e-12)
