"""The type of feature maps, and their application in batches."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ROWS_AT_ONCE", "SHOWN_AFTER_SECONDS", "Map", "in_pieces"]

Map = Callable[[Tensor], Tensor]
"""Function from inputs (n, ...) to features (n, ...)."""
ROWS_AT_ONCE = 2048
"""Inputs that a map is applied to at once."""
SHOWN_AFTER_SECONDS = 2.0
"""Delay before a progress bar appears."""


def in_pieces(map_of: Map) -> Map:
    """Return a map that applies ``map_of`` to at most :data:`ROWS_AT_ONCE` inputs at a time."""
    return lambda x: torch.cat([map_of(part) for part in x.split(ROWS_AT_ONCE)])
