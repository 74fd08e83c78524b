"""Targets of a source: which part of an item they are, and text labels as class numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.data._rows import tensor_of
from bitsback.data.mask import NOT_CODED
from bitsback.errors import DataError, brief, near_miss

__all__ = ["TARGET_NAMES", "as_targets", "class_numbers", "parted", "target_name"]

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Names under which targets are looked for in dicts and tables."""

MOST_NAMED = 5
"""Most labels that a message lists."""


def target_name(names: Iterable[Any], wanted: str | None) -> str:
    """Return the name of the targets among others.

    Args:
        names: of the parts of an item, or of the columns of a table.
        wanted: the name that was given, or None.

    Returns:
        one of the names.

    Raises:
        DataError: if it is not there, or several may be meant.

    >>> target_name(["ids", "label"], None)
    'label'
    """
    known = [str(name) for name in names]
    if wanted is not None:
        if wanted not in known:
            raise DataError(
                f"there is no '{wanted}' to take as targets{near_miss(wanted, known)}; there are: {', '.join(known)}"
            )
        return wanted
    found = [name for name in TARGET_NAMES if name in known]
    if len(found) != 1:
        said = (
            f"{' and '.join(found)} may each be the targets"
            if found
            else f"none of {', '.join(known)} is called as targets are"
        )
        raise DataError(f"{said}; name them: source(data, targets='...')")
    return found[0]


def parted(item: Any, wanted: str | None) -> tuple[Any, Any]:
    """Split an item, or a batch, into inputs and targets.

    Args:
        item: a tuple or list, whose last element is the target, or a dict that holds the target by name.
        wanted: that name; None: a usual one.

    Returns:
        the inputs, and the target.

    Raises:
        DataError: if there is no target, or nothing besides it.

    >>> parted((1.0, 2.0, 3), None)
    ((1.0, 2.0), 3)
    """
    if isinstance(item, Mapping) and len(item) > 1:
        name = target_name(item, wanted)
        return {str(key): value for key, value in item.items() if str(key) != name}, item[name]
    if isinstance(item, tuple | list) and len(item) > 1:
        if wanted is not None:
            raise DataError(f"targets='{wanted}' names a part of dicts, and the items are {type(item).__name__}s; leave it out")
        *before, target = item
        return before[0] if len(before) == 1 else tuple(before), target
    raise DataError(
        f"an item of the data set ({type(item).__name__}) has no target beside its inputs; items are tuples (inputs, target), "
        f"or dicts with the target under {', '.join(TARGET_NAMES[:-1])} or {TARGET_NAMES[-1]}"
    )


def class_numbers(texts: Sequence[str], labels: Sequence[Any] | None, first: int = 0) -> tuple[Tensor, tuple[str, ...]]:
    """Replace text labels by class numbers.

    Args:
        texts: (n,), one for each example.
        labels: of the classes, in order; None: the distinct texts, sorted.
        first: number of the first example, for the message.

    Returns:
        (n,), class numbers, and the labels.

    Raises:
        DataError: for a text that is not among the labels.

    >>> class_numbers(["dog", "cat", "dog"], None)
    (tensor([1, 0, 1]), ('cat', 'dog'))
    """
    names = tuple(sorted(set(texts))) if labels is None else tuple(map(str, labels))
    index_of = {name: number for number, name in enumerate(names)}
    unknown = next((number for number, text in enumerate(texts) if text not in index_of), None)
    if unknown is not None:
        listed = ", ".join(map(repr, names[:MOST_NAMED])) + (", ..." if len(names) > MOST_NAMED else "")
        raise DataError(
            f"the label of example {first + unknown}, {brief(texts[unknown])!r}, is none of the labels of the training "
            f"examples ({listed}); leave such examples out, or give labels= with all of them to both splits"
        )
    return torch.tensor([index_of[text] for text in texts], dtype=torch.long), names


def as_targets(given: Any, labels: Sequence[Any] | None) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return targets as a tensor.

    Args:
        given: a tensor, an array, or a list or column of numbers or texts.
        labels: of the classes, in order; None: the distinct texts, sorted.

    Returns:
        (n, ...), real numbers as they are, whole numbers as int64, or int32 if they are several for each example; and the
        labels of texts, or ``labels``.

    Raises:
        DataError: for anything but numbers and texts, and lists of unequal length.
    """
    kept = None if labels is None else tuple(map(str, labels))
    if isinstance(given, Tensor):
        return _narrowed(given), kept
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of unequal length
        raise DataError(f"the targets have unequal lengths ({brief(error)}); pad whole numbers with {NOT_CODED}") from error
    kind = array.dtype.kind
    if kind == "U" or (kind in "OT" and array.ndim == 1 and all(isinstance(text, str) for text in array.tolist())):
        if array.ndim != 1:
            raise DataError(f"text labels have shape {array.shape}, and are one for each example; number them yourself")
        return class_numbers([str(text) for text in array.tolist()], labels)
    if kind not in "biuf" or array.ndim == 0:
        raise DataError(f"the targets are {array.dtype} of shape {array.shape}; give numbers or texts, one or more per example")
    return _narrowed(tensor_of(array)), kept


def _narrowed(targets: Tensor) -> Tensor:
    """Keep whole numbers, several for each example, as int32 if they fit; one for each is int64."""
    if targets.is_floating_point():
        return targets
    fits = targets.ndim > 1 and targets.numel() > 0 and int(targets.min()) >= -(2**31) and int(targets.max()) < 2**31
    return targets.to(torch.int32 if fits else torch.int64)
