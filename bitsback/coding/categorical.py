"""Codec of class labels under integer logits, for likelihoods with discrete targets."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.combinators import Codec, in_pieces
from bitsback.coding.elementary import exp

__all__ = ["FRACTION_BITS", "FURTHEST", "LABEL_TOTAL_BITS", "PIECE", "code_bits", "frequencies", "labels", "symbols"]

FRACTION_BITS = 12
"""Logits are whole multiples of 2^-12 nats."""

LABEL_TOTAL_BITS = 24
FURTHEST = 24 << FRACTION_BITS
"""Logits more than 24 nats below the largest count as 24 below."""

PIECE = 1 << 20
"""Frequencies that are held at once, unless one row of lanes needs more."""


@cache
def _exponentials() -> Integers:
    """Return round(2^32 exp(-d / 4096)) for d = 0 .. FURTHEST."""
    d = np.arange(FURTHEST + 1) / (1 << FRACTION_BITS)
    return np.floor(exp(-d) * 2.0**32 + 0.5).astype(np.int64)


def frequencies(logits: Integers, present: NDArray[np.bool_] | None = None) -> Integers:
    """Return integer frequencies, each at least one, whose sum over the classes is 2^24.

    Args:
        logits: in units of 2^-12 nats, (n, classes).
        present: classes that each row has, (n, classes), where rows have different numbers of them; the others, whose logits
            are 24 nats or more below the largest, get the frequency 0. Default: all.

    Returns:
        Frequencies, (n, classes).

    >>> frequencies(np.array([[0, 0], [40960, 0]])).tolist()
    [[8388608, 8388608], [16776454, 762]]
    """
    least = 1 if present is None else present.astype(np.int64)
    classes = logits.shape[1] if present is None else present.sum(axis=1, keepdims=True)
    top = logits.max(axis=1, keepdims=True)
    share = _exponentials()[np.minimum(top - logits, FURTHEST)]
    spread = (1 << LABEL_TOTAL_BITS) - classes
    counts: Integers = least + share * spread // share.sum(axis=1, keepdims=True)
    # what the floors leave over goes to the first of the largest logits, where it changes the probabilities least
    counts[np.arange(len(counts)), logits.argmax(axis=1)] += (1 << LABEL_TOTAL_BITS) - counts.sum(axis=1)
    return counts


def labels(logits: Integers) -> Codec:
    """Return the codec of one label per row of ``logits`` (n, classes, in 2^-12 nats), each from 0 to ``classes - 1``."""
    return in_pieces(len(logits), PIECE // logits.shape[1], lambda part: symbols(frequencies(logits[part])))


def symbols(counts: Integers) -> Codec:
    """Return the codec of one symbol per row of integer frequencies (n, symbols), whose sums are 2^24."""
    edges = np.concatenate([np.zeros((len(counts), 1), dtype=np.int64), counts.cumsum(axis=1)], axis=1)

    def push(stack: Stack, label: Integers) -> None:
        row = np.arange(len(label))
        stack.push(edges[row, label], counts[row, label], LABEL_TOTAL_BITS)

    def find(slot: Integers, part: slice) -> tuple[Integers, Integers, Integers]:
        label = (edges[part, 1:] <= slot[:, None]).sum(axis=1)
        row = np.arange(len(slot))
        return label, edges[part][row, label], counts[part][row, label]

    return Codec(push, lambda stack: stack.pop(len(counts), LABEL_TOTAL_BITS, find))


def code_bits(outputs: Integers, target: Integers) -> float:
    """Return the exact code length of labels under integer logits.

    Args:
        outputs: logits in units of 2^-12 nats, (n, classes).
        target: labels, (n,).

    Returns:
        Bits, all labels together.
    """
    size = max(1, PIECE // outputs.shape[1])
    parts = [slice(start, start + size) for start in range(0, len(target), size)]
    each = [np.take_along_axis(frequencies(outputs[part]), target[part, None], axis=1)[:, 0] for part in parts]
    return float(LABEL_TOTAL_BITS * len(target) - np.log2(np.concatenate([np.ones(0), *each])).sum())
