"""Inputs that stay where they are, in memory, in a file or behind a data set, and are read a batch at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.errors import DataError
from bitsback.inputs import Inputs, each, joined, leaves, structure

__all__ = ["Batch", "Columns", "Index", "MappedFile", "Rows", "View", "as_rows", "numbers"]

Index = slice | Tensor
"""Which examples: a range, or their numbers (k,)."""

Batch = tuple[Inputs, tuple[int, ...] | None]
"""Inputs of some examples, and the shape of one target if the source pads every batch to its own longest example."""

DROPPED_AFTER_BYTES = 1 << 27
"""Bytes read from a mapped file after which its pages are released."""

BYTES_AT_ONCE = 1 << 26
"""Bytes of stored examples that a pass over all of them reads at once."""


INDICES = (torch.int64, torch.int32, torch.bool)
"""Types of whole numbers that networks take; narrower ones are stored, and widened when they are read."""


class Rows(ABC):
    """Inputs of n examples. ``rows[index]`` reads some of them: a tensor, a tuple or a dict of tensors."""

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

    def __getitem__(self, index: Index) -> Inputs:
        return self.read(numbers(index, len(self)))[0]

    def split(self, size: int) -> Iterator[Inputs]:
        """Yield inputs of at most ``size`` examples, in order."""
        every = torch.arange(len(self))
        return (inputs for inputs, _ in self.read_many(every.split(size)))

    def whole(self) -> Inputs:
        """Read all examples into memory."""
        return joined(list(self.split(self.at_once())))

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
    """
    return torch.arange(count)[index] if isinstance(index, slice) else index.cpu()


class MappedFile:
    """Array in a file, of which only the rows that are asked for are read.

    Args:
        array: memory-mapped, (n, ...).

    Attributes:
        array: the array.
    """

    def __init__(self, array: np.memmap) -> None:
        self.array = array
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = np.ascontiguousarray(self.array[index.numpy()])
        self._bytes += rows.nbytes
        if self._bytes > DROPPED_AFTER_BYTES:
            self.drop()
        return torch.from_numpy(rows)

    def drop(self) -> None:
        """Let the system take back the pages that were read; they stay in its file cache, and count for nobody."""
        self._bytes = 0
        held: Any = self.array
        found = None
        while held is not None and found is None:  # views hold the array that holds the map
            found, held = getattr(held, "_mmap", None), getattr(held, "base", None)
        if found is not None and hasattr(found, "madvise"):
            import mmap

            found.madvise(mmap.MADV_DONTNEED)


class Columns(Rows):
    """Inputs whose tensors lie in memory or in mapped files, each with n rows.

    Args:
        columns: tensors or mapped files: one, a tuple, or a dict by name.

    Raises:
        DataError: if their lengths differ, or there are none.
    """

    def __init__(self, columns: Any) -> None:
        self.columns = columns
        several = (
            list(columns.values()) if isinstance(columns, dict) else list(columns) if isinstance(columns, tuple) else [columns]
        )
        if not several:
            raise DataError("the inputs are empty; give a tensor, or a tuple or dict with one or more")
        lengths = [len(column) for column in several]
        if len(set(lengths)) > 1:
            names = list(columns) if isinstance(columns, dict) else range(len(several))
            said = ", ".join(f"{name}: {length}" for name, length in zip(names, lengths, strict=True))
            raise DataError(f"the inputs have different numbers of examples ({said}); give as many rows of each")
        self._length = lengths[0]

    def __len__(self) -> int:
        return self._length

    def read(self, index: Tensor) -> Batch:
        """Read some examples.

        Args:
            index: (k,).

        Returns:
            inputs (k, ...), and None.
        """
        return each(self.columns, lambda column: column[index.to(column.device) if isinstance(column, Tensor) else index]), None

    def moved(self, device: torch.device) -> "Rows":
        """Return columns with those in memory on a device."""
        return Columns(each(self.columns, lambda column: column.to(device) if isinstance(column, Tensor) else column))


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

    def __len__(self) -> int:
        return len(self.base) if self.index is None else len(self.index)

    def _made(self, batch: Batch) -> Batch:
        inputs, shape = batch
        return each(inputs, self._prepared), shape

    def _prepared(self, tensor: Tensor) -> Tensor:
        tensor = tensor if self.device_wanted is None else tensor.to(self.device_wanted)
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
        return View(self.base.moved(device), self.index, self.steps, device, self.dtype_wanted)

    @property
    def has_random_access(self) -> bool:
        """Return whether examples can be read in any order."""
        return self.base.has_random_access

    def cast(self, dtype: torch.dtype) -> "View":
        """Return a view whose real numbers have a dtype."""
        return View(self.base, self.index, self.steps, self.device_wanted, dtype)

    def selected(self, index: Tensor) -> "View":
        """Return a view of some of these rows; iterable sources raise DataError."""
        self.needs_random_access("a part of the examples")
        kept = index if self.index is None else self.index[index]
        return View(self.base, kept, self.steps, self.device_wanted, self.dtype_wanted)

    def then(self, step: Callable[[Tensor], Tensor]) -> "View":
        """Return a view that applies one more function."""
        return View(self.base, self.index, (*self.steps, step), self.device_wanted, self.dtype_wanted)


def as_rows(inputs: Any) -> Tensor | View:
    """Return inputs as a tensor or a view of rows.

    Args:
        inputs: a tensor, a tuple or dict of tensors, a mapped file, or rows.

    Returns:
        a tensor as it is, unless it is 8-bit; everything else as a view.
    """
    if isinstance(inputs, Tensor) and inputs.dtype != torch.uint8:
        return inputs
    if isinstance(inputs, View):
        return inputs
    return View(inputs if isinstance(inputs, Rows) else Columns(inputs))
