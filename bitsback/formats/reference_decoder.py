"""Reference decoder in whole numbers and plain Python: all that a decoder in another language has to do.

An executable part of FORMAT.md. It is slow; the modules of :mod:`bitsback.coding` compute the same numbers on arrays, and
tests compare the two. It does not need numpy.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence

from bitsback.errors import FileError

__all__ = [
    "WORD",
    "Find",
    "Stack",
    "block_points",
    "block_values",
    "bucket_of",
    "encrypt",
    "levels",
    "members",
    "quantile",
    "raw",
    "shuffled",
    "start_of",
    "whiten",
]

WORD = 1 << 32
"""Smallest head of a lane; heads are moved in words of 32 bits."""
LOW = WORD - 1
FULL = (1 << 64) - 1
LENGTH_BITS = 5
TOTAL_BITS = 28
"""Prior tables have 2^28 slots."""
SUB_BUCKET_BITS = 6
"""Buckets per octave of lattice points are 2^6."""
WHITENING, PERMUTATION, CODEBOOK = 1, 2, 3
"""Numbers of the purposes for which random words are drawn."""

Find = Callable[[int, int], tuple[int, int, int]]
"""Function from a slot and the index of a symbol to the symbol, its start and its frequency."""


def encrypt(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Apply Philox 4x64 with 10 rounds (Salmon et al. 2011).

    Args:
        counter: four 64-bit words.
        key: two 64-bit words.

    Returns:
        four 64-bit words.

    >>> [hex(word) for word in encrypt((0, 0, 0, 0), (0, 0))][:2]
    ['0x16554d9eca36314c', '0xdb20fe9d672d0fdc']
    """
    a, b, c, d = counter
    one, two = key
    for _ in range(10):
        left, right = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = right >> 64 ^ b ^ one, right & FULL, left >> 64 ^ d ^ two, left & FULL
        one, two = one + 0x9E3779B97F4A7C15 & FULL, two + 0xBB67AE8584CAA73B & FULL
    return a, b, c, d


def raw(key: int, purpose: int, stream: int, words: int, *, skip_counts: int = 0, draw: int = 0) -> list[int]:
    """Return 64-bit random words of one draw of a stream.

    Args:
        key: key of the generator.
        purpose: what the words are for, such as ``CODEBOOK``.
        stream: number of the stream.
        words: number of words.
        skip_counts: groups of four words to leave out before.
        draw: number of the draw.

    Returns:
        the words.

    >>> raw(5, CODEBOOK, 2, 8)[4:] == raw(5, CODEBOOK, 2, 4, skip_counts=1)
    True
    """
    counts = -(-words // 4)
    made = [word for n in range(1, counts + 1) for word in encrypt((skip_counts + n, stream, draw, 0), (key, purpose))]
    return made[:words]


def whiten(content: bytes, stream: int = 0) -> bytes:
    """Exclusive-or ``content`` with the words of a stream, little-endian; its own inverse.

    Args:
        content: any bytes.
        stream: number of the stream.

    Returns:
        as many bytes.

    >>> whiten(whiten(b"payload"))
    b'payload'
    """
    noise = b"".join(word.to_bytes(8, "little") for word in raw(0, WHITENING, stream, -(-len(content) // 8)))
    return bytes(one ^ other for one, other in zip(content, noise, strict=False))


def shuffled(key: int, stream: int, count: int) -> list[int]:
    """Return 0 .. count - 1 in the order of as many random words, ties by position.

    Args:
        key: key of the generator.
        stream: number of the stream.
        count: how many numbers to shuffle.

    Returns:
        a permutation.

    >>> sorted(shuffled(7, 0, 5))
    [0, 1, 2, 3, 4]
    """
    return sorted(range(count), key=raw(key, PERMUTATION, stream, count).__getitem__)


def levels(key: int, stream: int, row: int, columns: int) -> list[int]:
    """Return one row of 16-bit levels: a word holds four, the lowest bits first; every row begins on a new count.

    Args:
        key: key of the codebook.
        stream: number of the block.
        row: number of the row.
        columns: number of levels.

    Returns:
        the levels, 0 to 65535.

    >>> levels(1, 2, 0, 6)[:4] == [raw(1, CODEBOOK, 2, 1)[0] >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    True
    """
    counts = -(-columns // 16)
    words = raw(key, CODEBOOK, stream, 4 * counts, skip_counts=row * counts)
    return [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)][:columns]


class Stack:
    """Message of several lanes: heads of 64 bits above one shared list of 32-bit words.

    Args:
        heads: each from 2^32 to 2^64 - 1; default: one empty lane.
        words: below the heads, bottom first.

    >>> stack = Stack()
    >>> stack.push([3, 0], [1, 3], 2)  # a symbol of probability 1/4, then one of 3/4
    >>> stack.pop(2, 2, lambda slot, _: (1, 3, 1) if slot == 3 else (0, 0, 3))
    [1, 0]
    """

    def __init__(self, heads: Sequence[int] | None = None, words: Sequence[int] = ()) -> None:
        self.heads, self.words = list(heads or [WORD]), list(words)

    @classmethod
    def empty(cls, lanes: int = 1) -> "Stack":
        """Return a stack without contents."""
        return cls([WORD] * lanes)

    def push(self, starts: Sequence[int], frequencies: Sequence[int], total_bits: int | Sequence[int]) -> None:
        """Encode symbols in order, symbol j in lane j mod L.

        Args:
            starts: first slot of every symbol.
            frequencies: number of slots of every symbol.
            total_bits: log2 of the number of slots, of all symbols or of each.
        """
        for j, (start, frequency) in enumerate(zip(starts, frequencies, strict=True)):
            lane, bits = j % len(self.heads), total_bits if isinstance(total_bits, int) else total_bits[j]
            head = self.heads[lane]
            if head >> 64 - bits >= frequency:
                self.words.append(head & LOW)
                head >>= 32
            self.heads[lane] = (head // frequency << bits) + head % frequency + start

    def pop(self, count: int, total_bits: int | Sequence[int], find: Find) -> list[int]:
        """Decode symbols, the last first.

        Args:
            count: number of symbols.
            total_bits: log2 of the number of slots, of all symbols or of each.
            find: gives symbol, start and frequency for a slot.

        Returns:
            the symbols, in the order in which they were encoded.

        Raises:
            FileError: if the stack runs out.
        """
        symbols = [0] * count
        for j in reversed(range(count)):
            lane, bits = j % len(self.heads), total_bits if isinstance(total_bits, int) else total_bits[j]
            slot = self.heads[lane] & (1 << bits) - 1
            symbols[j], start, frequency = find(slot, j)
            head = frequency * (self.heads[lane] >> bits) + slot - start
            if head < WORD:
                if not self.words:
                    raise FileError("the message ends too early: its bits ran out while decoding; it is damaged or incomplete")
                head = head << 32 | self.words.pop()
            self.heads[lane] = head
        return symbols

    def push_raw(self, values: Sequence[int], bits: Sequence[int]) -> None:
        """Encode numbers below 2^bits: the low 24 bits of all that have any, then the high ones of all that have more.

        Args:
            values: numbers.
            bits: bits of every number, 0 to 48.
        """
        low = [(value & (1 << min(b, 24)) - 1, min(b, 24)) for value, b in zip(values, bits, strict=True) if b > 0]
        high = [(value >> 24, b - 24) for value, b in zip(values, bits, strict=True) if b > 24]
        for part in (low, high):
            self.push([value for value, _ in part], [1] * len(part), [width for _, width in part])

    def pop_raw(self, bits: Sequence[int]) -> list[int]:
        """Decode what :meth:`push_raw` encoded."""
        values = [0] * len(bits)
        for first, most in ((24, 48), (0, 24)):
            some = [j for j, b in enumerate(bits) if b > first]
            part = self.pop(len(some), [min(bits[j], most) - first for j in some], lambda slot, _: (slot, slot, 1))
            for j, value in zip(some, part, strict=True):
                values[j] |= value << first
        return values

    def to_bytes(self) -> bytes:
        """Return the heads in whole bytes, and the words, bottom first.

        A head is 5 bits for its length less 33, and its bits below the leading one.

        Returns:
            the bytes.
        """
        packed, offset = 0, 0
        for head in self.heads:
            length = head.bit_length() - 1
            packed |= (length - 32 | head - (1 << length) << LENGTH_BITS) << offset
            offset += LENGTH_BITS + length
        return packed.to_bytes(-(-offset // 8), "little") + struct.pack(f"<{len(self.words)}I", *self.words)

    @classmethod
    def from_bytes(cls, content: bytes, lanes: int) -> "Stack":
        """Return the stack that :meth:`to_bytes` wrote.

        Args:
            content: the bytes.
            lanes: number of lanes.

        Returns:
            the stack.

        Raises:
            FileError: if the bytes are not those of a stack.
        """
        packed, offset, heads = int.from_bytes(content[: -(-lanes * 68 // 8)], "little"), 0, []
        for _ in range(lanes):
            length = 32 + (packed >> offset & (1 << LENGTH_BITS) - 1)
            heads.append(1 << length | packed >> offset + LENGTH_BITS & (1 << length) - 1)
            offset += LENGTH_BITS + length
        end = -(-offset // 8)
        if end > len(content) or content[end - 1] >> 8 - (8 * end - offset) or (len(content) - end) % 4:
            raise FileError("the message does not end where its heads say; it is damaged or incomplete")
        return cls(heads, struct.unpack(f"<{(len(content) - end) // 4}I", content[end:]))


def bucket_of(point: int) -> tuple[int, int, int]:
    """Return bucket of a lattice point, exponent e of the bucket's width 2^e, and position inside it.

    Returns:
        bucket, exponent, position.

    >>> bucket_of(131), bucket_of(-132)
    ((129, 1, 1), (-130, 1, 1))
    """
    size = -1 - point if point < 0 else point
    exponent = max(size.bit_length() - SUB_BUCKET_BITS - 1, 0)
    bucket = (exponent << SUB_BUCKET_BITS) + (size >> exponent)
    return -1 - bucket if point < 0 else bucket, exponent, size & (1 << exponent) - 1


def start_of(bucket: int) -> tuple[int, int]:
    """Return smallest size in a bucket, and exponent of its width; the point is size + position, or -1 less that below zero.

    Returns:
        size, exponent.

    >>> start_of(129), start_of(-130)
    ((130, 1), (130, 1))
    """
    number = -1 - bucket if bucket < 0 else bucket
    exponent = max((number >> SUB_BUCKET_BITS) - 1, 0)
    return number - (exponent << SUB_BUCKET_BITS) << exponent, exponent


def quantile(cumulative: Sequence[int], level: int) -> int:
    """Return the lattice point at the level (2 * level + 1) / 2^17 of a prior's table.

    Args:
        cumulative: cumulative slots of the buckets, from 0 to 2^28.
        level: 0 to 65535.

    Returns:
        the lattice point.

    >>> flat = [k << TOTAL_BITS - 8 for k in range(257)]  # 256 points, all alike
    >>> quantile(flat, 0), quantile(flat, 32768)
    (-128, 0)
    """
    slot = 2 * level + 1 << TOTAL_BITS - 17
    index = bisect_right(cumulative, slot) - 1
    bucket = index - (len(cumulative) - 1) // 2
    size, exponent = start_of(bucket)
    low, high = cumulative[index], cumulative[index + 1]
    offset = ((high - 1 - slot if bucket < 0 else slot - low) << exponent) // (high - low)
    return -1 - (size + offset) if bucket < 0 else size + offset


def members(sizes: Sequence[int], blocks: int, block: int, key: int = 0) -> list[int]:
    """Return positions of a block's weights: every tensor is shuffled separately, then all are dealt out in turn.

    Args:
        sizes: number of weights of every tensor.
        blocks: number of blocks.
        block: number of the block.
        key: key of the codebook.

    Returns:
        positions in the concatenated tensors.

    >>> sorted(members([4, 6], 2, 0) + members([4, 6], 2, 1)) == list(range(10))
    True
    """
    order = [sum(sizes[:t]) + index for t, size in enumerate(sizes) for index in shuffled(key, t, size)]
    return order[block::blocks]


def block_points(tables: Sequence[Sequence[int]], block: int, index: int, key: int = 0) -> list[int]:
    """Return grid points of a block's weights, in units of 2^-16 scales.

    Args:
        tables: for each weight of the block, the 65,536 quantiles of its prior.
        block: number of the block.
        index: the block's index in the file.
        key: key of the codebook.

    Returns:
        one point for each weight.
    """
    row = levels(key, block, index, len(tables))
    return [table[level] for table, level in zip(tables, row, strict=True)]


def block_values(points: Sequence[int], centres: Sequence[float], scales: Sequence[float]) -> list[float]:
    """Return the weights, centre + scale * (point / 65536), with two roundings to float64 and one to float32.

    Args:
        points: in units of 2^-16 scales.
        centres: location of the prior, for each weight.
        scales: scale of the prior, for each weight.

    Returns:
        one weight for each point.
    """
    exact = [centre + scale * (point / 65536) for point, centre, scale in zip(points, centres, scales, strict=True)]
    return list(struct.unpack(f"<{len(exact)}f", struct.pack(f"<{len(exact)}f", *exact)))
