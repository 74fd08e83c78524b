"""Codecs are pairs: push a value onto a stack, pop it back. Everything else is a combination of pairs.

Whatever ``push`` does to a stack, ``pop`` undoes exactly, and the other way round. That second half is bits-back: popping from
a codec *draws* a value from its model, and pushing the value returns the bits that chose it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitsback.coding.ans import Integers, Stack

__all__ = ["Codec", "bits_back", "categorical", "dependent", "metered", "raw_bits", "sequence", "substack"]


@dataclass(frozen=True)
class Codec:
    """``push(stack, value)`` and ``pop(stack) -> value``."""

    push: Callable[[Stack, Any], None]
    pop: Callable[[Stack], Any]


def raw_bits(bits: Integers) -> Codec:
    """Whole numbers below 2^bits, one for each entry of ``bits``, as they are.

    >>> stack = Stack.empty()
    >>> raw_bits(np.array([3, 40])).push(stack, np.array([5, 12345678901]))
    >>> raw_bits(np.array([3, 40])).pop(stack).tolist(), stack.bits
    ([5, 12345678901], 0.0)
    """
    return Codec(lambda stack, value: stack.push_raw(value, bits), lambda stack: stack.pop_raw(bits))


def categorical(cumulative: Integers, total_bits: int, count: int) -> Codec:
    """``count`` symbols under one table of cumulative frequencies, which runs from 0 to 2^total_bits.

    >>> stack = Stack.empty(lanes=2)
    >>> codec = categorical(np.array([0, 1, 4]), 2, count=3)
    >>> codec.push(stack, np.array([1, 0, 1]))
    >>> round(stack.bits, 2), codec.pop(stack).tolist()
    (2.83, [1, 0, 1])
    """
    frequency = np.diff(cumulative)

    def push(stack: Stack, symbols: Integers) -> None:
        stack.push(cumulative[symbols], frequency[symbols], total_bits)

    def find(slot: Integers, _: slice) -> tuple[Integers, Integers, Integers]:
        symbol = np.searchsorted(cumulative, slot, side="right") - 1
        return symbol, cumulative[symbol], frequency[symbol]

    return Codec(push, lambda stack: stack.pop(count, total_bits, find))


def sequence(codecs: Sequence[Codec]) -> Codec:
    """A list of values, each with its codec; popped in the same order as they stand.

    >>> stack = Stack.empty()
    >>> pair = sequence([raw_bits(np.array([4])), categorical(np.array([0, 3, 4]), 2, count=1)])
    >>> pair.push(stack, [np.array([9]), np.array([0])])
    >>> [value.tolist() for value in pair.pop(stack)]
    [[9], [0]]
    """

    def push(stack: Stack, values: Sequence[Any]) -> None:
        for codec, value in zip(reversed(codecs), reversed(values), strict=True):
            codec.push(stack, value)

    return Codec(push, lambda stack: [codec.pop(stack) for codec in codecs])


def dependent(first: Codec, second: Callable[[Any], Codec]) -> Codec:
    """A pair of values, the second under a model that knows the first: p(a) p(b | a)."""

    def push(stack: Stack, pair: tuple[Any, Any]) -> None:
        second(pair[0]).push(stack, pair[1])
        first.push(stack, pair[0])

    def pop(stack: Stack) -> tuple[Any, Any]:
        one = first.pop(stack)
        return one, second(one).pop(stack)

    return Codec(push, pop)


def substack(codec: Codec, lanes: int) -> Codec:
    """``codec`` on the first ``lanes`` lanes only, which share the words with the others."""
    return Codec(
        lambda stack, value: codec.push(stack.part(lanes), value),
        lambda stack: codec.pop(stack.part(lanes)),
    )


def metered(codec: Codec, meters: dict[str, float], name: str) -> Codec:
    """``codec``, adding the bits by which the stack grows (or shrinks) to ``meters[name]``."""

    def push(stack: Stack, value: Any) -> None:
        before = stack.bits
        codec.push(stack, value)
        meters[name] = meters.get(name, 0.0) + stack.bits - before

    def pop(stack: Stack) -> Any:
        before = stack.bits
        value = codec.pop(stack)
        meters[name] = meters.get(name, 0.0) + stack.bits - before
        return value

    return Codec(push, pop)


def bits_back(prior: Codec, likelihood: Callable[[Any], Codec], posterior: Callable[[Any], Codec]) -> Codec:
    """Data x with a latent w: net cost -log2 p(w) - log2 p(x | w) + log2 q(w | x) (Hinton & van Camp 1993, section 3).

    Args:
        prior: codec of w under p(w).
        likelihood: from w to the codec of x under p(x | w).
        posterior: from x to the codec of w under q(w | x), which the receiver can re-derive once it has x.

    >>> fair, loaded = (categorical(np.array([0, k, 4]), 2, count=1) for k in (2, 1))
    >>> codec = bits_back(fair, lambda w: loaded, lambda x: fair)  # q = p: w is free
    >>> stack = Stack(words=np.arange(4, dtype=np.uint32))
    >>> before = stack.bits
    >>> codec.push(stack, np.array([0]))
    >>> round(stack.bits - before, 3)
    2.0
    """

    def push(stack: Stack, x: Any) -> None:
        w = posterior(x).pop(stack)
        likelihood(w).push(stack, x)
        prior.push(stack, w)

    def pop(stack: Stack) -> Any:
        w = prior.pop(stack)
        x = likelihood(w).pop(stack)
        posterior(x).push(stack, w)
        return x

    return Codec(push, pop)
