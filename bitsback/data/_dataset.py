"""Data sets: training examples, whose targets are coded, and test examples, which only measure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitsback import limits
from bitsback.data._column import ColumnSettings
from bitsback.data._feature_map import Map
from bitsback.data._rows import Rows, View, as_rows, numbers, sent_together
from bitsback.errors import DataError, brief
from bitsback.inputs import Inputs, described, grey, leaves, structure
from bitsback.result import text_table
from bitsback.torch_state import using_threads

if TYPE_CHECKING:
    from bitsback.data.settings import DataSettings, LabelValues

__all__ = ["Dataset", "Examples", "Preprocessing", "finished", "split"]


@dataclass(frozen=True)
class Examples:
    """Inputs and targets of one split.

    Inputs are a tensor, a tuple or a dict of tensors, which the network is called with as ``network(x)``, ``network(*x)`` or
    ``network(**x)``; or rows that are read a batch at a time, as :func:`bitsback.data.source` returns them. ``inputs[index]``
    reads some of them in every case.

    8-bit inputs (``uint8``) are grey levels: they stay 8-bit, and every batch is divided by 255 on its device.

    Attributes:
        inputs: (n, ...), finite.
        targets: (n, ...), finite.
        name: of the split, for messages.
        assumed: what the receiver has to know beforehand to compute the inputs, as notes of the ledger.
        labels: texts that whole-number targets are indices of, or None.

    Raises:
        DataError: if the split is empty, the lengths differ, or a number is not finite.

    >>> len(Examples(torch.zeros(5, 2), torch.zeros(5)))
    5
    >>> Examples({"ids": torch.zeros(5, 7).long()}, torch.zeros(5)).inputs[:2]["ids"].shape
    torch.Size([2, 7])
    """

    inputs: Any
    targets: Tensor
    name: str = "training"
    assumed: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_types()
        inputs = as_rows(self.inputs)
        if isinstance(inputs, View) and not isinstance(self.inputs, View):
            inputs = inputs.then(grey)
        if isinstance(inputs, Tensor):
            self._check_finite("input", inputs)
        elif not inputs.is_finite:
            self._check_finite("input", inputs)
            inputs.is_finite = True  # and so is every part of them
        object.__setattr__(self, "inputs", inputs)
        if len(inputs) != len(self.targets):
            raise DataError(
                f"the {self.name} split has {len(inputs)} inputs but {len(self.targets)} targets; give as many of each"
            )
        if len(inputs) == 0:
            raise DataError(f"the {self.name} split is empty; give at least one example")
        self._check_finite("target", self.targets)

    def _check_types(self) -> None:
        """Raise DataError for anything but tensors and rows, with the call that takes it."""
        for what, given in (("inputs", self.inputs), ("targets", self.targets)):
            if isinstance(given, Tensor) or (what == "inputs" and isinstance(given, Rows)):
                continue
            parts = leaves(given) if isinstance(given, dict | tuple) else [given]
            if what == "targets" or not all(isinstance(part, Tensor) for part in parts):
                raise DataError(
                    f"Examples takes tensors, and the {what} are {type(given).__name__}; bitsback.data.source(inputs, "
                    "targets) takes arrays, lists, tables, data sets and loaders"
                )

    def _check_finite(self, what: str, numbers: Tensor | View) -> None:
        count, start = len(numbers), 0
        for part in [numbers] if isinstance(numbers, Tensor) else numbers.split(numbers.at_once() if count else 1):
            for tensor in leaves(part):
                if not tensor.is_floating_point():
                    continue
                finite = torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else torch.isfinite(tensor)
                if not bool(finite.all()):
                    first = start + int((~finite).nonzero()[0])
                    raise DataError(f"{what} of {self.name} example {first} is NaN or infinite; clean the data first")
            start += len(leaves(part)[0])

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        inputs = structure(self.inputs[:1])
        return f"Examples({len(self)} inputs {inputs}, targets {tuple(self.targets.shape[1:])}, {self.name})"

    @property
    def has_random_access(self) -> bool:
        """Return whether examples can be read in any order."""
        return isinstance(self.inputs, Tensor) or self.inputs.has_random_access

    @property
    def pads(self) -> bool:
        """Return whether a batch may have a shape of its own, to which a collate function padded it."""
        return isinstance(self.inputs, View) and self.inputs.pads

    @property
    def preprocessing(self) -> "Preprocessing":
        """Return the map from the inputs as they are stored to those of a batch: 8-bit grey levels are divided by 255."""
        if isinstance(self.inputs, View) and grey in self.inputs.steps:
            stored = self.inputs.base.first
            if isinstance(stored, Tensor) and stored.dtype == torch.uint8:
                return Preprocessing(scale=torch.tensor(255.0))
        return Preprocessing()

    def batch(self, index: slice | Tensor) -> tuple[Inputs, Tensor]:
        """Return inputs and targets of some examples.

        Args:
            index: a range, or numbers of examples (k,).

        Returns:
            inputs (k, ...) and targets (k, ...).
        """
        return next(self.batches([index]))

    def batches(self, indices: Iterable[slice | Tensor]) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield inputs and targets of some examples for each index; a loader with workers reads ahead.

        Args:
            indices: ranges, or numbers of examples (k,).

        Yields:
            inputs (k, ...) and targets (k, ...).
        """
        if isinstance(self.inputs, Tensor):
            for index in indices:
                yield self.inputs[index], _long(self.targets[index])
            return
        wanted = list(indices)
        every = [numbers(index, len(self)) for index in wanted]
        chosen: Sequence[slice | Tensor] = wanted
        if not any(isinstance(index, slice) for index in wanted):
            chosen = sent_together(every, self.targets.device)
        for index, (inputs, shape) in zip(chosen, self.inputs.read_many(every), strict=True):
            targets = _long(self.targets[index if isinstance(index, slice) else index.to(self.targets.device)])
            yield inputs, targets if shape is None else targets[(slice(None), *map(slice, shape))]

    def ranges(self, size: int) -> list[slice]:
        """Return the ranges of at most ``size`` examples each, in order.

        >>> Examples(torch.zeros(5, 2), torch.zeros(5)).ranges(2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
        """
        return [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def subset(self, index: Tensor) -> "Examples":
        """Return some of the examples, in the order of their numbers (k,)."""
        kept = self.inputs[index] if isinstance(self.inputs, Tensor) else self.inputs.selected(index.cpu())
        return replace(self, inputs=kept, targets=self.targets[index.to(self.targets.device)])

    def spread(self, count: int) -> "Examples":
        """Return at most ``count`` examples, evenly spaced; of an iterable source, the first ones."""
        if count >= len(self):
            return self
        if not self.has_random_access:
            return replace(self, inputs=self.inputs[:count], targets=self.targets[:count])
        return self.subset(torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long())

    def in_memory(self) -> "Examples":
        """Return examples whose inputs were read as a whole; raises DataError if they exceed the memory limit."""
        if isinstance(self.inputs, Tensor):
            return self
        count = len(self) * sum(leaf.numel() for leaf in leaves(self.inputs.first))
        said = f"reading the {self.name} inputs as a whole"
        limits.MEMORY.check(limits.data_bytes(count, 4), said, DataError, "set data.limit, or give fewer examples")
        return replace(self, inputs=self.inputs.whole())

    def to(self, device: torch.device, dtype: torch.dtype) -> "Examples":
        """Move to a device what lies in memory; everything else moves there a batch at a time.

        Args:
            device: where to.
            dtype: of floating-point inputs; targets keep theirs (float64 becomes float32 on mps, which has no float64).

        Returns:
            the examples there; ``self`` if nothing changes.
        """
        coarse = device.type == "mps" and self.targets.dtype == torch.float64  # mps has no float64
        targets = self.targets.to(device, torch.float32 if coarse else self.targets.dtype)
        if not isinstance(self.inputs, Tensor):
            return replace(self, inputs=self.inputs.moved(device).cast(dtype), targets=targets)
        wanted = dtype if self.inputs.is_floating_point() else self.inputs.dtype
        if self.inputs.device == device and self.inputs.dtype == wanted and self.targets.device == device:
            return self
        return replace(self, inputs=self.inputs.to(device, wanted), targets=targets)


def _long(targets: Tensor) -> Tensor:
    """Return whole numbers that were kept as int32 as int64."""
    return targets.long() if targets.dtype == torch.int32 else targets


PART_STREAM = 1
"""Random stream of the split into parts, so that it is independent of the draw behind ``limit``."""

ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)
"""Shift and scale of inputs that are used as they are."""


@dataclass(frozen=True)
class Preprocessing:
    """Map from stored inputs to network inputs: (x - shift) / scale, then features, then rounding.

    Attributes:
        shift: subtracted.
        scale: divisor.
        features: fitted feature map, or None.
        fraction_bits: inputs are rounded to multiples of 2^-fraction_bits; None: not rounded.

    >>> Preprocessing(scale=torch.tensor(16.0))(torch.tensor([8.0]))
    tensor([0.5000])
    """

    shift: Tensor = ZERO
    scale: Tensor = ONE
    features: Map | None = None
    fraction_bits: int | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        if not inputs.is_floating_point():
            return inputs
        shape = tuple(inputs.shape[1:])
        try:
            inputs = (inputs - self.shift.to(inputs.device)) / self.scale.to(inputs.device)
            if self.features is not None:
                with using_threads(1):  # sums in the same order, so equal features, whatever the number of threads
                    inputs = self.features(inputs)
        except (RuntimeError, IndexError, ValueError) as error:  # shapes that do not match
            reason = f"cannot be prepared as the training inputs were ({brief(error)})"
            raise DataError(f"inputs of shape {shape} {reason}; give inputs of the same shape") from error
        if self.fraction_bits is not None:
            inputs = ((inputs.double() * 2.0**self.fraction_bits).round() * 2.0**-self.fraction_bits).to(inputs.dtype)
        return inputs

    def of(self, examples: Examples, assumed: tuple[str, ...] = ()) -> Examples:
        """Preprocess the inputs of some examples.

        Args:
            examples: with inputs as they are stored.
            assumed: what the receiver has to know beforehand to do the same.

        Returns:
            new examples with the same targets.
        """
        inputs = self(examples.inputs) if isinstance(examples.inputs, Tensor) else examples.inputs.then(self)
        return replace(examples, inputs=inputs, assumed=assumed)


@dataclass(frozen=True)
class Dataset:
    """Training examples, test examples (never used to choose anything), and facts about the labels.

    Attributes:
        name: of the source.
        train: examples whose targets are coded.
        test: examples for the test error, or None.
        classes: number of classes that the source declares, or None.
        preprocessing: the map that was applied to the inputs.
        in_memory: whether the data were made in Python, so that no settings can load them again.
        labels: distinct labels of the whole source (both splits, before ``limit``), or None if unknown. If they are texts, the
            targets are indices into this list.
        scaling: scaling that was applied to the inputs, or None if it did not come from settings.
        columns: of a table's inputs, in order.
        left_out: reasons by the names of a table's other columns.
    """

    name: str
    train: Examples
    test: Examples | None
    classes: int | None = None
    preprocessing: Preprocessing = None  # type: ignore[assignment]  # default: that of the training examples
    in_memory: bool = False
    labels: "LabelValues | None" = None
    scaling: str | None = None
    columns: tuple[ColumnSettings, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split, examples in (("train", self.train), ("test", self.test)):
            if not isinstance(examples, Examples) and (examples is not None or split == "train"):
                raise DataError(
                    f"Dataset takes Examples, and {split} is a {type(examples).__name__}: put it into bitsback.data.source(...)"
                )
        _check_alike(self.train, self.test)
        object.__setattr__(self, "preprocessing", self.preprocessing or self.train.preprocessing)

    @property
    def has_texts(self) -> bool:
        """Return whether the targets are indices of labels that are texts."""
        return bool(self.labels) and isinstance(self.labels[0], str)  # type: ignore[index]

    def columns_text(self) -> str:
        """Return the rows and columns of a table in lines: name, kind, rows without a value, levels; empty for other data."""
        if not self.columns:
            return ""
        body = [
            [brief(one.name, NAME_CHARACTERS), KINDS[one.kind], f"{one.missing:,}" if one.missing else "", _levels(one)]
            for one in self.columns
        ]
        body += [[brief(name, NAME_CHARACTERS), why, "", ""] for name, why in self.left_out.items()]
        rows = f"{len(self.train):,} rows to train with, {0 if self.test is None else len(self.test):,} to test with"
        return f"{rows}\n{text_table(['column', 'what it is', 'missing', 'values'], body, left=4)}"


KINDS = {"number": "number", "yes_no": "yes or no", "category": "category"}
"""Kinds of columns in words."""

NAME_CHARACTERS = 40
"""Most characters of a name that are shown."""

SHOWN_LEVELS = 4
"""Most levels of a category that are shown."""


def _levels(column: ColumnSettings) -> str:
    if column.kind != "category":
        return f"mean {column.mean:.4g}, std {column.std:.4g}" if column.kind == "number" else f"yes in {column.mean:.3g}"
    some = ", ".join(brief(level, NAME_CHARACTERS) for level in column.levels[:SHOWN_LEVELS])
    return f"{len(column.levels):,}: {some}" + (", ..." if len(column.levels) > SHOWN_LEVELS else "")


def finished(
    settings: "DataSettings",
    name: str,
    train: Examples,
    test: Examples | None,
    *,
    largest: float = 1.0,
    are_images: bool = False,
    classes: int | None = None,
    texts: Sequence[str] | None = None,
) -> Dataset:
    """Return the result of :meth:`DataSettings.finish`.

    Args:
        settings: of the data source.
        name: of the source.
        train: examples as they were read.
        test: examples as they were read, or None.
        largest: largest grey level of such images.
        are_images: whether the inputs are images.
        classes: number of classes that the source declares.
        texts: labels that whole-number targets are indices of.

    Returns:
        the data set.
    """
    _check_alike(train, test)
    labels = tuple(texts) if texts is not None else _distinct(train, test)
    if settings.limit is not None and settings.limit < len(train):
        kept = (
            torch.from_numpy(np.random.default_rng(settings.split_seed).permutation(len(train))[: settings.limit]).sort().values
        )
        train = train.subset(kept)
    train = _part_of(train, settings)
    train, test = _as_numbers(train, settings), test and _as_numbers(test, settings)
    scaling = settings.scaling if settings.scaling != "auto" else "unit" if are_images else "standard"
    preprocessing = _scaled(train.inputs, scaling, largest)
    note: tuple[str, ...] = ()
    if settings.features is not None:
        train, test = train.in_memory(), test and test.in_memory()
        if settings.features.is_fitted:
            note = (f"{settings.features.kind} of the training inputs, which the receiver holds",)
        with using_threads(1):  # as in Preprocessing.__call__
            preprocessing = replace(preprocessing, features=settings.features.fit(preprocessing(train.inputs)))
    preprocessing = replace(preprocessing, fraction_bits=settings.fraction_bits)
    test = test and preprocessing.of(test, note)
    return Dataset(name, preprocessing.of(train, note), test, classes, preprocessing, labels=labels, scaling=scaling)


def _as_numbers(examples: Examples, settings: "DataSettings") -> Examples:
    """Convert whole-number inputs to real numbers for scaling; under ``unit`` and ``none`` they remain indices."""
    inputs = examples.inputs
    if settings.scaling in ("unit", "none") or inputs.is_floating_point():
        return examples
    return replace(examples, inputs=inputs.float() if isinstance(inputs, Tensor) else inputs.then(Tensor.float))


def _part_of(train: Examples, settings: "DataSettings") -> Examples:
    """Select the examples of ``part``; the two parts of one split_seed are disjoint and cover all examples."""
    if settings.prior_fraction is None:
        return train
    apart = round(settings.prior_fraction * len(train))
    order = torch.from_numpy(np.random.default_rng([settings.split_seed, PART_STREAM]).permutation(len(train)))
    kept = (order[:apart] if settings.part == "prior" else order[apart:]).sort().values
    if not 0 < apart < len(train):
        raise DataError(
            f"data.prior_fraction {settings.prior_fraction:g} of {len(train)} examples leaves one part empty; choose another"
        )
    return train.subset(kept)


def _check_alike(train: Examples, test: Examples | None) -> None:
    """Raise DataError if inputs of the two splits differ in shape, or their labels do."""
    if test is None:
        return
    one, other = (part.inputs[:1] if isinstance(part.inputs, Tensor) else part.inputs.first for part in (train, test))
    varies = any(not isinstance(part.inputs, Tensor) and part.inputs.pads for part in (train, test))
    if not varies and structure(other) != structure(one):
        raise DataError(f"a test input has {described(other)} but a training input {described(one)}; both splits must be alike")
    if test.labels is not None and test.labels != train.labels:
        raise DataError(
            "the test split numbers its text labels otherwise than the training split; make it with labels=train.labels"
        )


def _scaled(inputs: Tensor | View, scaling: str, largest: float) -> Preprocessing:
    """Return the preprocessing that scales inputs; whole-number inputs are indices and are not scaled."""
    if scaling == "none" or not inputs.is_floating_point():
        return Preprocessing()
    if scaling == "unit":
        return Preprocessing(scale=torch.tensor(largest))
    if not isinstance(inputs, Tensor):
        mean, std = _moments(inputs)
        if scaling == "centred":
            return Preprocessing(mean.float(), torch.tensor(largest))
    elif scaling == "centred":
        return Preprocessing(inputs.mean(0), torch.tensor(largest))
    else:
        std, mean = torch.std_mean(inputs.double(), 0, correction=0)  # squares of large numbers overflow in float32
    return Preprocessing(mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float())


def _moments(inputs: View) -> tuple[Tensor, Tensor]:
    """Return mean and std of each feature, in float64 and in one pass (Chan, Golub & LeVeque 1983)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for part in inputs.split(inputs.at_once()):
        (some,) = (leaf.double() for leaf in leaves(part))
        own = some.mean(0)
        squares = squares + (some - own).square().sum(0) + (own - mean).square() * (count * len(some) / (count + len(some)))
        count += len(some)
        mean = mean + (own - mean) * (len(some) / count)
    return mean, (squares / count).sqrt()


def _distinct(train: Examples, test: Examples | None) -> "LabelValues | None":
    """Return the distinct values of whole-number targets (n,); None for all other targets."""
    targets = [examples.targets for examples in (train, test) if examples is not None]
    if any(part.is_floating_point() or part.ndim != 1 for part in targets):
        return None
    return tuple(torch.cat(targets).unique().tolist())


def split(inputs: Tensor | View, targets: Tensor, test_fraction: float, seed: int) -> tuple[Examples, Examples | None]:
    """Hold out examples at random.

    Args:
        inputs: (n, ...).
        targets: (n, ...).
        test_fraction: share held out, below 1.
        seed: of the draw.

    Returns:
        training and test examples, each in their original order; None for the latter if none is held out.

    >>> train, test = split(torch.zeros(10, 1), torch.zeros(10), 0.2, seed=0)
    >>> len(train), len(test)
    (8, 2)
    """
    held_out = len(inputs) - int(len(inputs) * (1 - test_fraction) + 1e-9)
    if held_out == 0:
        return Examples(inputs, targets), None
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(inputs)))
    test, train = order[:held_out].sort().values, order[held_out:].sort().values
    every = Examples(inputs, targets)
    return every.subset(train), replace(every.subset(test), name="test")
