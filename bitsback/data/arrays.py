"""Reading of NPY and NPZ files from untrusted sources: sizes are checked against limits before anything is unpacked.

NumPy's own reader trusts the header of an array and unpacks a whole member of the archive, whatever its size.
"""

import gzip
import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from bitsback import limits
from bitsback.errors import DataError, brief

__all__ = ["PIECE_BYTES", "REASONS", "check_expansion", "describe", "read_npy", "read_npz", "take"]

MOST_HEADER_BYTES = 1 << 14
"""Largest header of an array that is read."""
PIECE_BYTES = 1 << 20
"""Bytes that are read from a stream at once."""
DEFLATE_RATIO = 1032
"""Most bytes that one byte of a deflated stream can expand to."""

REASONS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Exceptions that reading an archive may raise; RuntimeError for an encrypted one."""

OTHER_FORMATS = {
    npy.MAGIC_PREFIX: "it is a single array (.npy); load it with x = numpy.load(FILE)",
    b"PAR1": "it is a Parquet file; read it with pandas.read_parquet",
    b"\x89HDF": "it is an HDF5 file; read it with h5py",
    b"\x1f\x8b": "it is compressed with gzip; unpack it",
    b"\x80": "it is a pickle, and code in files is never run; open it where you trust it",
}
"""First bytes of formats that are mistaken for NPZ, and advice for each."""


def describe(start: bytes) -> str:
    """Identify a file that is not an archive of arrays from its first bytes, with advice for its conversion."""
    for mark, what in OTHER_FORMATS.items():
        if start.startswith(mark):
            return what
    if start and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return "it is text, such as CSV; read it with numpy.loadtxt(FILE, delimiter=',') or pandas.read_csv"
    return "it is no archive of arrays" if start else "it is empty"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an NPZ file by name; other members of the archive are ignored.

    Args:
        path: of the file.

    Returns:
        arrays by name.

    Raises:
        DataError: if the arrays exceed the memory limit.
        OSError, ValueError, zipfile.BadZipFile, ...: one of :data:`REASONS`, whose text states the reason.
    """
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.filename.endswith("/")]
        limits.MEMORY.check(sum(member.file_size for member in members), str(path), DataError)
        budget, found = limits.MEMORY.value, {}
        for member in members:
            array = _read_member(archive, member, path, budget)
            if array is not None:
                budget -= limits.data_bytes(array.size, array.itemsize)
                found[_name(member)] = array
    return found


def _name(member: zipfile.ZipInfo) -> str:
    """Return the name of an array for messages: control characters are escaped, and long names are cut off."""
    name = member.filename.removesuffix(".npy")
    return brief(name if name.isprintable() else repr(name)[1:-1])


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, budget: int) -> np.ndarray | None:
    # other methods unpack a piece as a whole, whatever its size
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its array '{_name(member)}' is compressed in a way that NumPy does not write")
    with archive.open(member) as stream:
        if stream.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            return None
        what = f"array '{_name(member)}' in {path}"
        packed = member.compress_size if member.compress_type == zipfile.ZIP_DEFLATED else None
        return _read_array(stream, what, budget, member.file_size, packed)


def read_npy(path: Path) -> np.ndarray:
    """Read the array in an NPY file.

    Args:
        path: of the file.

    Returns:
        the array.

    Raises:
        DataError: if the array exceeds the memory limit or has too many dimensions.
        ValueError: if the file is no NPY file or is damaged, or the array holds Python objects.
        OSError, EOFError, ...: another of :data:`REASONS`.
    """
    with path.open("rb") as stream:
        if stream.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            raise ValueError("it does not begin like an NPY file")
        return _read_array(stream, str(path), limits.MEMORY.value, path.stat().st_size, None)


def _read_array(stream: IO[bytes], what: str, budget: int, file_bytes: int, packed_bytes: int | None) -> np.ndarray:
    """Read the array after the magic bytes.

    Args:
        stream: positioned after the magic bytes.
        what: name of the array, for messages.
        budget: bytes of memory that reading may use.
        file_bytes: claimed length of the file or member.
        packed_bytes: its compressed length; None if it is stored uncompressed.

    Returns:
        the array.

    Raises:
        ValueError: if header and content disagree, or the array holds objects.
    """
    shape, is_fortran, dtype, header_bytes = _take_header(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays are not read, for code would have to be run")
    limits.DIMENSIONS.check(len(shape), what, DataError)
    count = math.prod(shape)
    limits.MEMORY.check(limits.MEMORY.value - budget + limits.data_bytes(count, dtype.itemsize), what, DataError, "use fewer")
    content_bytes = count * dtype.itemsize
    if header_bytes + content_bytes > file_bytes:
        raise ValueError(f"it holds {file_bytes:,} bytes, fewer than its header says ({dtype}, shape {shape})")
    if packed_bytes is not None:
        check_expansion(content_bytes, packed_bytes, what)
    content = take(stream, content_bytes)
    if len(content) < content_bytes or stream.read(1):
        raise ValueError(f"it is not as long as its header says ({dtype}, shape {shape})")
    flat = np.frombuffer(content, dtype, count) if content_bytes else np.zeros(count, dtype)
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)


def check_expansion(content_bytes: int, packed_bytes: int, what: str) -> None:
    """Check a compression ratio.

    Args:
        content_bytes: claimed bytes after unpacking.
        packed_bytes: compressed bytes.
        what: name of the file, for messages.

    Raises:
        DataError: if the ratio is above the limit.
        ValueError: if deflate cannot reach the ratio.
    """
    if content_bytes > limits.ALWAYS_UNPACKED:
        limits.EXPANSION.check(-(-content_bytes // max(1, packed_bytes)), f"unpacked, {what}", DataError)
    if content_bytes > DEFLATE_RATIO * packed_bytes + PIECE_BYTES:
        raise ValueError("it is shorter than its header says")


def take(stream: IO[bytes] | gzip.GzipFile, count: int) -> bytearray:
    """Read bytes in pieces, so that memory grows only with what is there.

    Args:
        stream: to read from.
        count: bytes wanted.

    Returns:
        ``count`` bytes, or fewer at the end of the stream.
    """
    content = bytearray()
    while len(content) < count and (piece := stream.read(min(PIECE_BYTES, count - len(content)))):
        content += piece
    return content


def _take_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]", int]:
    """Read shape, order and type of an array, and count the bytes before its first number."""
    version = stream.read(2)
    width = {b"\1\0": 2, b"\2\0": 4}.get(version)
    if width is None:
        raise ValueError("its array is of a kind that holds no plain numbers, or damaged")
    size = stream.read(width)
    length = int.from_bytes(size, "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError("the header of its array is longer than any that NumPy writes")
    read = npy.read_array_header_1_0 if width == 2 else npy.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(io.BytesIO(size + stream.read(length)), max_header_size=MOST_HEADER_BYTES)
    except Exception as error:  # NumPy evaluates a literal, which fails in many ways
        raise ValueError("the header of its array cannot be read") from error
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("the header of its array names no shape")
    return tuple(map(int, shape)), bool(is_fortran), dtype, len(npy.MAGIC_PREFIX) + 2 + width + length
