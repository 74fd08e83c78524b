"""Blocks of weights as indices into a shared random codebook (MIRACLE: Havasi, Peharz & Hernandez-Lobato 2019).

Both sides draw, for every block, the same 2^K candidates from the prior; the file names one of them in K bits. The encoder
takes the candidate with the largest q/p. The decoded weights are therefore a *chosen* vector at about the net bits of the
posterior, not a sample of q.

::

    weights, each tensor shuffled, dealt out in turn      codebook of block b: Philox stream b, 2^K rows
                                                                     w3        w9       w1    ...
    order   w3  w8  w5  w9  w0  w7  w1  ...               row 0      level  -> quantile of the prior, 16 bits each
    block    0   1   2   0   1   2   0  ...               row 1      ...
                                                          row i      largest q/p: the file holds i in K bits
                                                          ...
                                                          row 2^K-1  the reader computes row i alone
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.densities import NORMAL, StandardDensity, log_density
from bitsback.coding.elementary import Floats
from bitsback.coding.philox import levels, shuffled
from bitsback.coding.tables import PriorTable

__all__ = ["STANDARD_STEP", "BlockCode", "Score"]

Score = Callable[
    [NDArray[np.uint16], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]], NDArray[np.float32]
]
"""Function with the arguments and the result of :meth:`BlockCode.scores`."""

STANDARD_STEP = 2.0**-16
"""Lattice step of candidates in units of the prior's scale; part of the format."""

SCORES_AT_ONCE = 1 << 22
"""Numbers of candidates scored at once; bounds the encoder's memory."""


@dataclass
class BlockCode:
    """Blocks of a network's weights and their codebooks, which are determined by the arguments alone.

    Args:
        centre: prior location of every weight, (n,) in the order of the network's tensors.
        scale: prior scale of every weight, (n,).
        shapes: standard densities of the priors.
        shape_of: number of the standard density of every weight, (n,).
        sizes: number of weights of each tensor, in order; each tensor is dealt out evenly among the blocks.
        blocks: number of blocks.
        index_bits: K, the bits of an index.
        key: key of the Philox streams.
    """

    centre: Floats
    scale: Floats
    shapes: Sequence[StandardDensity]
    shape_of: NDArray[np.int64]
    sizes: Sequence[int]
    blocks: int
    index_bits: int
    key: int = 0
    order: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *self.sizes[:-1]])
        parts = [start + shuffled(self.key, t, size) for t, (start, size) in enumerate(zip(starts, self.sizes, strict=True))]
        self.order = np.concatenate(parts)
        self._quantiles = [PriorTable.build(shape, STANDARD_STEP).quantiles * STANDARD_STEP for shape in self.shapes]

    @cached_property
    def standard(self) -> list[NDArray[np.float32]]:
        """Return the quantiles of each density in float32, which only the encoder's scores use."""
        return [table.astype(np.float32) for table in self._quantiles]

    @cached_property
    def log_densities(self) -> list[NDArray[np.float32]]:
        """Return the log density at each quantile in float32, which only the encoder's scores use."""
        return [log_density(s, z).astype(np.float32) for s, z in zip(self.shapes, self._quantiles, strict=True)]

    def members(self, block: int) -> NDArray[np.int64]:
        """Return the positions of the block's weights, int64."""
        return self.order[block :: self.blocks]

    def block_of(self) -> NDArray[np.int64]:
        """Return the number of the block of every weight, (n,) int64."""
        found = np.empty(len(self.order), dtype=np.int64)
        found[self.order] = np.arange(len(self.order)) % self.blocks
        return found

    def choose(self, block: int, mean: Floats, std: Floats, score: Score | None = None) -> int:
        """Return the index of the candidate with the largest q/p, for a Gaussian q.

        Args:
            block: number of the block.
            mean: means of q for the block's m weights, (m,).
            std: stds of q for the block's weights, (m,).
            score: computes the scores of some candidates, such as on a GPU; default: :meth:`scores`.

        Returns:
            The index, from 0 to 2^K - 1; the first of several equal ones.
        """
        members = self.members(block)
        scale, kinds = self.scale[members], self.shape_of[members]
        # log q/p, up to a constant, is curvature z^2 + slope z - (log p of priors other than the normal) in standard units z;
        # float32 is enough, because the reader never computes a score
        precision = (scale / std) ** 2
        slope = (precision * (mean - self.centre[members]) / scale).astype(np.float32)
        normal = np.array([shape is NORMAL for shape in self.shapes])[kinds]
        curvature = (-0.5 * precision + 0.5 * normal).astype(np.float32)
        rows = max(1, SCORES_AT_ONCE // len(members))
        best, best_score = 0, -np.inf
        for first in range(0, 1 << self.index_bits, rows):
            count = min(rows, (1 << self.index_bits) - first)
            level = levels(self.key, block, count, len(members), first_row=first)
            scores = (score or self.scores)(level, curvature, slope, kinds, ~normal)
            index = int(scores.argmax())
            if scores[index] > best_score:
                best, best_score = first + index, float(scores[index])
        return best

    def scores(
        self,
        level: NDArray[np.uint16],
        curvature: NDArray[np.float32],
        slope: NDArray[np.float32],
        kinds: NDArray[np.int64],
        is_odd: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Return log q/p of candidates, up to a constant.

        Args:
            level: levels of the candidates, (c, m).
            curvature: factor of z^2 in standard units, (m,).
            slope: factor of z, (m,).
            kinds: number of each weight's density, (m,).
            is_odd: whether that is another than the normal, (m,).

        Returns:
            Scores, (c,).
        """
        z = self._look_up(self.standard, level, kinds)
        scores = (z * z) @ curvature + z @ slope
        if is_odd.any():
            scores = scores - self._look_up(self.log_densities, level[:, is_odd], kinds[is_odd]).sum(1)
        return scores

    def values(self, block: int, index: int) -> NDArray[np.float32]:
        """Return the weights of one candidate.

        Args:
            block: number of the block.
            index: number of the candidate.

        Returns:
            float32 weights of the block, (m,), in the order of :meth:`members`.
        """
        members = self.members(block)
        level = levels(self.key, block, 1, len(members), first_row=index)
        z = self._look_up(self._quantiles, level, self.shape_of[members])[0]
        return (self.centre[members] + self.scale[members] * z).astype(np.float32)

    def _look_up(
        self, tables: Sequence[NDArray[np.floating]], level: NDArray[np.uint16], kinds: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Return ``tables[kinds[j]][level[:, j]]`` for every column j."""
        if len(tables) == 1:
            return tables[0][level]
        found = np.empty(level.shape, dtype=tables[0].dtype)
        for number, table in enumerate(tables):
            columns = kinds == number
            found[:, columns] = table[level[:, columns]]
        return found
