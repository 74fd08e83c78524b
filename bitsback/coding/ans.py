"""A message as a stack of bits: range asymmetric numeral systems with many lanes (Duda 2009; lanes: Giesen 2014).

Each lane has a 64-bit head; all lanes share one stack of 32-bit words. Symbol j of a vector goes to lane j mod L. The symbol
pushed last is popped first. A pop followed by a push of the popped symbols restores the stack exactly, which is the property
that bits-back coding needs.

::

    symbols      s0      s1            s(L-1)   next row: sL to lane 0, s(L+1) to lane 1, ...
                 |       |             |
              +------+------+       +------+
    heads     | 64 b | 64 b |  ...  | 64 b |    one per lane, 2^32 <= head < 2^64
              +------+------+       +------+
      push: a head that would overflow    |  ^    pop: a head that falls below 2^32
      gives its low 32 bits to the words  v  |    takes the topmost word
              +------+------+-----+--------+
    words     | 32 b | 32 b | ... |  32 b  |    one stack shared by all lanes
              +------+------+-----+--------+
               bottom                 top
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.philox import PADDING, raw
from bitsback.errors import FileError

__all__ = ["MOST_LANES_LOG2", "WORD_BITS", "Find", "Integers", "Stack", "Words", "default_lanes_log2"]

Words = NDArray[np.uint32]
Integers = NDArray[np.int64]
Find = Callable[[Integers, slice], tuple[Integers, Integers, Integers]]
"""Decoder's table look-up: from slots and their places in the vector to symbols, starts and frequencies."""

WORD_BITS, HEAD_BITS = 32, 64
MOST_TOTAL_BITS = 28
"""Frequencies sum to at most 2^28: at 2^32 the integer division would lose 2.4e-3 bits a symbol."""

LENGTH_BITS = 5
"""Width of the field before each written head that holds its length, 33 to 64 bits."""


class Stack:
    """Stack of bits: a message of range asymmetric numeral systems with several lanes.

    Args:
        heads: one 64-bit head per lane, (lanes,), each at least 2^32; default: one empty lane.
        words: the 32-bit words below the heads, bottom first.
        borrows: if true, a pop from an exhausted stack takes pseudo-random words and counts them in :attr:`borrowed_bits`;
            if false, it raises :class:`~bitsback.errors.FileError`.

    >>> stack = Stack()
    >>> stack.push(np.array([3, 0]), np.array([1, 3]), 2)  # a symbol of probability 1/4, then one of 3/4
    >>> stack.pop(2, 2, lambda slot, _: (slot // 3, 3 * (slot // 3), np.where(slot < 3, 3, 1)))
    array([1, 0])
    """

    def __init__(self, heads: NDArray[np.uint64] | None = None, words: Words | None = None, *, borrows: bool = False) -> None:
        self.heads = np.array([1 << WORD_BITS], dtype=np.uint64) if heads is None else heads.astype(np.uint64)
        self._below = _Below(np.zeros(0, dtype=np.uint32) if words is None else words, borrows)

    @classmethod
    def empty(cls, lanes: int = 1) -> "Stack":
        """Return a stack that holds no bits."""
        return cls(np.full(lanes, 1 << WORD_BITS, dtype=np.uint64))

    @property
    def lanes(self) -> int:
        """Return the number of lanes, each with a head of its own."""
        return len(self.heads)

    @property
    def words(self) -> Words:
        """Return the words below the heads, bottom first."""
        return self._below.words

    @property
    def borrowed_bits(self) -> int:
        """Return the number of pseudo-random bits that were added below the bottom."""
        return WORD_BITS * self._below.borrowed

    def count_as_borrowed(self, words: int) -> None:
        """Count ``words`` more 32-bit words as borrowed, without adding them; a negative number counts as 0."""
        self._below.borrowed += max(0, words)

    def part(self, lanes: int) -> "Stack":
        """Return a stack of the first ``lanes`` lanes; it shares heads and words with this one."""
        found = Stack.__new__(Stack)
        found.heads, found._below = self.heads[:lanes], self._below
        return found

    @property
    def bits(self) -> float:
        """Return the information on the stack, in bits: 32 per word, and log2(head / 2^32) per head."""
        return WORD_BITS * len(self.words) + float(np.log2(self.heads.astype(np.float64)).sum()) - WORD_BITS * self.lanes

    def push(self, starts: Integers, frequencies: Integers, total_bits: int | Integers) -> None:
        """Encode a vector of symbols, each with the slots ``start .. start + frequency - 1`` of 2^total_bits.

        A frequency equal to the total is allowed and costs nothing.

        Args:
            starts: first slot of each symbol, (n,).
            frequencies: number of slots of each symbol, (n,), each at least 1.
            total_bits: log2 of the total of the frequencies, at most 28; one number, or one per symbol, (n,).
        """
        count, lanes = len(starts), self.lanes
        start, frequency = starts.astype(np.uint64), frequencies.astype(np.uint64)
        bits = np.broadcast_to(np.asarray(total_bits, dtype=np.uint64), (count,))
        room = np.uint64(HEAD_BITS) - bits
        for first in range(0, count, lanes):
            row = slice(first, min(first + lanes, count))
            f, head = frequency[row], self.heads[: row.stop - first]
            # head >= f 2^(64 - bits) would overflow below; this test is the exact converse of the refill test in pop
            full = (head >> room[row]) >= f
            if full.any():
                self._below.put(head[full].astype(np.uint32))  # the low 32 bits
                head[full] >>= np.uint64(WORD_BITS)
            quotient = head // f
            head[:] = (quotient << bits[row]) + (head - quotient * f) + start[row]

    def pop(self, count: int, total_bits: int | Integers, find: Find) -> Integers:
        """Decode a vector of symbols; with the arguments of the push it undoes the push.

        Args:
            count: number of symbols.
            total_bits: log2 of the total of the frequencies, at most 28; one number, or one per symbol, (count,).
            find: maps slots and their places in the vector to symbols, starts and frequencies.

        Returns:
            The symbols, (count,).

        Raises:
            FileError: when the stack runs out and does not borrow.
        """
        lanes = self.lanes
        bits = np.broadcast_to(np.asarray(total_bits, dtype=np.uint64), (count,))
        symbols = np.empty(count, dtype=np.int64)
        # rows in the opposite order of push; inside a row all lanes work at once, and words move in the order of the lanes
        for first in reversed(range(0, count, lanes)):
            row = slice(first, min(first + lanes, count))
            head, r = self.heads[: row.stop - first], bits[row]
            high = head >> r
            slot = head - (high << r)
            symbols[row], start, frequency = find(slot.astype(np.int64), row)
            head[:] = frequency.astype(np.uint64) * high + (slot - start.astype(np.uint64))
            empty = head < np.uint64(1 << WORD_BITS)
            if empty.any():
                head[empty] = (head[empty] << np.uint64(WORD_BITS)) | self._below.take(int(empty.sum()))
        return symbols

    def push_raw(self, values: Integers, bits: Integers) -> None:
        """Encode whole numbers below 2^bits without a model: number i costs ``bits[i]`` bits.

        Args:
            values: the numbers, (n,).
            bits: width of each number, (n,), 0 to 48.
        """
        # at most 24 bits in one push, below MOST_TOTAL_BITS
        high = np.maximum(bits - 24, 0)
        low = bits - high
        for part, width in ((values & ((1 << low) - 1), low), (values >> low, high)):
            some = width > 0
            self.push(part[some], np.ones(int(some.sum()), dtype=np.int64), width[some])

    def pop_raw(self, bits: Integers) -> Integers:
        """Decode and return the numbers, (n,), that :meth:`push_raw` encoded with the same ``bits``."""
        high = np.maximum(bits - 24, 0)
        low = bits - high
        values = np.zeros(len(bits), dtype=np.int64)
        for width, shift in ((high, low), (low, np.zeros_like(low))):
            some = width > 0
            part = self.pop(int(some.sum()), width[some], lambda slot, _: (slot, slot, np.ones_like(slot)))
            values[some] += part << shift[some]
        return values

    def to_bytes(self) -> bytes:
        """Return the heads without leading zeros, each after 5 bits of its length, then the words, bottom first."""
        packed, offset = 0, 0
        for head in self.heads.tolist():
            length = head.bit_length() - 1  # the leading one is known
            packed |= (length - WORD_BITS | (head - (1 << length)) << LENGTH_BITS) << offset
            offset += LENGTH_BITS + length
        return packed.to_bytes(-(-offset // 8), "little") + self.words.astype("<u4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes, lanes: int) -> "Stack":
        """Return the stack that :meth:`to_bytes` wrote.

        Args:
            content: the written bytes.
            lanes: number of lanes of the written stack.

        Returns:
            A stack that does not borrow.

        Raises:
            FileError: when the bytes are not a stack with as many lanes.
        """
        most = lanes * (LENGTH_BITS + HEAD_BITS) // 8 + 1
        packed, offset, heads = int.from_bytes(content[:most], "little"), 0, []
        for _ in range(lanes):
            length = WORD_BITS + (packed >> offset & ((1 << LENGTH_BITS) - 1))
            heads.append(1 << length | packed >> offset + LENGTH_BITS & ((1 << length) - 1))
            offset += LENGTH_BITS + length
        end = -(-offset // 8)
        if end > len(content) or packed >> offset & ((1 << (8 * end - offset)) - 1) or (len(content) - end) % 4:
            raise FileError("the message does not end where its heads say; it is damaged or incomplete")
        return cls(np.array(heads, dtype=np.uint64), np.frombuffer(content[end:], dtype="<u4").astype(np.uint32))


class _Below:
    """Words below the heads: an array that grows at its end (the top) and, where borrowing is allowed, at its bottom."""

    def __init__(self, words: Words, borrows: bool) -> None:
        self._words = np.concatenate([words, np.zeros(max(1024, len(words)), dtype=np.uint32)]).astype(np.uint32)
        self._count = len(words)
        self._borrows, self.borrowed = borrows, 0

    @property
    def words(self) -> Words:
        return self._words[: self._count]

    def put(self, words: Words) -> None:
        end = self._count + len(words)
        if end > len(self._words):
            self._words = np.concatenate([self._words, np.zeros(max(end, len(self._words)), dtype=np.uint32)])
        self._words[self._count : end] = words
        self._count = end

    def take(self, count: int) -> NDArray[np.uint64]:
        missing = count - self._count
        if missing > 0:
            if not self._borrows:
                raise FileError("the message ends too early: its bits ran out while decoding; it is damaged or incomplete")
            # the i-th borrowed word is word i of a fixed stream and lies below the earlier ones, however takes are grouped
            extra = raw(0, PADDING, 0, self.borrowed + missing)[self.borrowed :].astype(np.uint32)
            self.borrowed += missing
            self._words = np.concatenate([extra[::-1], self._words])
            self._count += missing
        self._count -= count
        return self._words[self._count : self._count + count].astype(np.uint64)


MOST_LANES_LOG2 = 10


WEIGHTS_PER_LANE = 1024
"""Least number of weights per lane where there is more than one lane; fewer would not gain speed."""


def default_lanes_log2(weights: int, net_bits: float) -> int:
    """Return log2 of the number of lanes: as many as speed asks for, while their heads cost at most 1 % of the net bits.

    Args:
        weights: number of coded weights.
        net_bits: expected net length of the message, in bits.

    Returns:
        A whole number from 0 to :data:`MOST_LANES_LOG2`.

    >>> default_lanes_log2(130, 250.0), default_lanes_log2(266_610, 26_000.0), default_lanes_log2(10**7, 1e6)
    (0, 5, 10)
    """
    lanes = min(max(int(math.log2(max(weights / WEIGHTS_PER_LANE, 1))), 0), MOST_LANES_LOG2)
    while lanes and LENGTH_BITS * 2**lanes > 0.01 * net_bits:
        lanes -= 1
    return lanes
