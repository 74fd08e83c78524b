"""Tensors in pieces that a processor's cache holds together with everything that is made of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 131072
"""Numbers of a piece: four blocks of noise."""


def is_dense(tensor: Tensor) -> bool:
    """Return True when the tensor fills a stretch of memory, in whatever order."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()


def are_alike(tensors: Sequence[Tensor]) -> bool:
    """Return True when dense tensors of one shape lie in memory in the same order."""
    return all(is_dense(t) and t.stride() == tensors[0].stride() and t.shape == tensors[0].shape for t in tensors)


def rows(tensor: Tensor) -> list[Tensor]:
    """Return the numbers of a dense tensor in the order of its memory, cut; views that share its version."""
    count, start = tensor.numel(), tensor.storage_offset()
    tensor = tensor.detach()
    if count <= PIECE or tensor.device.type != "cpu":
        return [tensor.as_strided((count,), (1,), start)]
    return [tensor.as_strided((min(PIECE, count - at),), (1,), start + at) for at in range(0, count, PIECE)]


class Scratch:
    """Buffers of a piece's size, by number, made once for each dtype and device.

    >>> Scratch().get(2, torch.zeros(5)).shape
    torch.Size([5])
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def get(self, number: int, like: Tensor) -> Tensor:
        """Return buffer ``number``, cut to the length of a row ``like`` it; what is in it is what it was last used for."""
        key, count = (number, like.dtype, like.device), like.numel()
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[key] = torch.empty(count, dtype=like.dtype, device=like.device)
        return buffer[:count] if len(buffer) != count else buffer

    def __deepcopy__(self, memo: object) -> "Scratch":
        return Scratch()

    def __getstate__(self) -> dict[str, object]:
        return {"_buffers": {}}
