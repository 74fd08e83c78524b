"""Scores of the candidates of a block on a GPU; the file names a candidate, so that nobody repeats them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitsback.coding.relative_entropy import BlockCode

__all__ = ["DeviceScores"]


class DeviceScores:
    """:meth:`BlockCode.scores` on a device, to rounding.

    Args:
        code: block code.
        device: where to compute.
    """

    def __init__(self, code: BlockCode, device: torch.device) -> None:
        self.device = device
        self._quantiles, self._log_densities = (
            [torch.from_numpy(table).to(device) for table in tables] for tables in (code.standard, code.log_densities)
        )

    def __call__(
        self,
        level: NDArray[np.uint16],
        curvature: NDArray[np.float32],
        slope: NDArray[np.float32],
        kinds: NDArray[np.int64],
        is_odd: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        levels = torch.from_numpy(level.astype(np.int32)).to(self.device)
        which = torch.from_numpy(kinds).to(self.device)
        z = _look_up(self._quantiles, levels, which)
        scores = (z * z) @ torch.from_numpy(curvature).to(self.device) + z @ torch.from_numpy(slope).to(self.device)
        if is_odd.any():
            odd = torch.from_numpy(is_odd).to(self.device)
            scores = scores - _look_up(self._log_densities, levels[:, odd], which[odd]).sum(1)
        found: NDArray[np.float32] = scores.cpu().numpy()
        return found


def _look_up(tables: list[Tensor], levels: Tensor, kinds: Tensor) -> Tensor:
    """Return ``tables[kinds[j]][levels[:, j]]`` for every column j."""
    found = torch.empty(levels.shape, dtype=torch.float32, device=levels.device)
    for number, table in enumerate(tables):
        columns = kinds == number
        found[:, columns] = table[levels[:, columns]]
    return found
