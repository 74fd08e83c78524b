"""Inputs that a prediction is asked for, of Python or in a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.data._arrays import REASONS, describe, read_npy, read_npz
from bitsback.data._dataset import Examples
from bitsback.data._images import is_images, read_images
from bitsback.data._npz import coded_targets
from bitsback.data._rows import Rows, View, stored
from bitsback.data._source import source
from bitsback.data._tables import is_frame
from bitsback.data._target_columns import TARGET_NAMES, as_targets
from bitsback.data.idx import read_idx
from bitsback.data.mask import NOT_CODED
from bitsback.data.settings import DataSettings, ImagesSettings, NpzSettings
from bitsback.errors import DataError, brief, near_miss
from bitsback.inputs import channels_first, grey, leaves

__all__ = ["as_stored", "images_given", "inputs_of", "read_given", "target_numbers", "without_targets"]

ARRAYS = (("inputs", "targets", "mask"), ("test_inputs", "test_targets", "test_mask"), ("images", "targets", "mask"))
"""Arrays of inputs in an NPZ file, those of their targets, and those of the masks of these."""
OTHER_SUFFIXES = (".csv", ".tsv", ".txt", ".h5", ".hdf5", ".pkl", ".pickle", ".pt")


def without_targets(data: Any) -> Any:
    """Return a dict without its targets, which are those of a usual name; all else as it is.

    >>> without_targets({"ids": [1, 2], "labels": [0, 1]})
    {'ids': [1, 2]}
    """
    if not isinstance(data, Mapping):
        return data
    return {str(name): value for name, value in data.items() if str(name) not in TARGET_NAMES}


def target_numbers(data: Any) -> Tensor:
    """Return targets that are an array or a list of numbers as a tensor.

    Raises:
        DataError: for anything else.

    >>> target_numbers([0, 2, 1])
    tensor([0, 2, 1])
    """
    found, texts = as_targets(data, None)
    if texts is not None:
        raise DataError("the targets are texts, and their bits are those of numbers; number them in the order of train.labels")
    return found


def inputs_of(data: Any) -> Examples:
    """Return examples of inputs, whose targets are those of the data, or zero.

    A tuple is several inputs, never a pair with targets. Of a dict, the parts named labels, label, targets, target or y are
    left out.

    Args:
        data: (n, ...): a tensor, an array, a list of numbers, or a tuple or dict of several; :class:`Examples` or their
            rows; or data sets, loaders, tables and files that :func:`source` takes with their targets.

    Returns:
        the examples.

    Raises:
        DataError: if the data cannot be read as inputs.

    >>> len(inputs_of(np.zeros((5, 2)))), len(inputs_of({"ids": np.zeros((5, 7)), "mask": np.ones((5, 7))}))
    (5, 5)
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, Rows):
        return Examples(data, torch.zeros(len(data)), "given")
    if is_frame(data) and not any(str(name) in TARGET_NAMES for name in data.columns):
        return source(data.assign(target=0), "target", name="given")
    data = without_targets(data)
    parts: list[Any] = leaves(data) if isinstance(data, dict | tuple) else [data]
    if not parts:
        raise DataError("the inputs are empty; give a tensor, or a tuple or dict with one or more")
    is_column = isinstance(data, Tensor | np.ndarray) and data.ndim > 0
    if not isinstance(data, dict | tuple) and not is_column and not (isinstance(data, list) and _are_numbers(data)):
        return source(data, name="given")
    try:
        count = len(parts[0])
    except TypeError as error:  # a number
        raise DataError("an input is a single number; give a row for each example") from error
    return source(data, torch.zeros(count), name="given")


def _are_numbers(data: Any) -> bool:
    while isinstance(data, list) and data:
        data = data[0]
    return isinstance(data, int | float)


def read_given(path: Path, data: DataSettings | None = None) -> tuple[Tensor | View, np.ndarray | None]:
    """Return inputs, and the targets that stand beside them in an ``.npz`` or ``.parquet`` file, as they are stored.

    Args:
        path: of the file.
        data: settings of the data, which may name the arrays otherwise.

    Returns:
        inputs (n, ...), and targets (n, ...) or None.

    Raises:
        DataError: if the file cannot be read, or holds no finite numbers.
    """
    path, targets = path.expanduser(), None
    if path.suffix == ".parquet":
        return as_stored(source(path))
    if path.suffix in (".npy", ".npz"):
        try:
            with path.open("rb") as file:
                start = file.read(2)
            is_archive = start == b"PK"
            array, targets = _choose(read_npz(path, lean=True), path, data) if is_archive else (read_npy(path, lean=True), None)
        except REASONS as error:
            raise DataError(f"cannot read {path}: {brief(error)}; give an .npy, .npz or IDX file of inputs") from error
    elif path.suffix in OTHER_SUFFIXES:
        raise DataError(f"cannot read {path}: {_describe(path)}; write the inputs with numpy.save('inputs.npy', x)")
    else:
        array = read_idx(path, lean=True)
        array = array[:, None] if array.ndim == 3 else array  # images have a channel axis
    if isinstance(data, NpzSettings) and data.channels == "last":
        array = channels_first(array, str(path))
    if array.dtype.kind not in "biuf" or array.ndim == 0 or len(array) == 0:
        raise DataError(f"{path} holds no inputs (an array of type {array.dtype}, shape {array.shape}); numbers are needed")
    inputs = stored(array, path, keeps_whole=True)
    for part in [inputs] if isinstance(inputs, Tensor) else inputs.split(inputs.at_once()) if array.dtype.kind == "f" else ():
        if isinstance(part, Tensor) and not bool(torch.isfinite(part).all()):
            raise DataError(f"an input in {path} is NaN or infinite; clean the data first")
    return inputs, targets


def images_given(path: Path, data: DataSettings) -> tuple[Tensor | View, list[str], np.ndarray | None] | None:
    """Return the images of a folder, a ZIP file or an image file, as they are stored.

    Args:
        path: of them.
        data: settings of the data; those of images say how these are cropped and converted.

    Returns:
        inputs (n, channels, height, width), the names of their files, and those of their folders, (n,), or None if an image is
        in none; None in place of all for another kind of file.

    Raises:
        DataError: if an image cannot be read, or differs from the others.
    """
    path = path.expanduser()
    if not is_images(path):
        return None
    settings = data if isinstance(data, ImagesSettings) else ImagesSettings(path=path)
    images, names, folders = read_images(path, settings)
    return stored(images, path), names, None if folders is None else np.array(folders)


def as_stored(examples: Examples) -> tuple[Any, np.ndarray]:
    """Return inputs of examples as they are stored, 8-bit ones from 0 to 255, and targets, as texts if they have labels."""
    inputs, numbers = examples.inputs, examples.targets.cpu().numpy()
    if isinstance(inputs, View) and isinstance(inputs.first, Tensor):
        inputs = inputs.without(grey)
    return inputs, numbers if examples.labels is None else np.array(examples.labels)[numbers]


def _describe(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return describe(file.read(64))
    except OSError as error:
        return error.strerror or str(error)


def _choose(arrays: dict[str, np.ndarray], path: Path, data: DataSettings | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the inputs among the arrays of a file, and the targets beside them."""
    own: tuple[tuple[str, str, str], ...] = ()
    if isinstance(data, NpzSettings):
        own = ((data.inputs, data.targets, data.mask), (data.test_inputs, data.test_targets, data.test_mask))
    for name, answers, mask in (*own, *ARRAYS):
        if name in arrays:
            return arrays[name], _beside(arrays, answers, mask, path)
    wanted = own[0][0] if own else "inputs"
    known = brief(", ".join(sorted(arrays))) or "none"
    raise DataError(f"{path} has no array '{wanted}'{near_miss(wanted, arrays)}; arrays there: {known}")


def _beside(arrays: dict[str, np.ndarray], name: str, mask: str, path: Path) -> np.ndarray | None:
    """Return targets of a file as training takes them; those that its mask leaves out are -100, or empty texts."""
    if name not in arrays:
        return None
    values = arrays[name]
    if values.dtype.kind not in "USbiuf":
        raise DataError(f"array '{name}' in {path} has type {values.dtype}; give numbers or texts")
    if values.dtype.kind not in "US":
        numbers = torch.from_numpy(values.astype(np.float64 if values.dtype.kind == "f" else np.int64))
        return coded_targets(numbers, arrays, mask, path).numpy()
    coded = coded_targets(torch.zeros(values.shape, dtype=torch.int64), arrays, mask, path)
    empty = values.dtype.type()
    return np.where(coded.numpy() == NOT_CODED, empty, values.reshape(coded.shape))
