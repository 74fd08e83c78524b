"""Frame of every file, a mark, version and kind, and a checksum; and numbers packed into bits::

    byte   0     1     2                            3 ...            last 2 or 4
         +-----+-----+----------------------------+----------------+-----------------------------+
         | 'b' | 'b' | version + 16 * kind number | contents       | CRC-16 or CRC-32 of all     |
         |     |     |                            | (bits, lowest  | that precedes it, little-   |
         |     |     |                            | first)         | endian                      |
         +-----+-----+----------------------------+----------------+-----------------------------+

The checksum is CRC-16 in files of up to 255 bytes, CRC-32 in longer ones. See FORMAT.md.
"""

import binascii
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from bitsback.errors import FileError
from bitsback.formats.kinds import FileKind, kind_numbered

__all__ = [
    "DIGEST_BITS",
    "SMALL_FILE_BYTES",
    "VERSION",
    "BitReader",
    "BitWriter",
    "digest",
    "read_file",
    "seal",
    "sealed_bytes",
    "unseal",
]

MARK = b"bb"
VERSION = 2
"""Highest format version that is read."""
SMALL_FILE_BYTES = 255
"""Size of the largest file with a CRC-16."""
HEADER_BYTES = len(MARK) + 1


def seal(kind: FileKind, contents: bytes) -> bytes:
    """Return the whole file around ``contents``.

    Args:
        kind: kind of file, with its version.
        contents: the bytes between frame and checksum.

    Returns:
        mark, version and kind, contents and checksum.

    >>> kind = FileKind(4, "decimal")
    >>> seal(kind, b"abc")[:3], len(seal(kind, b"abc"))
    (b'bbA', 8)
    """
    body = MARK + bytes([kind.version | kind.number << 4]) + contents
    return body + _checksum(body, small=len(body) + 2 <= SMALL_FILE_BYTES)


def sealed_bytes(contents_bytes: int) -> int:
    """Return the size in bytes of a file around ``contents_bytes`` bytes of contents."""
    body = HEADER_BYTES + contents_bytes
    return body + (2 if body + 2 <= SMALL_FILE_BYTES else 4)


def unseal(content: bytes, what: str) -> tuple[FileKind, bytes]:
    """Check the frame of a file, and return its kind and contents.

    Args:
        content: the whole file.
        what: name of the file in error messages.

    Returns:
        the kind, in the version of the file, and the bytes between frame and checksum.

    Raises:
        FileError: if the file is empty, foreign, of a later version, truncated, extended or damaged.
    """
    if not content:
        raise FileError(f"{what} is empty; copy it again")
    if not content.startswith(MARK):
        raise FileError(f"{what} is not a bitsback file (it does not begin with 'bb'); give one that send or pack has written")
    if len(content) <= HEADER_BYTES + 2:
        raise FileError(f"{what} is cut off after {len(content)} bytes; copy it again")
    small = len(content) <= SMALL_FILE_BYTES
    size = 2 if small else 4
    version, number = content[2] & 15, content[2] >> 4
    if version > VERSION:
        raise FileError(f"{what} has format version {version}, this bitsback reads up to {VERSION}; install a newer bitsback")
    # the version before the checksum: a later version may compute another one
    if _checksum(content[:-size], small=small) != content[-size:]:
        raise FileError(f"{what} is damaged: its checksum does not fit; bytes were changed, lost or added; copy it again")
    kind = kind_numbered(number)
    if kind is None or not 0 < version <= kind.version:
        raise FileError(f"{what} is of an unknown kind ({number}, version {version}); install a newer bitsback")
    return kind.of_version(version), content[HEADER_BYTES:-size]


def _checksum(body: bytes, *, small: bool) -> bytes:
    if small:
        return binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "little")
    return binascii.crc32(body).to_bytes(4, "little")


@dataclass
class BitWriter:
    """Writer of whole numbers one after the other, lowest bit first.

    >>> writer = BitWriter()
    >>> writer.put(5, 3)
    >>> writer.put_count(9)
    >>> reader = BitReader(writer.to_bytes())
    >>> reader.take(3), reader.take_count()
    (5, 9)
    """

    _parts: list[tuple[int, int]] = field(default_factory=list)
    bits: int = 0

    def put(self, value: int, width: int) -> None:
        """Write a number in a fixed number of bits.

        Args:
            value: a number from 0 to 2^width - 1.
            width: number of bits.
        """
        assert 0 <= value < 1 << width
        self._parts.append((value, width))
        self.bits += width

    def put_count(self, value: int) -> None:
        """Write a number from 0 up: Elias gamma code of value + 1, about 2 log2(value) + 1 bits."""
        length = (value + 1).bit_length()
        self.put(1 << length - 1, length)  # zeros, then a one
        self.put(value + 1 - (1 << length - 1), length - 1)

    def to_bytes(self) -> bytes:
        """Return the bits as bytes, the last byte filled with zeros."""
        # joined in a tree, so that long contents take n log n steps
        parts = self._parts or [(0, 0)]
        while len(parts) > 1:
            pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
            parts = [(_joined(pair), sum(width for _, width in pair)) for pair in pairs]
        return parts[0][0].to_bytes(-(-self.bits // 8), "little")


def _joined(pair: list[tuple[int, int]]) -> int:
    """Return one number from two neighbours."""
    return pair[0][0] | (pair[1][0] << pair[0][1] if len(pair) == 2 else 0)


class BitReader:
    """Reader of what :class:`BitWriter` wrote; raises FileError at the end of the bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def take(self, width: int) -> int:
        """Return the next number of ``width`` bits."""
        end = self.position + width
        if end > 8 * len(self._content):
            raise FileError("the file ends before its contents do; it is damaged or incomplete")
        part = self._content[self.position // 8 : -(-end // 8)]
        value = int.from_bytes(part, "little") >> self.position % 8 & ((1 << width) - 1)
        self.position = end
        return value

    @property
    def bits_left(self) -> int:
        """Return the number of bits that have not been read."""
        return 8 * len(self._content) - self.position

    def take_count(self) -> int:
        """Return the next number that :meth:`BitWriter.put_count` wrote."""
        length = 1
        while not self.take(1):
            length += 1
            # a damaged file may hold long runs of zeros
            if length > 64:
                raise FileError("the file holds a count beyond 2^64; it is damaged")
        return (1 << length - 1 | self.take(length - 1)) - 1

    def rest(self) -> bytes:
        """Return the bytes after the current one; raises FileError if the remaining bits of the current byte are not zero."""
        start = -(-self.position // 8)
        if self.position % 8 and self._content[start - 1] >> self.position % 8:
            raise FileError("the file's padding is not zero; it is damaged")
        return self._content[start:]

    def skip_rest(self) -> None:
        """Mark all remaining bits as read."""
        self.position = 8 * len(self._content)

    def close(self) -> None:
        """Raise FileError unless everything has been read."""
        if self.rest():
            raise FileError("the file goes on after its contents end; it is damaged or was extended")


DIGEST_BITS = 32


def digest(content: bytes) -> int:
    """Return 32 bits of SHA-256: its first four bytes, little-endian."""
    return int.from_bytes(hashlib.sha256(content).digest()[: DIGEST_BITS // 8], "little")


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; raises FileError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; give an existing file") from error
