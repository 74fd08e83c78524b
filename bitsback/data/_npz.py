"""NPZ data: named numpy arrays in one file."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitsback.data._arrays import REASONS, describe, read_npz
from bitsback.data._dataset import Dataset, Examples, split
from bitsback.data._rows import View, stored
from bitsback.data.mask import MASK_NOTE, masked
from bitsback.errors import DataError, brief, near_miss
from bitsback.inputs import channels_first

if TYPE_CHECKING:
    from bitsback.data.settings import NpzSettings

__all__ = ["coded_targets", "load_npz"]


def load_npz(settings: "NpzSettings", *, inputs_only: bool) -> Dataset:
    """Load the arrays as a data set.

    Args:
        settings: path and names of the arrays.
        inputs_only: replace missing targets, and all those beside a mask, by zeros.

    Returns:
        the data set, split and preprocessed.
    """
    arrays = _arrays(settings)
    splits = (
        (settings.targets, settings.inputs, settings.mask),
        (settings.test_targets, settings.test_inputs, settings.test_mask),
    )
    for answers, given, mask in splits if inputs_only else ():
        if given in arrays and (answers not in arrays or mask in arrays):
            arrays[answers] = np.zeros(np.shape(arrays.get(mask, np.zeros(len(arrays[given])))), dtype=np.int64)
    texts = _name_texts(settings, arrays)
    inputs, targets = _inputs(settings, arrays, settings.inputs), _targets(settings, arrays, settings.targets)
    _check_lengths(inputs, targets, settings.path)
    test: Examples | None
    if settings.test_inputs in arrays or settings.test_targets in arrays:
        train = Examples(inputs, targets)
        others = _targets(settings, arrays, settings.test_targets)
        test = Examples(_inputs(settings, arrays, settings.test_inputs), others, "test")
    else:
        train, test = split(inputs, targets, settings.test_fraction, settings.split_seed)
    grey = arrays[settings.inputs].dtype == np.uint8
    dataset = settings.finish(
        settings.path.stem, train, test, largest=255.0 if grey else 1.0, are_images=grey and inputs.ndim > 2, texts=texts
    )
    if settings.mask not in arrays:
        return dataset
    return replace(dataset, train=replace(dataset.train, assumed=(*dataset.train.assumed, MASK_NOTE)))


def _name_texts(settings: "NpzSettings", arrays: dict[str, np.ndarray]) -> list[str] | None:
    """Replace text labels in the arrays of targets by indices into their sorted list, and return that list."""
    named = {name: arrays[name] for name in (settings.targets, settings.test_targets) if name in arrays}
    are_texts = {array.dtype.kind in "US" for array in named.values()}
    if are_texts == {True, False}:
        raise DataError(
            f"array '{settings.targets}' and array '{settings.test_targets}' in {settings.path} differ: one holds "
            "texts and the other numbers; write both alike"
        )
    if True not in are_texts:
        return None
    try:
        plain = {name: np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a.astype(str) for name, a in named.items()}
    except UnicodeDecodeError as error:
        raise DataError(f"the labels in {settings.path} are bytes that are not UTF-8 text; write them as texts") from error
    texts = np.unique(np.concatenate([array.ravel() for array in plain.values()]))
    arrays |= {name: np.searchsorted(texts, array) for name, array in plain.items()}
    return [str(text) for text in texts]


def _arrays(settings: "NpzSettings") -> dict[str, np.ndarray]:
    try:
        with settings.path.open("rb") as file:
            start = file.read(64)
        if not start.startswith(b"PK"):
            fix = "write it with numpy.savez('data.npz', inputs=x, targets=y)"
            raise DataError(f"cannot read {settings.path} as NPZ: {describe(start)}; {fix}")
        return read_npz(settings.path, lean=True)
    except REASONS as error:
        raise DataError(
            f"cannot read {settings.path} as NPZ: {brief(error)}; write it with numpy.savez, without objects"
        ) from error


def _array(settings: "NpzSettings", arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        known = brief(", ".join(sorted(arrays))) or "none"
        raise DataError(f"{settings.path} has no array '{name}'{near_miss(name, arrays)}; arrays there: {known}")
    array = arrays[name]
    if array.dtype.kind not in "biuf":
        raise DataError(f"array '{name}' in {settings.path} has type {array.dtype}; numbers are needed")
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"array '{name}' in {settings.path} is empty; give at least one example")
    return array


def _inputs(settings: "NpzSettings", arrays: dict[str, np.ndarray], name: str) -> Tensor | View:
    array = _array(settings, arrays, name)
    array = array[:, None] if array.ndim == 1 else array  # one number per example
    if settings.channels == "last":
        array = channels_first(array, f"array '{name}' in {settings.path}")
    return stored(array, settings.path, keeps_whole=array.dtype not in (np.uint8, np.bool_))


def _targets(settings: "NpzSettings", arrays: dict[str, np.ndarray], name: str) -> Tensor:
    array = _array(settings, arrays, name)
    is_double = array.dtype.kind == "f" and array.dtype.itemsize == 8
    real = np.float64 if is_double else np.float32  # they keep their digits, from which their resolution is found
    targets = torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "biu" else real))
    mask = settings.mask if name == settings.targets else settings.test_mask
    return coded_targets(targets, arrays, mask, settings.path)


def coded_targets(targets: Tensor, arrays: dict[str, np.ndarray], mask: str, path: Path) -> Tensor:
    """Return targets as training takes them: -100 where a mask leaves them out, and a single column as (n,).

    Args:
        targets: (n, ...).
        arrays: of the file, by name.
        mask: name of the array of the mask, which need not be there.
        path: of the file, for messages.

    Returns:
        (n,) or (n, ...).
    """
    if mask in arrays:
        targets = masked(targets, arrays[mask], f"array '{mask}' in {path}, the mask of the targets,")
    return targets.flatten() if targets.ndim == 2 and targets.shape[1] == 1 else targets


def _check_lengths(inputs: Tensor | View, targets: Tensor, path: Path) -> None:
    if len(inputs) != len(targets):
        raise DataError(f"{path} has {len(inputs)} inputs but {len(targets)} targets; give as many of each")
