"""Inputs that a prediction is asked for, without targets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.data._dataset import Examples
from bitsback.data._rows import Rows
from bitsback.data._source import source
from bitsback.data._tables import is_frame
from bitsback.data._target_columns import TARGET_NAMES, as_targets
from bitsback.errors import DataError

__all__ = ["inputs_of", "target_numbers", "without_targets"]


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
    parts = list(data.values()) if isinstance(data, dict) else list(data) if isinstance(data, tuple) else [data]
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
