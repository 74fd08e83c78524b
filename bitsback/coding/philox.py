"""Random numbers that every machine repeats: Philox 4x64-10, a counter and a key, integers only (Salmon et al. 2011)."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOISE", "PADDING", "SIGNS", "WORDS_PER_COUNT", "levels", "raw", "shuffled", "whiten"]

WHITENING, PERMUTATION, CODEBOOK, PADDING, NOISE, SIGNS = 1, 2, 3, 4, 5, 6
"""What a stream is for: the second word of its key."""

WORDS_PER_COUNT = 4
WORD = (1 << 64) - 1


def raw(key: int, purpose: int, stream: int, words: int, *, skip_counts: int = 0, draw: int = 0) -> NDArray[np.uint64]:
    """``words`` 64-bit words of one stream, after ``4 * skip_counts`` others.

    Count n of a stream (n = 1, 2, ...) encrypts the 256-bit counter (n, stream, draw, 0) under the key (key, purpose). Key,
    stream and draw are any whole numbers, and count modulo 2^64.

    >>> raw(0, WHITENING, 0, 5)[4] == raw(0, WHITENING, 0, 1, skip_counts=1)[0]
    np.True_
    """
    counter = np.array([skip_counts, stream & WORD, draw & WORD, 0], dtype=np.uint64)
    generator = np.random.Philox(counter=counter, key=np.array([key & WORD, purpose], dtype=np.uint64))
    return generator.random_raw(words)


def shuffled(key: int, stream: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0 .. count - 1: the order of as many random words, ties by position.

    >>> sorted(shuffled(7, 0, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(raw(key, PERMUTATION, stream, count), kind="stable")


def levels(key: int, stream: int, rows: int, columns: int, *, first_row: int = 0) -> NDArray[np.uint16]:
    """Rows of 16-bit levels; each row begins on a fresh count, so that any row can be made alone.

    >>> bool((levels(1, 2, 3, 5)[2] == levels(1, 2, 1, 5, first_row=2)[0]).all())
    True
    """
    counts = -(-columns // (4 * WORDS_PER_COUNT))
    words = raw(key, CODEBOOK, stream, rows * counts * WORDS_PER_COUNT, skip_counts=first_row * counts)
    return words.astype("<u8", copy=False).view("<u2").reshape(rows, -1)[:, :columns]


def whiten(content: bytes, stream: int = 0) -> bytes:
    """``content`` exclusive-or one of a family of fixed random streams; its own inverse.

    A payload that is not random would bias the draw of the weights.

    >>> whiten(whiten(b"all the same")), whiten(bytes(3)) != bytes(3)
    (b'all the same', True)
    """
    noise = raw(0, WHITENING, stream, -(-len(content) // 8)).astype("<u8", copy=False).view(np.uint8)[: len(content)]
    return (np.frombuffer(content, dtype=np.uint8) ^ noise).tobytes()
