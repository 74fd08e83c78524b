"""Inputs that a data set of torch makes one by one: map-style, read in any order, or iterable, read in its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from bitsback.data._feature_map import SHOWN_AFTER_SECONDS
from bitsback.data._rows import Batch, Rows, tensor_of
from bitsback.data._target_columns import as_targets, class_numbers, parted
from bitsback.data.mask import NOT_CODED
from bitsback.errors import DataError, brief
from bitsback.inputs import Inputs, leaves, structure

__all__ = ["Collate", "Items", "Reader", "Stream"]

Collate = Callable[[list[Any]], Any]
"""Function that joins a list of items to a batch, as a ``DataLoader`` takes it."""

Raw = tuple[Inputs, Tensor | list[str]]
"""Inputs of some examples, and their targets as they were read."""

FIRST_PASS_BYTES = 1 << 26
"""Bytes of inputs that the first pass reads at once."""

MOST_AT_ONCE = 1024
"""Most items that the first pass reads at once."""


class Reader:
    """Fetches items, joins them to a batch, and tells inputs from targets.

    Args:
        dataset: of items: tuples that end in the target, or dicts that hold it.
        collate: joins a list of items; None: equal shapes are stacked.
        targets: name of the targets in dicts; None: a usual one.
    """

    def __init__(self, dataset: Any, collate: Collate | None, targets: str | None) -> None:
        self.dataset, self.targets = dataset, targets
        self.collate = None if collate is default_collate else collate

    def at(self, numbers: list[int]) -> Raw:
        """Read the examples of some numbers, of a map-style data set."""
        return self.of(self._items(numbers), numbers)

    def _items(self, numbers: list[int]) -> list[Any]:
        if getattr(self.dataset, "__getitems__", None) is not None:  # as torch reads them
            try:
                return list(self.dataset.__getitems__(numbers))
            except Exception:  # read them one by one, to name the example
                pass
        return [self._item(number) for number in numbers]

    def _item(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except Exception as error:  # whatever the user's data set raises
            raise DataError(
                f"example {number} of the data set cannot be read ({type(error).__name__}: {brief(error)}); mend it, or leave "
                "that example out with torch.utils.data.Subset"
            ) from error

    def of(self, items: list[Any], numbers: Sequence[int]) -> Raw:
        """Join items to a batch.

        Args:
            items: of the data set.
            numbers: of the examples, for messages.

        Returns:
            inputs and targets.

        Raises:
            DataError: if the items do not fit together, or are not numbers.
        """
        if self.collate is None:
            return _stacked([parted(item, self.targets) for item in items], numbers)
        try:
            batch = self.collate(items)
        except Exception as error:  # whatever the user's function raises
            raise DataError(
                f"the collate function fails on {_named(numbers)} ({type(error).__name__}: {brief(error)}); mend it: it takes "
                "a list of items and returns (inputs, targets)"
            ) from error
        given, wanted = parted(batch, self.targets)
        form, parts = _flat(given)
        inputs = _formed(form, [_tensor(part, "inputs", numbers) for part in parts])
        targets = list(wanted) if _are_texts(wanted) else _tensor(wanted, "targets", numbers, are_targets=True)
        made = len(targets) if not isinstance(targets, Tensor) or targets.ndim else 0
        if made != len(items):  # inputs may have other rows: nodes of graphs that the function joins
            raise DataError(
                f"the collate function makes {made} targets of {len(items)} examples; the first axis of targets counts examples"
            )
        return inputs, targets


def _named(numbers: Sequence[int]) -> str:
    """Return the examples in words."""
    if len(numbers) == 1:
        return f"example {numbers[0]}"
    return f"examples {', '.join(map(str, numbers[:3]))}{', ...' if len(numbers) > 3 else ''}"


def _are_texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and bool(values) and all(isinstance(value, str) for value in values)


def _flat(inputs: Any) -> tuple[Any, list[Any]]:
    """Return the form of some inputs (names, a count, or None for a single one), and their parts."""
    if isinstance(inputs, Mapping):
        return tuple(map(str, inputs)), list(inputs.values())
    if isinstance(inputs, tuple) or (
        isinstance(inputs, list) and any(isinstance(part, Tensor | np.ndarray) for part in inputs)
    ):
        return len(inputs), list(inputs)
    return None, [inputs]


def _formed(form: Any, parts: list[Tensor]) -> Inputs:
    if form is None:
        return parts[0]
    return tuple(parts) if isinstance(form, int) else dict(zip(form, parts, strict=True))


def _tensor(value: Any, what: str, numbers: Sequence[int], *, are_targets: bool = False) -> Tensor:
    """Return a number, a list of numbers, an array or a tensor as a tensor; inputs that are not torch's become float32."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
            return torch.stack([part.detach() for part in value])
        array = np.asarray(value)
    except (ValueError, TypeError, AttributeError, RuntimeError):  # lists of unequal length
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        kind = type(value).__name__
        fix = "pad them to one length in a collate function" if isinstance(value, list | tuple) else "make tensors of them"
        if hasattr(value, "getbands"):
            fix = "give the data set transform=torchvision.transforms.PILToTensor()"
        raise DataError(f"the {what} of {_named(numbers)} are of type {kind}, without a shape in numbers; {fix}")
    tensor = tensor_of(array)
    return tensor.float() if tensor.is_floating_point() and not are_targets else tensor


def _stacked(items: list[tuple[Any, Any]], numbers: Sequence[int]) -> Raw:
    """Stack items of equal shapes."""
    flat = [_flat(inputs) for inputs, _ in items]
    forms = [form for form, _ in flat]
    odd = next((k for k, form in enumerate(forms) if form != forms[0]), None)
    if odd is not None:
        raise DataError(
            f"examples {numbers[0]} and {numbers[odd]} have different inputs ({_form(forms[0])}, and {_form(forms[odd])}); "
            "every item has the same parts, in the same order"
        )
    names = ["inputs"] if forms[0] is None else [f"inputs '{name}'" for name in _names(forms[0])]
    parts = [_stack([parts[place] for _, parts in flat], name, numbers) for place, name in enumerate(names)]
    targets = [target for _, target in items]
    inputs = _formed(forms[0], parts)
    return inputs, targets if _are_texts(targets) else _stack(targets, "targets", numbers, are_targets=True)


def _names(form: Any) -> Sequence[Any]:
    return range(form) if isinstance(form, int) else form


def _form(form: Any) -> str:
    return "one tensor" if form is None else f"parts {', '.join(map(str, _names(form)))}"


def _stack(values: list[Any], what: str, numbers: Sequence[int], *, are_targets: bool = False) -> Tensor:
    tensors = [_tensor(value, what, [number], are_targets=are_targets) for value, number in zip(values, numbers, strict=True)]
    odd = next((k for k, tensor in enumerate(tensors) if tensor.shape != tensors[0].shape), None)
    if odd is not None:
        raise _ragged(what, numbers[0], tuple(tensors[0].shape), numbers[odd], tuple(tensors[odd].shape))
    return torch.stack(tensors)


def _ragged(what: str, first: int, one: Any, second: int, other: Any) -> DataError:
    return DataError(
        f"the {what} of examples {first} and {second} have shapes {one} and {other}; give them one shape, or a DataLoader "
        f"whose collate_fn pads every batch (its whole-number targets at the end, with {NOT_CODED})"
    )


class _Collected(Rows):
    """Rows whose targets were read in a first pass, and are compared in every later one.

    Attributes:
        targets: (n, ...).
        labels: texts that they are indices of, or None.
    """

    targets: Tensor
    labels: tuple[str, ...] | None

    def __init__(self, reader: Reader, labels: Sequence[Any] | None) -> None:
        self._reader, self._given = reader, labels

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def pads(self) -> bool:
        """Return whether a collate function makes the batches."""
        return self._reader.collate is not None

    def _collect(self, passes: Iterable[Raw], total: int | None) -> None:
        """Take the targets of a pass over all examples, and check that the inputs are finite and of one shape."""
        pieces: list[Tensor] = []
        texts: list[str] = []
        shapes: Any = None
        count = 0
        with tqdm(total=total, desc="reading", unit="example", leave=False, delay=SHOWN_AFTER_SECONDS) as bar:
            for inputs, targets in passes:
                shapes = structure(inputs) if shapes is None else shapes
                if self._reader.collate is None and structure(inputs) != shapes:
                    raise _ragged("inputs", 0, shapes, count, structure(inputs))
                self._check_finite(inputs, count)
                if isinstance(targets, Tensor):
                    pieces.append(as_targets(targets, None)[0])
                else:
                    texts += targets
                count += len(targets)
                bar.update(len(targets))
        if not count:
            raise DataError("the data set is empty; give at least one example")
        if texts and pieces:
            raise DataError("the targets are texts in some examples and numbers in others; make them alike")
        if texts:
            self.targets, self.labels = class_numbers(texts, self._given)
        else:
            self.targets, self.labels = as_targets(_joined(pieces), self._given)
        self.is_finite = True

    def _check_finite(self, inputs: Inputs, first: int) -> None:
        for leaf in leaves(inputs):
            if not leaf.ndim:
                leaf = leaf[None]
            odd = ~torch.isfinite(leaf.reshape(len(leaf), -1)).all(1)
            if bool(odd.any()):
                raise DataError(f"input of example {first + int(odd.nonzero()[0])} is NaN or infinite; clean the data first")

    def _checked(self, index: Tensor, raw: Raw) -> Batch:
        """Compare the targets that were read with those of the first pass."""
        inputs, targets = raw
        numbers = targets if isinstance(targets, Tensor) else class_numbers(targets, self.labels, int(index[0]))[0]
        stored, shape = self.targets[index], tuple(numbers.shape[1:])
        is_padded = shape != tuple(stored.shape[1:])
        if len(shape) == stored.ndim - 1 and all(one <= most for one, most in zip(shape, stored.shape[1:], strict=True)):
            kept = stored[(slice(None), *map(slice, shape))]
            differ = (kept != numbers).flatten(1).any(1) if shape else kept != numbers
            if is_padded:  # nothing but padding may lie outside
                differ |= (stored != NOT_CODED).flatten(1).sum(1) != (kept != NOT_CODED).flatten(1).sum(1)
        else:
            differ = torch.ones(len(index), dtype=torch.bool)
        if bool(differ.any()):
            number = int(index[int(differ.nonzero()[0])])
            raise DataError(
                f"the targets of example {number} are not those of the first reading: {self._changes} leave the targets as "
                f"they are, in the same order, and pad them at the end, with {NOT_CODED}"
            )
        return inputs, shape if is_padded else None

    @property
    def _changes(self) -> str:
        return "its transforms and collate function must"


def _first_pass_size(one: list[Tensor]) -> int:
    """Return the number of examples that the first pass reads at once, from the inputs of one."""
    each_bytes = sum(leaf.numel() * leaf.element_size() for leaf in one)
    return max(1, min(MOST_AT_ONCE, FIRST_PASS_BYTES // max(1, each_bytes)))


def _joined(pieces: list[Tensor]) -> Tensor:
    """Join targets; whole numbers are padded at the end to the longest."""
    shapes = {tuple(piece.shape[1:]) for piece in pieces}
    if len(shapes) == 1:
        return torch.cat(pieces)
    if len({len(shape) for shape in shapes}) > 1 or any(piece.is_floating_point() for piece in pieces):
        said = " and ".join(map(str, sorted(shapes)[:2]))
        raise DataError(
            f"the targets of different batches have shapes {said}; targets that are real numbers, or of a different number of "
            "axes, have one shape in all examples"
        )
    most = [max(sizes) for sizes in zip(*shapes, strict=True)]
    widths = [
        [x for size, wanted in zip(piece.shape[:0:-1], most[::-1], strict=True) for x in (0, wanted - size)] for piece in pieces
    ]
    return torch.cat([pad(piece, width, value=NOT_CODED) for piece, width in zip(pieces, widths, strict=True)])


class Items(_Collected):
    """Inputs of a map-style data set.

    Args:
        reader: of its items.
        workers: processes that read ahead; 0: none.
        options: further arguments of the ``DataLoader``.
        labels: of the classes if targets are texts; None: the distinct ones.

    Attributes:
        is_repeatable: whether the first example had the same inputs when it was read twice.
    """

    def __init__(
        self, reader: Reader, workers: int = 0, options: Mapping[str, Any] | None = None, labels: Sequence[Any] | None = None
    ) -> None:
        super().__init__(reader, labels)
        self._order = _Order()
        self._workers, self._options = workers, options or {}
        self._loader: DataLoader[Any] | None = self._load(self._order) if workers else None
        self._is_passing = False
        count = len(reader.dataset)
        if not count:
            raise DataError("the data set is empty; give at least one example")
        one, again = (leaves(reader.at([0])[0]) for _ in range(2))
        self.is_repeatable = all(x.shape == y.shape and bool((x == y).all()) for x, y in zip(one, again, strict=True))
        self._collect(self._raw(list(torch.arange(count).split(_first_pass_size(one)))), count)

    def _raw(self, indices: Sequence[Tensor]) -> Iterator[Raw]:
        lists = [index.tolist() for index in indices]
        if self._loader is None or len(lists) < 2:
            yield from map(self._reader.at, lists)
        elif self._is_passing:  # a persistent loader goes through one pass at a time
            order = _Order()
            order.lists = lists
            yield from _passed(self._load(order, persistent=False))
        else:
            self._order.lists, self._is_passing = lists, True
            try:
                yield from _passed(self._loader)
            finally:
                self._is_passing = False

    def _load(self, order: "_Order", *, persistent: bool = True) -> "DataLoader[Any]":
        return DataLoader(
            _Batches(self._reader), batch_size=None, sampler=order, num_workers=self._workers, collate_fn=_same,
            generator=torch.Generator(), persistent_workers=persistent, **self._options,
        )  # fmt: skip

    def read(self, index: Tensor) -> Batch:
        """Read some examples.

        Args:
            index: (k,).

        Returns:
            inputs (k, ...), and the shape of a target if the batch was padded less than all are.
        """
        return self._checked(index, self._reader.at(index.tolist()))

    def read_many(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each index, read ahead by the workers."""
        for index, raw in zip(indices, self._raw(indices), strict=True):
            yield self._checked(index, raw)


def _passed(loader: "DataLoader[Any]") -> Iterator[Raw]:
    """Yield the batches of a loader; raises the errors that its workers returned."""
    for found in loader:
        if isinstance(found, DataError):
            raise found
        yield found


class _Order:
    """Batches that a loader reads next: a sampler whose lists are exchanged before each pass."""

    lists: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)


class _Batches(TorchDataset[Any]):
    """Whole batches by the numbers of their examples, for workers; errors are returned, as torch would reword them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, numbers: Any) -> Any:
        try:
            return self.reader.at(numbers)
        except DataError as error:
            return error


def _same(batch: Any) -> Any:
    return batch


class Stream(_Collected):
    """Inputs of an iterable data set, which come in its own order, the same in every pass.

    Args:
        reader: of its items.
        workers: processes that read ahead, of a torch ``IterableDataset``; 0: none.
        options: further arguments of the ``DataLoader``.
        labels: of the classes if targets are texts; None: the distinct ones.
    """

    def __init__(
        self, reader: Reader, workers: int = 0, options: Mapping[str, Any] | None = None, labels: Sequence[Any] | None = None
    ) -> None:
        super().__init__(reader, labels)
        self._source: Iterable[Any] = reader.dataset
        if workers:
            self._source = DataLoader(
                reader.dataset, batch_size=None, num_workers=workers, collate_fn=_same, generator=torch.Generator(),
                **(options or {}),
            )  # fmt: skip
        self._iterator: Iterator[Any] | None = None
        self._next = 0
        if workers > 1:
            self._check_shares(reader.dataset, workers)
        self._collect(self._first_pass(), None)

    def _check_shares(self, dataset: Iterable[Any], workers: int) -> None:
        """Raise DataError unless all workers together give as many items as one process."""
        alone, together = (sum(1 for _ in self._items_of(found)) for found in (dataset, self._source))
        if alone != together:
            raise DataError(
                f"the iterable data set has {alone:,} items, and {workers} workers give {together:,}: share them between the "
                "workers by torch.utils.data.get_worker_info, or set workers=0"
            )

    def _items_of(self, source: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(source)
        while items := self._take(iterator, 1):
            yield from items

    @property
    def has_random_access(self) -> bool:
        """Return False."""
        return False

    def _begin(self) -> Iterator[Any]:
        found = iter(self._source)
        if found is self._source:
            raise DataError(
                f"a {type(self._source).__name__} can be read only once, and training reads the data again; give list(data), "
                "or an object whose __iter__ begins anew, such as a torch IterableDataset"
            )
        return found

    def _first_pass(self) -> Iterator[Raw]:
        iterator, first, size = self._begin(), 0, 1
        while items := self._take(iterator, size):
            inputs, targets = self._reader.of(items, range(first, first + len(items)))
            if not first:
                size = _first_pass_size(leaves(inputs))
            yield inputs, targets
            first += len(items)

    def _take(self, iterator: Iterator[Any], count: int) -> list[Any]:
        try:
            return list(islice(iterator, count))
        except DataError:
            raise
        except Exception as error:  # whatever the user's data set raises
            raise DataError(
                f"the iterable data set fails while it is read ({type(error).__name__}: {brief(error)}); mend it"
            ) from error

    def read(self, index: Tensor) -> Batch:
        """Read some examples that follow each other.

        Args:
            index: (k,).

        Returns:
            inputs (k, ...), and the shape of a target if the batch was padded less than all are.
        """
        return next(self.read_many([index]))

    def read_many(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each index; numbers follow each other in every one."""
        for index in indices:
            start = int(index[0])
            if not torch.equal(index, torch.arange(start, start + len(index))):
                self.needs_random_access("this")
            if self._iterator is None or start < self._next:
                self._iterator, self._next = self._begin(), 0
            reached = self._next + sum(1 for _ in islice(self._iterator, start - self._next))
            items = self._take(self._iterator, len(index))
            self._next = start + len(index)
            if reached + len(items) < self._next:
                self._iterator = None
                raise self._changed(f"ended after {reached + len(items):,}")
            if self._next == len(self):
                more = self._take(self._iterator, 1)
                self._iterator = None
                if more:
                    raise self._changed("went on")
            yield self._checked(index, self._reader.of(items, index.tolist()))

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"the iterable data set gave {len(self):,} examples at first, and later it {what}; it must give the same ones in "
            "every pass, in the same order"
        )

    @property
    def _changes(self) -> str:
        return "an iterable data set must not reshuffle between passes, and its transforms must"
