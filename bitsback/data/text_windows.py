"""Text files: windows of consecutive tokens, of which each is predicted from those before it in its window::

    text        T h e   q u i c k   b r o w n            context: 5

    inputs      0 T h e .    0 u i c k    0 b r o w     the token before each target, 0 before the first of a window
    targets     T h e . q    u i c k .    b r o w n     every token once, in order; -100 behind the last one

No window needs another one, so that a receiver decodes all of them side by side.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitsback import limits
from bitsback.coding.ans import Integers
from bitsback.data._dataset import Dataset, Examples
from bitsback.data.mask import NOT_CODED
from bitsback.errors import DataError

if TYPE_CHECKING:
    from bitsback.data.settings import TextSettings

__all__ = ["are_labels", "load_text", "text_bytes", "text_given", "windows"]

TEXT_NOTE = "how many tokens the text has, and which ones occur"
"""Note of a ledger."""

ITEM_BYTES = 16
"""Bytes of a token in memory: its number as an input and as a target."""


def load_text(settings: "TextSettings") -> Dataset:
    """Load a text as a data set of windows.

    Args:
        settings: path, tokens and length of the windows.

    Returns:
        the data set; the windows of the test split are the last ones.

    Raises:
        DataError: if the file cannot be read, is empty, is not the text that the settings call it, or has a single token.
    """
    path = settings.path.expanduser()
    tokens, labels = _tokens(settings, path, _content(path))
    if len(labels) < 2:
        raise DataError(f"{path} repeats the one token {labels[0]!r}: there is nothing to describe; give another text")
    inputs, targets = windows(tokens, settings.context)
    test_count = int(settings.test_fraction * len(targets))
    if settings.test_fraction and not 0 < test_count < len(targets):
        raise DataError(
            f"data.test_fraction={settings.test_fraction:g} of {len(targets)} windows leaves a split empty; use a smaller "
            "data.context, or data.test_fraction=0"
        )
    cut = len(targets) - test_count
    train = Examples(inputs[:cut], targets[:cut])
    test = Examples(inputs[cut:], targets[cut:], "test") if test_count else None
    dataset = settings.model_copy(update={"scaling": "none"}).finish(path.name, train, test, texts=labels)
    return replace(dataset, train=replace(dataset.train, assumed=(TEXT_NOTE,)))


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give a text file as data.path") from error
    if not content:
        raise DataError(f"{path} is empty; give a text of two characters or more")
    limits.MEMORY.check(ITEM_BYTES * len(content), str(path), DataError, "give a part of the text")
    return content


def _tokens(settings: "TextSettings", path: Path, content: bytes) -> tuple[Integers, tuple[str, ...]]:
    """Return the numbers of the tokens (n,) and their texts, in order."""
    if settings.tokens == "bytes":
        values = np.frombuffer(content, dtype=np.uint8).astype(np.int64)
        found, numbers = np.unique(values, return_inverse=True)
        return numbers.astype(np.int64), tuple(f"{value:02x}" for value in found)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start:,} is 0x{content[error.start]:02x}; convert it "
            "(iconv -t utf-8), or set data.tokens=bytes, which takes any file"
        ) from error
    values = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)
    found, numbers = np.unique(values, return_inverse=True)
    limits.LABELS.check(len(found), f"{path}, by its distinct characters,", DataError, "set data.tokens=bytes")
    return numbers.astype(np.int64), tuple(map(chr, found.tolist()))


def text_given(path: Path, settings: "TextSettings", labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the windows of another text, for a network that knows these tokens.

    Args:
        path: of a text file.
        settings: of the text that the network was trained on.
        labels: texts of its tokens, in order.

    Returns:
        inputs and targets, as :func:`windows` returns them.

    Raises:
        DataError: if the file cannot be read, or has other tokens.
    """
    numbers, own = _tokens(settings, path, _content(path))
    place = {label: number for number, label in enumerate(labels)}
    other = next((label for label in own if label not in place), None)
    if other is not None:
        raise DataError(
            f"{path} has the token {other!r}, which the text that the network was trained on has not; give a text without it"
        )
    return windows(np.array([place[label] for label in own])[numbers], settings.context)


def text_bytes(numbers: Integers, labels: Sequence[str], tokens: str) -> bytes:
    """Return the file whose tokens have these numbers.

    Args:
        numbers: of the tokens, (n,).
        labels: texts of the tokens, as the data set has them.
        tokens: ``bytes`` or ``characters``.

    Returns:
        content of the file.

    >>> text_bytes(np.array([1, 0, 1]), ("61", "62"), "bytes")
    b'bab'
    """
    if tokens == "bytes":
        return np.frombuffer(bytes.fromhex("".join(labels)), dtype=np.uint8)[numbers].tobytes()
    return "".join([labels[number] for number in numbers.tolist()]).encode("utf-8")  # an array of texts would drop NUL


def are_labels(labels: Any, tokens: str) -> bool:
    """Return whether labels that a file states are the texts of tokens: a byte in hexadecimal digits each, or a character.

    Args:
        labels: any value.
        tokens: any text.

    Returns:
        whether :func:`text_bytes` takes them.

    >>> are_labels(("0a", "61"), "bytes"), are_labels(("0a", "61"), "characters"), are_labels(None, "bytes")
    (True, False, False)
    """
    if not isinstance(labels, tuple | list) or not labels or not all(isinstance(label, str) for label in labels):
        return False
    if tokens == "characters":
        return all(len(label) == 1 and not "\ud800" <= label <= "\udfff" for label in labels)
    return tokens == "bytes" and all(len(label) == 2 and set(label) <= set("0123456789abcdef") for label in labels)


def windows(tokens: Integers, context: int) -> tuple[Tensor, Tensor]:
    """Cut tokens into windows.

    Args:
        tokens: numbers (n,).
        context: tokens of a window.

    Returns:
        inputs (windows, context), the token before each target and 0 before the first of a window, int64; and targets
        (windows, context), int64, -100 behind the last token.

    >>> inputs, targets = windows(np.array([4, 5, 6]), 2)
    >>> inputs.tolist(), targets.tolist()
    ([[0, 4], [0, 6]], [[4, 5], [6, -100]])
    """
    shape = (-(-len(tokens) // context), context)
    inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, NOT_CODED, dtype=np.int64)
    targets.ravel()[: len(tokens)] = tokens
    inputs[:, 1:] = np.maximum(targets[:, :-1], 0)
    return torch.from_numpy(inputs), torch.from_numpy(targets)
