"""Random numbers that are identical on every machine: Philox 4x64-10, a counter-based generator (Salmon et al. 2011)."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOISE", "PADDING", "SIGNS", "WORDS_PER_COUNT", "levels", "raw", "shuffled", "whiten"]

WHITENING, PERMUTATION, CODEBOOK, PADDING, NOISE, SIGNS = 1, 2, 3, 4, 5, 6
"""Purposes of streams: the second word of the key, so that streams for different purposes are independent."""

WORDS_PER_COUNT = 4
"""64-bit words that the generator makes from each value of its counter."""
WORD = (1 << 64) - 1


def raw(key: int, purpose: int, stream: int, words: int, *, skip_counts: int = 0, draw: int = 0) -> NDArray[np.uint64]:
    """Return 64-bit words of one stream.

    Count n of a stream (n = 1, 2, ...) encrypts the 256-bit counter (n, stream, draw, 0) under the key (key, purpose) to four
    words. Key, stream and draw are any whole numbers, and are taken modulo 2^64.

    Args:
        key: first word of the key.
        purpose: second word of the key, a constant of this module.
        stream: number of the stream.
        words: number of words to return.
        skip_counts: number of counts, each of four words, before the first word returned.
        draw: number of the draw inside the stream.

    Returns:
        uint64 words, (words,).

    >>> raw(0, WHITENING, 0, 5)[4] == raw(0, WHITENING, 0, 1, skip_counts=1)[0]
    np.True_
    """
    counter = np.array([skip_counts, stream & WORD, draw & WORD, 0], dtype=np.uint64)
    generator = np.random.Philox(counter=counter, key=np.array([key & WORD, purpose], dtype=np.uint64))
    return generator.random_raw(words)


def shuffled(key: int, stream: int, count: int) -> NDArray[np.int64]:
    """Return a random permutation of 0 .. count - 1: the sorting order of as many random words, ties by position.

    Args:
        key: key of the stream.
        stream: number of the stream.
        count: number of elements.

    Returns:
        int64 permutation, (count,).

    >>> sorted(shuffled(7, 0, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(raw(key, PERMUTATION, stream, count), kind="stable")


def levels(key: int, stream: int, rows: int, columns: int, *, first_row: int = 0) -> NDArray[np.uint16]:
    """Return rows of random 16-bit levels; each row begins on a new count, so that any row can be computed alone.

    Args:
        key: key of the stream.
        stream: number of the stream.
        rows: number of rows.
        columns: levels per row.
        first_row: number of the first row returned.

    Returns:
        uint16 levels, (rows, columns).

    >>> bool((levels(1, 2, 3, 5)[2] == levels(1, 2, 1, 5, first_row=2)[0]).all())
    True
    """
    counts = -(-columns // (4 * WORDS_PER_COUNT))
    words = raw(key, CODEBOOK, stream, rows * counts * WORDS_PER_COUNT, skip_counts=first_row * counts)
    return words.astype("<u8", copy=False).view("<u2").reshape(rows, -1)[:, :columns]


def whiten(content: bytes, stream: int = 0) -> bytes:
    """Return ``content`` exclusive-or a fixed random stream; applied twice it gives the content back.

    It makes a payload look random: one that is not would bias the weight draws.

    Args:
        content: any bytes.
        stream: number of the random stream.

    Returns:
        As many bytes as ``content``.

    >>> whiten(whiten(b"all the same")), whiten(bytes(3)) != bytes(3)
    (b'all the same', True)
    """
    noise = raw(0, WHITENING, stream, -(-len(content) // 8)).astype("<u8", copy=False).view(np.uint8)[: len(content)]
    return (np.frombuffer(content, dtype=np.uint8) ^ noise).tobytes()
