"""What a map of the inputs is, and how those that treat every input by itself are applied."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ROWS_AT_ONCE", "SHOWN_AFTER_SECONDS", "Map", "in_pieces"]

Map = Callable[[Tensor], Tensor]
ROWS_AT_ONCE = 2048
SHOWN_AFTER_SECONDS = 2.0


def in_pieces(map_of: Map) -> Map:
    """The map, applied to so many inputs at once."""
    return lambda x: torch.cat([map_of(part) for part in x.split(ROWS_AT_ONCE)])
