"""Examples from whatever holds them: tensors, arrays, tables, data sets and loaders of torch, files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from bitsback.data._arrays import REASONS, describe, read_npy, read_npz
from bitsback.data._dataset import Dataset, Examples
from bitsback.data._items import Collate, Items, Reader, Stream
from bitsback.data._npz import coded_targets
from bitsback.data._rows import Columns, MappedFile, Rows, tensor_of
from bitsback.data._tables import is_frame, parquet_frames, table
from bitsback.data._target_columns import TARGET_NAMES, as_targets, target_name
from bitsback.data.idx import read_idx
from bitsback.data.mask import NOT_CODED, masked
from bitsback.errors import DataError, brief, near_miss

__all__ = ["source"]

AUGMENTED = "the random numbers of the data set's transforms"
"""Note of the ledger on inputs that differ from one reading to the next."""

TAKEN = (
    "tensors, arrays or lists with targets, a pair (inputs, targets), a dict, a pandas DataFrame, a torch data set or "
    "DataLoader, or the path of an .npy, .npz, IDX or .parquet file"
)


@dataclass(frozen=True)
class _Found:
    """Inputs and targets as a source holds them.

    Attributes:
        inputs: a tensor, a tuple or dict of columns, or rows.
        targets: anything that :func:`as_targets` takes.
        labels: texts that whole-number targets are indices of, or None.
        assumed: what the receiver has to know beforehand.
    """

    inputs: Any
    targets: Any
    labels: Sequence[Any] | None = None
    assumed: tuple[str, ...] = ()


def source(
    data: Any,
    targets: Any = None,
    *,
    mask: Any = None,
    collate: Collate | None = None,
    workers: int | None = None,
    labels: Sequence[str] | None = None,
    name: str = "training",
) -> Examples:
    """Return examples from whatever holds them.

    ``data`` may be

    - a tensor, an array or a list, with ``targets``; a pair ``(inputs, targets)``;
    - a tuple or dict of several inputs, with ``targets``; a dict that holds the targets too;
    - a pandas ``DataFrame``: every column but that of the targets is an input;
    - a ``TensorDataset``, or any map-style data set, whose items are tuples that end in the target, or dicts; so are data sets
      of Hugging Face ``datasets`` (``with_format("torch")``) and lists of items;
    - a ``DataLoader``, of which data set, collate function and workers are taken; batches are drawn by bitsback;
    - an ``IterableDataset``, or another iterable that begins anew: examples stay in its order, the same in every pass;
    - the path of an ``.npy`` or IDX file, which is mapped, an ``.npz`` file (arrays ``inputs`` and ``targets``), or a
      ``.parquet`` file.

    Networks are called with a tensor as ``network(x)``, a tuple as ``network(*x)``, a dict as ``network(**x)``. 8-bit inputs
    (uint8) stay 8-bit, and every batch is divided by 255 on its device. Arrays of float64 are read as float32; tensors keep
    their type. Data sets and files are read a batch at a time; their targets are held in memory.

    An ``IterableDataset`` that is read by workers shares its examples between them (``torch.utils.data.get_worker_info``).

    Args:
        data: what holds the examples.
        targets: (n, ...), their targets, or the path of an ``.npy`` or IDX file; or the name of the targets in a dict, a table,
            an ``.npz`` file or items that are dicts (default: labels, label, targets, target or y).
        mask: truth values in the shape of whole-number targets: where they are 0, the target is not coded (it becomes -100).
        collate: joins a list of items to a batch, as for a ``DataLoader``; default: equal shapes are stacked.
        workers: processes that read ahead; default: those of the ``DataLoader``, else none.
        labels: texts of the classes, in order, so that a test split numbers them as the training split does
            (``labels=train.labels``); default: the distinct texts, sorted.
        name: of the split, for messages.

    Returns:
        the examples.

    Raises:
        DataError: if the data cannot be read as examples, with the reason and the fix.

    >>> import torch
    >>> source(torch.zeros(5, 2), ["a", "b", "a", "a", "b"]).labels
    ('a', 'b')
    >>> loader = DataLoader(TensorDataset(torch.zeros(5, 2), torch.arange(5)), batch_size=2)
    >>> source(loader)
    Examples(5 inputs (2,), targets (), training)
    """
    if isinstance(data, Dataset):
        raise DataError("a Dataset holds two splits, and examples of one are needed here; give dataset.train, or dataset.test")
    if isinstance(data, Examples):
        if targets is not None:
            raise DataError("Examples have their targets; leave targets out")
        numbers, names = as_targets(data.targets, data.labels if labels is None else labels)
        made = data if labels is None and mask is None else replace(data, targets=numbers, labels=names)
    else:
        found = _found(data, targets, collate, workers, labels)
        numbers, names = as_targets(found.targets, found.labels if labels is None else labels)
        inputs = found.inputs if isinstance(found.inputs, Tensor | Rows) else Columns(found.inputs)
        made = Examples(inputs, numbers, name, found.assumed, names)
    if names is not None and not numbers.is_floating_point():
        _check_labels(numbers, names)
    return made if mask is None else replace(made, targets=masked(made.targets, mask))


def _check_labels(numbers: Tensor, names: Sequence[str]) -> None:
    """Raise DataError for class numbers that no label belongs to."""
    odd = ((numbers >= len(names)) | ((numbers < 0) & (numbers != NOT_CODED))).flatten().nonzero()
    if len(odd):
        place = int(odd[0])
        raise DataError(
            f"target {int(numbers.flatten()[place])} (number {place}) is none of the {len(names)} labels; class numbers count "
            "from 0"
        )


def _found(data: Any, targets: Any, collate: Collate | None, workers: int | None, labels: Sequence[str] | None) -> _Found:
    """Look at the type of the data, and read them."""
    if isinstance(data, DataLoader):
        dataset, collate, workers, options = _of_loader(data, collate, workers)
        return _of_dataset(dataset, targets, collate, workers, labels, options)
    if _is_dataset(data, targets):
        return _of_dataset(data, targets, collate, workers or 0, labels, {})
    for what, given in (("collate", collate), ("workers", workers)):
        if given:
            raise DataError(
                f"{what} is for data sets whose items are read one by one, and data are {_kind(data)}; leave it out"
            )
    if is_frame(data):
        return _of_frames([data], targets)
    if isinstance(data, str | os.PathLike):
        return _of_file(Path(data).expanduser(), targets)
    if isinstance(data, Mapping):
        parts = {str(key): value for key, value in data.items()}
        if targets is None or isinstance(targets, str):
            chosen = target_name(parts, targets)
            targets = parts.pop(chosen)
        return _Found({key: _column(value, f"input '{key}'") for key, value in parts.items()}, _read(targets))
    if isinstance(data, tuple) and targets is None:
        if len(data) != 2:
            raise DataError(
                f"a tuple of {len(data)} needs to be told its targets: give source((x1, x2, ...), targets) for several inputs, "
                "mask= for a mask, or a pair (inputs, targets)"
            )
        return _found(data[0], data[1], None, None, labels)
    if isinstance(data, tuple):
        return _Found(tuple(_column(part, f"input {place}") for place, part in enumerate(data)), _read(targets))
    if isinstance(data, Tensor | np.ndarray | list) or hasattr(data, "to_numpy"):
        if targets is None:
            raise DataError(f"{_kind(data)} holds inputs alone; give source(inputs, targets)")
        return _Found(_column(data, "the inputs"), _read(targets))
    raise DataError(f"data are {_kind(data)}, which bitsback.data.source cannot read; give {TAKEN}")


def _kind(data: Any) -> str:
    return f"a {type(data).__module__.split('.')[0]}.{type(data).__name__}".replace("builtins.", "")


def _is_dataset(data: Any, targets: Any) -> bool:
    """Return whether data are items, one by one, of a data set, a list or an iterable."""
    if isinstance(data, list):
        return targets is None or isinstance(targets, str)
    if isinstance(data, tuple | Mapping | Tensor | np.ndarray | str | bytes | os.PathLike | Rows) or hasattr(data, "to_numpy"):
        return False
    return hasattr(data, "__iter__") or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))


def _of_dataset(
    dataset: Any,
    targets: Any,
    collate: Collate | None,
    workers: int,
    labels: Sequence[str] | None,
    options: Mapping[str, Any],
) -> _Found:
    if targets is not None and not isinstance(targets, str):
        raise DataError("the items of a data set hold their targets; leave targets out, or name them in items that are dicts")
    collate = None if collate is default_collate else collate
    if isinstance(dataset, TensorDataset) and collate is None and targets is None:
        *inputs, last = dataset.tensors
        if not inputs:
            raise DataError("the TensorDataset holds one tensor; give TensorDataset(inputs, targets)")
        return _Found(inputs[0] if len(inputs) == 1 else tuple(inputs), last)
    reader = Reader(dataset, collate, targets)
    is_iterable = isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))
    if is_iterable and workers and not isinstance(dataset, IterableDataset):
        raise DataError(
            "workers share a torch IterableDataset between them, and would each repeat this iterable; leave them out"
        )
    rows: Items | Stream = (Stream if is_iterable else Items)(reader, workers, options, labels)
    assumed = () if isinstance(rows, Stream) or rows.is_repeatable else (AUGMENTED,)
    return _Found(rows, rows.targets, rows.labels or _feature_names(dataset, targets), assumed)


def _feature_names(dataset: Any, targets: str | None) -> Sequence[str] | None:
    """Return the names of the classes that a data set of Hugging Face declares for its targets, or None."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    return getattr(features.get(target_name(features, targets)), "names", None)


def _of_loader(loader: "DataLoader[Any]", collate: Collate | None, workers: int | None) -> tuple[Any, Any, int, dict[str, Any]]:
    """Return data set, collate function, workers and further arguments of a loader, unless its batches mean something else."""
    dataset: Any = loader.dataset
    batches = loader.batch_sampler
    if loader.batch_size is None and batches is None:
        raise DataError(
            "the DataLoader has batch_size=None: its items are whole batches, in which examples have no numbers; give it a "
            "data set of examples and a batch_size"
        )
    if isinstance(dataset, IterableDataset):
        if loader.drop_last:
            raise DataError(
                "the DataLoader has drop_last=True, and would lose examples of an iterable data set; set it to False"
            )
    elif type(batches) is not BatchSampler:
        raise DataError(
            f"the DataLoader has a batch sampler of its own ({type(batches).__name__}), and bitsback draws the batches; give "
            "the data set itself, or a DataLoader with batch_size and shuffle"
        )
    else:
        dataset = _of_sampler(dataset, batches.sampler)
    options = {"worker_init_fn": loader.worker_init_fn, "multiprocessing_context": loader.multiprocessing_context}
    return dataset, collate or loader.collate_fn, loader.num_workers if workers is None else workers, options


def _of_sampler(dataset: Any, sampler: Any) -> Any:
    """Return the examples that a sampler goes through, each once; raises DataError for one that does not."""
    if type(sampler) is SequentialSampler and len(sampler) == len(dataset):
        return dataset
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(dataset):
        return dataset
    if type(sampler) is SubsetRandomSampler:
        return Subset(dataset, list(sampler.indices))
    kind = type(sampler).__name__
    reason = {
        "RandomSampler": "draws some examples several times or never, and each is coded once",
        "WeightedRandomSampler": "draws some examples several times or never, and each is coded once",
        "DistributedSampler": "shows each process a share of the examples, and all of them are coded",
    }.get(kind, "may leave out or repeat examples, and each is coded once")
    raise DataError(
        f"the DataLoader's sampler {kind} {reason}; give the data set itself (torch.utils.data.Subset of it for some examples)"
    )


def _of_frames(frames: Any, targets: Any) -> _Found:
    if targets is not None and not isinstance(targets, str):
        raise DataError("the targets of a table are one of its columns; give its name, or source(frame.to_numpy(), targets)")
    return _Found(*table(frames, targets))


def _column(given: Any, what: str) -> Tensor | MappedFile:
    """Return inputs that are an array, a list or a column as a tensor, and a mapped array as it is."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.memmap) and given.filename is not None:
        return MappedFile(given, Path(given.filename))
    try:
        array = given.to_numpy() if hasattr(given, "to_numpy") else np.asarray(given)
    except (ValueError, TypeError) as error:  # rows of unequal length
        raise DataError(
            f"{what} cannot be made an array ({brief(error)}); give every example one shape, or a DataLoader with a collate_fn "
            "that pads"
        ) from error
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise DataError(f"{what} are {array.dtype} of shape {array.shape}; give numbers, one or more for each example")
    tensor = tensor_of(array)
    return tensor.float() if tensor.is_floating_point() else tensor


def _read(targets: Any) -> Any:
    """Return targets that are in a file as an array, all others as they are."""
    if not isinstance(targets, str | os.PathLike):
        return targets
    path = Path(targets).expanduser()
    start = _start(path)
    if not start.startswith((b"\x93NUMPY", b"\0\0", b"\x1f\x8b")):
        raise DataError(f"cannot take targets from {path}: {describe(start)}; give an .npy or IDX file, or an array")
    return _array(path, start)[0]


def _start(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; of images in folders of classes, bitsback.data.ImagesSettings(path={str(path)!r}).load() "
            "makes a data set"
        )
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give the path of an existing file") from error


def _array(path: Path, start: bytes) -> tuple[Any, bool]:
    """Return the array of an NPY or IDX file, mapped if the file is plain, and whether it is IDX."""
    if not start.startswith(b"\x93NUMPY"):
        return read_idx(path, lean=True), True
    try:
        return read_npy(path, lean=True), False
    except REASONS as error:
        raise DataError(f"cannot read {path}: {brief(error)}; write it with numpy.save, without objects") from error


def _of_file(path: Path, targets: Any) -> _Found:
    start = _start(path)
    if start.startswith(b"PAR1"):
        return _of_frames(parquet_frames(path), targets)
    if start.startswith(b"PK"):
        return _of_archive(path, targets)
    if not start.startswith((b"\x93NUMPY", b"\0\0", b"\x1f\x8b")):
        fix = "source(pandas.read_csv(FILE))" if path.suffix == ".csv" else f"give {TAKEN}"
        raise DataError(f"cannot read {path}: {describe(start)}; {fix}")
    if targets is None:
        raise DataError(f"{path} holds inputs alone; give source(inputs, targets), such as the path of the file of targets")
    array, is_idx = _array(path, start)
    array = array[:, None] if is_idx and array.ndim == 3 else array  # images have a channel axis
    return _Found(_stored(array, path), _read(targets))


def _stored(array: np.ndarray, path: Path) -> Tensor | MappedFile:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path} holds {array.dtype}; give numbers")
    return MappedFile(array, path) if isinstance(array, np.memmap) else _column(array, str(path))


def _of_archive(path: Path, targets: Any) -> _Found:
    try:
        arrays = read_npz(path, lean=True)
    except REASONS as error:
        raise DataError(f"cannot read {path} as NPZ: {brief(error)}; write it with numpy.savez, without objects") from error
    known = ", ".join(sorted(arrays)) or "none"
    if "inputs" not in arrays:
        raise DataError(f"{path} has no array 'inputs'{near_miss('inputs', arrays)}; arrays there: {known}")
    if targets is None:
        targets = target_name([key for key in arrays if key in TARGET_NAMES] or arrays, None)
    if isinstance(targets, str) and targets in arrays:
        targets = arrays[targets]
    found = _Found(_stored(arrays["inputs"], path), _read(targets))
    if "mask" not in arrays:
        return found
    numbers, labels = as_targets(found.targets, None)
    return replace(found, targets=coded_targets(numbers, arrays, "mask", path), labels=labels)
