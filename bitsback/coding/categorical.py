"""Codec of class labels under integer logits, for likelihoods with discrete targets."""

from functools import cache

import numpy as np

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.combinators import Codec
from bitsback.coding.elementary import exp

__all__ = ["FRACTION_BITS", "FURTHEST", "LABEL_TOTAL_BITS", "code_bits", "frequencies", "labels"]

FRACTION_BITS = 12
"""Logits are whole multiples of 2^-12 nats."""

LABEL_TOTAL_BITS = 24
FURTHEST = 24 << FRACTION_BITS
"""Logits more than 24 nats below the largest count as 24 below."""


@cache
def _exponentials() -> Integers:
    """Return round(2^32 exp(-d / 4096)) for d = 0 .. FURTHEST."""
    d = np.arange(FURTHEST + 1) / (1 << FRACTION_BITS)
    return np.floor(exp(-d) * 2.0**32 + 0.5).astype(np.int64)


def frequencies(logits: Integers) -> Integers:
    """Return integer frequencies, each at least one, whose sum over the classes is 2^24.

    Args:
        logits: in units of 2^-12 nats, (n, classes).

    Returns:
        Frequencies, (n, classes).

    >>> frequencies(np.array([[0, 0], [40960, 0]])).tolist()
    [[8388608, 8388608], [16776454, 762]]
    """
    classes = logits.shape[1]
    top = logits.max(axis=1, keepdims=True)
    share = _exponentials()[np.minimum(top - logits, FURTHEST)]
    spread = (1 << LABEL_TOTAL_BITS) - classes
    counts = 1 + share * spread // share.sum(axis=1, keepdims=True)
    # what the floors leave over goes to the first of the largest logits, where it changes the probabilities least
    counts[np.arange(len(counts)), logits.argmax(axis=1)] += (1 << LABEL_TOTAL_BITS) - counts.sum(axis=1)
    return counts


def labels(logits: Integers) -> Codec:
    """Return the codec of one label per row of ``logits`` (n, classes, in 2^-12 nats), each from 0 to ``classes - 1``."""
    counts = frequencies(logits)
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
    counts = frequencies(outputs)
    return float(LABEL_TOTAL_BITS * len(target) - np.log2(counts[np.arange(len(target)), target]).sum())
