"""Codecs, pairs of a push and a pop, and functions that combine codecs into others.

``pop`` undoes ``push`` exactly, and ``push`` undoes ``pop``. The second property makes bits-back coding possible: popping from
a codec *draws* a value from its model with bits of the stack, and pushing the value later returns these bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitsback.coding.ans import Integers, Stack

__all__ = ["Codec", "bits_back", "categorical", "dependent", "in_pieces", "metered", "raw_bits", "sequence", "substack"]


@dataclass(frozen=True)
class Codec:
    """Pair of functions ``push(stack, value)`` and ``pop(stack) -> value``, each the inverse of the other."""

    push: Callable[[Stack, Any], None]
    pop: Callable[[Stack], Any]


def raw_bits(bits: Integers) -> Codec:
    """Return the codec of whole numbers (n,) without a model; number i is below 2^bits[i].

    Args:
        bits: width of each number, (n,), 0 to 48.

    Returns:
        Codec of an int64 array (n,).

    >>> stack = Stack.empty()
    >>> raw_bits(np.array([3, 40])).push(stack, np.array([5, 12345678901]))
    >>> raw_bits(np.array([3, 40])).pop(stack).tolist(), stack.bits
    ([5, 12345678901], 0.0)
    """
    return Codec(lambda stack, value: stack.push_raw(value, bits), lambda stack: stack.pop_raw(bits))


def categorical(cumulative: Integers, total_bits: int, count: int) -> Codec:
    """Return the codec of ``count`` symbols under one table of cumulative frequencies.

    Args:
        cumulative: increasing integers from 0 to 2^total_bits, (symbols + 1,).
        total_bits: log2 of the total of the frequencies, at most 28.
        count: number of symbols.

    Returns:
        Codec of an int64 array (count,).

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
    """Return the codec of a list of values, each with its codec; the first value is popped first.

    Args:
        codecs: one for each value.

    Returns:
        Codec of a list of as many values.

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
    """Return the codec of a pair (a, b) under p(a) p(b | a).

    Args:
        first: codec of a.
        second: maps a to the codec of b.

    Returns:
        Codec of pairs; a is popped first.
    """

    def push(stack: Stack, pair: tuple[Any, Any]) -> None:
        second(pair[0]).push(stack, pair[1])
        first.push(stack, pair[0])

    def pop(stack: Stack) -> tuple[Any, Any]:
        one = first.pop(stack)
        return one, second(one).pop(stack)

    return Codec(push, pop)


def in_pieces(count: int, size: int, codec: Callable[[slice], Codec]) -> Codec:
    """Return the codec of an array (count,) whose tables are made for a piece at a time, so that memory stays bounded.

    A piece fills the lanes of the stack as often as ``size`` allows, at least once: the message is that of one vector.

    Args:
        count: number of symbols.
        size: largest number of symbols in a piece that has more than one row of lanes.
        codec: maps the places of a piece to the codec of its symbols, one vector.

    Returns:
        Codec of an int64 array (count,).

    >>> stack, edges = Stack.empty(), np.array([0, 1, 4])
    >>> codec = in_pieces(3, 2, lambda part: categorical(edges, 2, count=part.stop - part.start))
    >>> codec.push(stack, np.array([1, 0, 1]))
    >>> codec.pop(stack).tolist()
    [1, 0, 1]
    """

    def pieces(stack: Stack) -> list[slice]:
        step = stack.lanes * max(1, size // stack.lanes)
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def push(stack: Stack, symbols: Integers) -> None:
        for part in pieces(stack):
            codec(part).push(stack, symbols[part])

    def pop(stack: Stack) -> Integers:
        symbols = np.empty(count, dtype=np.int64)
        for part in reversed(pieces(stack)):
            symbols[part] = codec(part).pop(stack)
        return symbols

    return Codec(push, pop)


def substack(codec: Codec, lanes: int) -> Codec:
    """Return ``codec`` restricted to the first lanes of a stack, which share the words with the others.

    Args:
        codec: the codec.
        lanes: number of lanes that it uses.

    Returns:
        Codec of the same values.
    """
    return Codec(
        lambda stack, value: codec.push(stack.part(lanes), value),
        lambda stack: codec.pop(stack.part(lanes)),
    )


def metered(codec: Codec, meters: dict[str, float], name: str) -> Codec:
    """Return ``codec`` with a count of the bits by which each push or pop changes the stack.

    Args:
        codec: the codec.
        meters: totals by name, in bits; changed in place.
        name: the total to which changes are added; pops count as negative.

    Returns:
        Codec of the same values.
    """

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
    """Return the codec of data x with a latent w, by bits-back coding (Hinton & van Camp 1993, section 3).

    The net cost is -log2 p(w) - log2 p(x | w) + log2 q(w | x) bits, with w drawn from q.

    Args:
        prior: codec of w under p(w).
        likelihood: from w to the codec of x under p(x | w).
        posterior: from x to the codec of w under q(w | x), which the receiver can re-derive once it has x.

    Returns:
        Codec of x.

    >>> fair, loaded = (categorical(np.array([0, k, 4]), 2, count=1) for k in (2, 1))
    >>> codec = bits_back(fair, lambda w: loaded, lambda x: fair)  # q = p: w is free
    >>> stack = Stack(words=np.arange(4, dtype=np.uint32))
    >>> before = stack.bits
    >>> codec.push(stack, np.array([0]))
    >>> round(stack.bits - before, 3)
    2.0
    """

    def push(stack: Stack, x: Any) -> None:
        # popping w from q draws it; the reader's push of w under the same q returns the bits of the draw
        w = posterior(x).pop(stack)
        likelihood(w).push(stack, x)
        prior.push(stack, w)

    def pop(stack: Stack) -> Any:
        w = prior.pop(stack)
        x = likelihood(w).pop(stack)
        posterior(x).push(stack, w)
        return x

    return Codec(push, pop)
