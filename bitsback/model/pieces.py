"""Flat pieces of tensors, small enough that a piece and its temporaries stay in a CPU's cache."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from bitsback.kernels import ALIGNED

__all__ = ["PIECE", "Rows", "Scratch", "are_alike", "as_laid", "as_row", "is_dense", "readable", "rows", "side_by_side"]

PIECE = 131072
"""Elements of a piece: four blocks of noise."""


def is_dense(tensor: Tensor) -> bool:
    """Return True if the tensor fills a contiguous stretch of memory, in any order of axes."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()


def are_alike(tensors: Sequence[Tensor]) -> bool:
    """Return True if all tensors are dense and have the same shape and strides."""
    return all(is_dense(t) and t.stride() == tensors[0].stride() and t.shape == tensors[0].shape for t in tensors)


def as_laid(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in the memory layout and dtype of another of its shape, copied only if they differ.

    Args:
        tensor: tensor to return.
        like: dense tensor of the same shape.

    Returns:
        The tensor itself, or a copy.
    """
    if tensor.dtype == like.dtype and are_alike([tensor, like]):
        return tensor
    return torch.empty_like(like, requires_grad=False).copy_(tensor)


def as_row(tensor: Tensor) -> Tensor:
    """Return a dense tensor as a flat view (n,) in memory order."""
    tensor = tensor.detach()
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def readable(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor as kernels read it beside another: in its layout and dtype, at an address that is a multiple of 16.

    Args:
        tensor: tensor to return.
        like: dense tensor of the same shape.

    Returns:
        The tensor itself, or a copy.
    """
    laid = as_laid(tensor, like)
    return laid.clone() if laid.data_ptr() % ALIGNED else laid


def rows(tensor: Tensor) -> list[Tensor]:
    """Return a dense tensor as flat views (n,) in memory order, cut into pieces on a CPU; they share its version counter."""
    count = tensor.numel()
    flat = (tensor.detach() if tensor.requires_grad else tensor).as_strided((count,), (1,))
    if count <= PIECE or tensor.device.type != "cpu":
        return [flat]
    return [flat[at : at + PIECE] for at in range(0, count, PIECE)]


def side_by_side(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return pieces of several tensors of one shape side by side; the whole tensors if their memory layouts differ."""
    return list(zip(*map(rows, tensors), strict=True)) if are_alike(tensors) else [tensors]


class Rows:
    """Cache of pieces of several tensors side by side, remade only when a tensor has moved in memory.

    >>> kept, tensor = Rows(), torch.zeros(2, 3)
    >>> first = kept.of("mean", [tensor])
    >>> kept.of("mean", [tensor]) is first, kept.of("mean", [tensor.clone()]) is first
    (True, False)
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[list[Any], list[tuple[Tensor, ...]]]] = {}

    def of(
        self, key: Hashable, tensors: Sequence[Tensor], lay_out: Callable[[], None] | None = None
    ) -> list[tuple[Tensor, ...]]:
        """Return the pieces of tensors, cached under a key.

        Args:
            key: key of the cache.
            tensors: dense tensors of one shape and layout, or tensors that ``lay_out`` makes so.
            lay_out: called before the pieces are made, when they are not in the cache.

        Returns:
            For each piece, one view (n,) of every tensor.
        """
        where: list[Any] = [(tensor.data_ptr(), tensor.stride()) for tensor in tensors]
        kept = self._kept.get(key)
        if kept is not None and kept[0] == where:
            return kept[1]
        if lay_out is not None:
            lay_out()
            where = [(tensor.data_ptr(), tensor.stride()) for tensor in tensors]
        pieces = list(zip(*map(rows, tensors), strict=True))
        self._kept[key] = where, pieces  # the views keep the memory alive, so an address is not reused by another tensor
        return pieces


class Scratch:
    """Reusable buffers of a piece's size, by number, dtype and device.

    Attributes:
        rows: cached pieces of parameters and optimiser states.

    >>> Scratch().get(2, torch.zeros(5)).shape
    torch.Size([5])
    """

    def __init__(self) -> None:
        self.rows = Rows()
        self._buffers: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        self._views: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}

    def get(self, number: int, like: Tensor) -> Tensor:
        """Return a buffer, with arbitrary contents.

        Args:
            number: number of the buffer.
            like: tensor that gives length, dtype and device.

        Returns:
            Tensor (n,) with n = ``like.numel()``.
        """
        key = number, like.numel(), like.dtype, like.device
        found = self._views.get(key)
        return self._made(*key) if found is None else found

    def _made(self, number: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        buffer = self._buffers.get((number, dtype, device))
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[number, dtype, device] = torch.empty(count, dtype=dtype, device=device)
            self._views = {key: view for key, view in self._views.items() if (key[0], *key[2:]) != (number, dtype, device)}
        view = self._views[number, count, dtype, device] = buffer[:count]
        return view

    def __deepcopy__(self, memo: object) -> "Scratch":
        return Scratch()

    def __getstate__(self) -> dict[str, object]:
        return vars(Scratch())
