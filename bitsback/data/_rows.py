"""Inputs that stay where they are, in memory, in a file or behind a data set, and are read a batch at a time."""

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.data._arrays import is_large
from bitsback.errors import DataError
from bitsback.inputs import Inputs, each, joined, leaves, rows, structure

__all__ = [
    "Batch",
    "Columns",
    "Index",
    "MappedFile",
    "Rows",
    "View",
    "as_rows",
    "numbers",
    "sent_together",
    "stored",
    "tensor_of",
]

Index = slice | Tensor
"""Which examples: a range, or their numbers (k,)."""

Batch = tuple[Inputs, tuple[int, ...] | None]
"""Inputs of some examples, and the shape of one target if the source pads every batch to its own longest example."""

HELD_BYTES = 1 << 27
"""Bytes of a mapped file's pages after which they are released."""

MAPPED_AROUND_BYTES = 1 << 21
"""Most bytes that the system maps around one that is read: a large page of its file cache."""

WIDER: dict[str, np.dtype[Any]] = {
    "u2": np.dtype(np.int32),
    "u4": np.dtype(np.int64),
    "u8": np.dtype(np.int64),
    "f16": np.dtype(np.float64),
}
"""Types for those that torch does not calculate with, by kind and bytes."""

BYTES_AT_ONCE = 1 << 26
"""Bytes of stored examples that a pass over all of them reads at once."""

INDICES = (torch.int64, torch.int32, torch.bool)
"""Types of whole numbers that networks take; narrower ones are stored, and widened when they are read."""


class Rows(ABC):
    """Inputs of n examples. ``rows[index]`` reads some of them: a tensor, a tuple or a dict of tensors.

    Attributes:
        is_finite: whether every number was found to be finite, or is whole.
    """

    is_finite = False

    @abstractmethod
    def __len__(self) -> int:
        """Return n."""

    @abstractmethod
    def read(self, index: Tensor) -> Batch:
        """Read some examples.

        Args:
            index: (k,), their numbers, on the CPU.

        Returns:
            inputs (k, ...), and the shape of a target or None.
        """

    @property
    def has_random_access(self) -> bool:
        """Return whether examples can be read in any order."""
        return True

    @property
    def pads(self) -> bool:
        """Return whether a batch may have a shape of its own, to which a collate function padded it."""
        return False

    def needs_random_access(self, what: str) -> None:
        """Check that examples can be read in any order.

        Args:
            what: that needs them in another order, for the message.

        Raises:
            DataError: if they come in one order only.
        """
        if not self.has_random_access:
            raise DataError(
                f"{what} takes examples in any order, and an iterable data set gives them in one; give a map-style data set, "
                "or list(dataset) if it fits into memory"
            )

    def read_many(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each index; a source with workers reads ahead."""
        return map(self.read, indices)

    def moved(self, device: torch.device) -> "Rows":
        """Return the rows with everything that lies in memory on a device."""
        return self

    def cpu(self) -> "Rows":
        """Return the rows with everything that lies in memory on the CPU, as ``Tensor.cpu``."""
        return self.moved(torch.device("cpu"))

    def __getitem__(self, index: Index) -> Inputs:
        return self.read(numbers(index, len(self)))[0]

    def split(self, size: int) -> Iterator[Inputs]:
        """Yield inputs of at most ``size`` examples, in order."""
        every = torch.arange(len(self))
        return (inputs for inputs, _ in self.read_many(every.split(size)))

    def whole(self) -> Inputs:
        """Read all examples into memory; raises DataError for batches that cannot be joined."""
        parts = list(self.split(self.at_once()))
        aligned = all(len({len(leaf) for leaf in leaves(part)}) == 1 for part in parts)
        if not aligned or sum(map(rows, parts)) != len(self):
            raise DataError(
                "this needs the inputs of all examples in one piece, and the collate function joins those of a batch in its "
                "own way; it works on inputs with a row for each example"
            )
        return joined(parts)

    @cached_property
    def first(self) -> Inputs:
        """Return the inputs of the first example, (1, ...)."""
        return self[:1]

    def at_once(self) -> int:
        """Return the number of examples that a pass over all of them reads at once."""
        each_bytes = sum(leaf.numel() * leaf.element_size() for leaf in leaves(self.first))
        return max(1, min(len(self), BYTES_AT_ONCE // max(1, each_bytes)))

    @property
    def _one(self) -> Tensor:
        """Return the first example of inputs that are one tensor."""
        first = self.first
        if not isinstance(first, Tensor):
            raise DataError(
                f"this needs inputs that are one tensor, and here they are several ({', '.join(map(str, structure(first)))}); "
                "it works on networks of one input only"
            )
        return first

    @property
    def shape(self) -> torch.Size:
        """Return (n, ...) of inputs that are one tensor; raises DataError for others, as the next four."""
        return torch.Size((len(self), *self._one.shape[1:]))

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return self._one.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that is read."""
        return self._one.dtype

    @property
    def device(self) -> torch.device:
        """Return the device of what is read."""
        return leaves(self.first)[0].device

    def is_floating_point(self) -> bool:
        """Return whether real numbers are read."""
        return self._one.is_floating_point()

    def numel(self) -> int:
        """Return the number of numbers."""
        return len(self) * self._one[0].numel()


def numbers(index: Index, count: int) -> Tensor:
    """Return the numbers of the examples of an index, (k,), on the CPU.

    Args:
        index: a range, or numbers.
        count: n.

    Returns:
        (k,).

    >>> numbers(slice(2, None), 5)
    tensor([2, 3, 4])
    """
    return torch.arange(*index.indices(count)) if isinstance(index, slice) else index.cpu()


def tensor_of(array: np.ndarray) -> Tensor:
    """Return an array of numbers as a tensor, of the same type where torch calculates with it.

    Args:
        array: of whole or real numbers, or of truth values, in any byte order.

    Returns:
        a tensor, which shares the array's memory where it can.

    >>> tensor_of(np.arange(3, dtype=">u2"))
    tensor([0, 1, 2], dtype=torch.int32)
    """
    wanted: np.dtype[Any] = WIDER.get(f"{array.dtype.kind}{array.dtype.itemsize}", array.dtype.newbyteorder("="))
    array = np.ascontiguousarray(array.astype(wanted, copy=False)).reshape(array.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


class MappedFile:
    """Array in a file, of which only the rows that are asked for are read, float64 as float32.

    Args:
        array: memory-mapped, (n, ...).
        path: of the file, whose length is compared before every read: reading behind the end of a file would end the process.

    Attributes:
        array: the array.
    """

    def __init__(self, array: np.memmap, path: Path) -> None:
        self.array, self.path = array, path
        self._file_bytes, self._held_bytes = path.stat().st_size, 0
        self._row_bytes = math.prod(array.shape[1:]) * array.itemsize

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Tensor) -> Tensor:
        if not self.path.exists() or self.path.stat().st_size != self._file_bytes:
            raise DataError(f"{self.path} was changed while it was in use; leave the file as it is until the run has ended")
        numbers = index.numpy()
        start, count = int(numbers[0]) if len(numbers) else 0, len(numbers)
        is_range = bool((numbers == np.arange(start, start + count)).all())
        each_bytes = self._row_bytes + (0 if is_range else MAPPED_AROUND_BYTES)
        rows, size = np.empty((count, *self.array.shape[1:]), self.array.dtype), max(1, HELD_BYTES // max(1, each_bytes))
        for first in range(0, count, size):
            end = min(count, first + size)
            rows[first:end] = self.array[start + first : start + end] if is_range else self.array[numbers[first:end]]
            self._held_bytes += (end - first) * each_bytes
            if self._held_bytes > HELD_BYTES:
                self.drop()
        found = tensor_of(rows)
        return found.float() if found.dtype == torch.float64 else found

    def drop(self) -> None:
        """Let the system take back the pages that were read; they stay in its file cache, and count for nobody."""
        self._held_bytes = 0
        held: Any = self.array
        while held is not None and getattr(held, "_mmap", None) is None:
            held = getattr(held, "base", None)  # a view holds the array that holds the map
        if held is not None and hasattr(held._mmap, "madvise"):
            held._mmap.madvise(mmap.MADV_DONTNEED)


class Columns(Rows):
    """Inputs whose tensors lie in memory or in mapped files, each with n rows.

    Args:
        columns: tensors or mapped files: one, a tuple, or a dict by name.

    Raises:
        DataError: if their lengths differ, or there are none.
    """

    def __init__(self, columns: Any) -> None:
        self.columns = columns
        several: list[Any] = leaves(columns) if isinstance(columns, dict | tuple) else [columns]
        if not several:
            raise DataError("the inputs are empty; give a tensor, or a tuple or dict with one or more")
        lengths = [len(column) for column in several]
        if len(set(lengths)) > 1:
            names = list(columns) if isinstance(columns, dict) else range(len(several))
            said = ", ".join(f"{name}: {length}" for name, length in zip(names, lengths, strict=True))
            raise DataError(f"the inputs have different numbers of examples ({said}); give as many rows of each")
        self._length = lengths[0]
        self.is_finite = self._length > 0 and not any(leaf.is_floating_point() for leaf in leaves(self[:1]))

    def __len__(self) -> int:
        return self._length

    def read(self, index: Tensor) -> Batch:
        """Read some examples.

        Args:
            index: (k,).

        Returns:
            inputs (k, ...), and None.
        """
        return self._each(lambda column: column[index.to(column.device) if isinstance(column, Tensor) else index]), None

    def read_many(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each index; columns on an accelerator get all indices in one transfer."""
        several: list[Any] = leaves(self.columns) if isinstance(self.columns, dict | tuple) else [self.columns]
        devices = {column.device for column in several if isinstance(column, Tensor)}
        if len(devices) == 1 and all(isinstance(column, Tensor) for column in several):
            indices = sent_together(indices, devices.pop())
        return map(self.read, indices)

    def _each(self, function: Callable[[Any], Any]) -> Any:
        """Return what a function makes of every column, in the structure of the columns."""
        if isinstance(self.columns, dict):
            return {name: function(column) for name, column in self.columns.items()}
        return tuple(map(function, self.columns)) if isinstance(self.columns, tuple) else function(self.columns)

    def moved(self, device: torch.device) -> "Rows":
        """Return columns with those in memory on a device."""
        return Columns(self._each(lambda column: column.to(device) if isinstance(column, Tensor) else column))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU it goes from pinned memory, so that the host need not wait.

    Args:
        tensor: tensor anywhere.
        device: where to.

    Returns:
        The tensor there.
    """
    if device.type == "cuda" and tensor.is_cpu and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def sent_together(indices: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Return several index tensors (k,) on a device, in one transfer; those of the CPU as they are.

    Args:
        indices: index tensors.
        device: where to.

    Returns:
        As many tensors.
    """
    if device.type == "cpu" or not indices:
        return indices
    return sent(torch.cat([index.cpu() for index in indices]), device).split([len(index) for index in indices])


class View(Rows):
    """Some of the rows of others, moved to a device and prepared when they are read.

    Args:
        base: the rows.
        index: numbers of the rows that remain, (n,); None: all.
        steps: functions of each tensor that is read, applied on the device, in order.
        device: where batches go; None: where they are read.
        dtype: of floating-point tensors; None: as they are read.
    """

    def __init__(
        self,
        base: Rows,
        index: Tensor | None = None,
        steps: tuple[Callable[[Tensor], Tensor], ...] = (),
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.base, self.index, self.steps, self.device_wanted, self.dtype_wanted = base, index, steps, device, dtype
        self.is_finite = base.is_finite

    def _but(self, **changes: Any) -> "View":
        """Return a view that differs in some attributes."""
        other = copy(self)
        other.__dict__.pop("first", None)
        other.__dict__.update(changes)
        return other

    def __len__(self) -> int:
        return len(self.base) if self.index is None else len(self.index)

    def _made(self, batch: Batch) -> Batch:
        inputs, shape = batch
        return each(inputs, self._prepared), shape

    def _prepared(self, tensor: Tensor) -> Tensor:
        tensor = tensor if self.device_wanted is None else sent(tensor, self.device_wanted)
        for step in self.steps:
            tensor = step(tensor)
        if tensor.is_floating_point():
            return tensor if self.dtype_wanted is None else tensor.to(self.dtype_wanted)
        return tensor if tensor.dtype in INDICES else tensor.long()

    def read(self, index: Tensor) -> Batch:
        """Read and prepare some examples.

        Args:
            index: (k,).

        Returns:
            inputs (k, ...), and the shape of a target or None.
        """
        return self._made(self.base.read(index if self.index is None else self.index[index]))

    def read_many(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each index."""
        own = indices if self.index is None else [self.index[index] for index in indices]
        return map(self._made, self.base.read_many(own))

    def moved(self, device: torch.device) -> Rows:
        """Return a view whose batches are on a device."""
        return self._but(base=self.base.moved(device), device_wanted=device)

    @property
    def has_random_access(self) -> bool:
        """Return whether examples can be read in any order."""
        return self.base.has_random_access

    @property
    def pads(self) -> bool:
        """Return whether a batch may have a shape of its own."""
        return self.base.pads

    def cast(self, dtype: torch.dtype) -> "View":
        """Return a view whose real numbers have a dtype."""
        return self._but(dtype_wanted=dtype)

    def selected(self, index: Tensor) -> "View":
        """Return a view of some of these rows; iterable sources raise DataError."""
        self.needs_random_access("a part of the examples")
        return self._but(index=index if self.index is None else self.index[index])

    def without(self, step: Callable[[Tensor], Tensor]) -> "View":
        """Return a view that leaves out a function."""
        return self._but(steps=tuple(one for one in self.steps if one is not step))

    def then(self, step: Callable[[Tensor], Tensor]) -> "View":
        """Return a view that applies one more function."""
        return self._but(steps=(*self.steps, step))


def as_rows(inputs: Any) -> Tensor | View:
    """Return inputs as a tensor or a view of rows.

    Args:
        inputs: a tensor, a tuple or dict of tensors, a mapped file, or rows.

    Returns:
        a tensor as it is, or as int64 if its whole numbers are narrow; one that is 8-bit, and everything else, as a view.
    """
    if isinstance(inputs, Tensor) and inputs.dtype != torch.uint8:
        return inputs if inputs.is_floating_point() or inputs.is_complex() or inputs.dtype in INDICES else inputs.long()
    if isinstance(inputs, View):
        return inputs
    return View(inputs if isinstance(inputs, Rows) else Columns(inputs))


def stored(array: np.ndarray, path: Path, *, keeps_whole: bool = False) -> Tensor | View:
    """Return the inputs in an array of a file as real numbers: small ones at once, large ones when they are read.

    Args:
        array: (n, ...), in memory or mapped.
        path: of the file.
        keeps_whole: leave whole numbers whole, as indices.

    Returns:
        float32, or int64 if they are kept whole.
    """
    is_index = keeps_whole and array.dtype.kind in "biu"
    if not is_large(array.shape):
        return torch.from_numpy(array.astype(np.int64 if is_index else np.float32))
    column = MappedFile(array, path) if isinstance(array, np.memmap) else tensor_of(array)
    return View(Columns(column), steps=() if is_index else (Tensor.float,))
