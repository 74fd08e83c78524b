"""A small vision transformer."""

import torch
from torch import Tensor, nn

from bitsback.networks._transformer import Blocks, start_normal

__all__ = ["ViT"]


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) whose head reads the mean over all patches (Beyer et al. 2022).

    Args:
        size: height and width of the images in pixels; multiples of ``patch``.
        channels: of the images.
        outputs: number of outputs.
        patch: side of a square patch in pixels.
        width: of the state of a patch.
        layers: number of layers.
        heads: number of attention heads; it divides ``width``.

    Attributes:
        patches: nn.Conv2d from patches to states.
        positions: (number of patches, width).
        blocks: the layers.
        head: nn.Linear.

    >>> ViT((32, 32), channels=3, outputs=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        outputs: int,
        patch: int = 4,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.empty((size[0] // patch) * (size[1] // patch), width))
        start_normal(self.positions)
        self.blocks = Blocks(width, layers, heads, is_causal=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs.

        Args:
            images: (n, channels, height, width).

        Returns:
            (n, outputs).
        """
        states = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.blocks(states + self.positions).mean(1))
