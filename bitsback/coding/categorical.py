"""Targets under the network's outputs, in whole numbers: a codec for every likelihood whose targets are discrete."""

from functools import cache

import numpy as np

from bitsback.coding.ans import Integers, Stack
from bitsback.coding.combinators import Codec
from bitsback.coding.elementary import exp

__all__ = ["FRACTION_BITS", "FURTHEST", "LABEL_TOTAL_BITS", "code_bits", "frequencies", "labels"]

FRACTION_BITS = 12


LABEL_TOTAL_BITS = 24
FURTHEST = 24 << FRACTION_BITS
"""Logits more than 24 nats below the largest count as 24 below."""


@cache
def _exponentials() -> Integers:
    """round(2^32 exp(-d / 4096)) for d = 0 .. FURTHEST."""
    d = np.arange(FURTHEST + 1) / (1 << FRACTION_BITS)
    return np.floor(exp(-d) * 2.0**32 + 0.5).astype(np.int64)


def frequencies(logits: Integers) -> Integers:
    """Frequencies (n, classes) of total 2^24 and at least one, from logits in units of 2^-12 nats.

    >>> frequencies(np.array([[0, 0], [40960, 0]])).tolist()
    [[8388608, 8388608], [16776454, 762]]
    """
    classes = logits.shape[1]
    top = logits.max(axis=1, keepdims=True)
    share = _exponentials()[np.minimum(top - logits, FURTHEST)]
    spread = (1 << LABEL_TOTAL_BITS) - classes
    counts = 1 + share * spread // share.sum(axis=1, keepdims=True)
    counts[np.arange(len(counts)), logits.argmax(axis=1)] += (1 << LABEL_TOTAL_BITS) - counts.sum(axis=1)
    return counts


def labels(logits: Integers) -> Codec:
    """One label per row of ``logits`` (n, classes), each below ``classes``."""
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
    """Exact bits of the labels ``target`` (n,) under the integer code of ``outputs`` (n, classes)."""
    counts = frequencies(outputs)
    return float(LABEL_TOTAL_BITS * len(target) - np.log2(counts[np.arange(len(target)), target]).sum())
