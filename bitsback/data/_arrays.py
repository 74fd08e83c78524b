"""Reading of NPY and NPZ files from untrusted sources: sizes are checked against limits before anything is unpacked.

NumPy's own reader trusts the header of an array and unpacks a whole member of the archive, whatever its size.
"""

import gzip
import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from bitsback import limits
from bitsback.errors import DataError, brief

__all__ = ["PIECE_BYTES", "REASONS", "check_expansion", "describe", "is_large", "map_array", "read_npy", "read_npz", "take"]

READY_BYTES = 1 << 28
"""Bytes of an array, as float32, up to which it is held in memory, ready for use (256 MiB)."""

MOST_HEADER_BYTES = 1 << 14
"""Largest header of an array that is read."""
PIECE_BYTES = 1 << 20
"""Bytes that are read from a stream at once."""
LOCAL_HEADER_BYTES = 30
"""Bytes of the header of a member of an archive, before its name."""
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


def is_large(shape: tuple[int, ...]) -> bool:
    """Return whether an array is left as it is stored, and its file mapped where that is possible.

    >>> is_large((60_000, 28, 28)), is_large((1_000_000, 28, 28))
    (False, True)
    """
    return 4 * math.prod(shape) > READY_BYTES


def map_array(
    path: Path, start: int, dtype: "np.dtype[Any]", shape: tuple[int, ...], *, is_fortran: bool = False
) -> np.ndarray:
    """Map an array in a file, of which nothing is read before it is asked for.

    Args:
        path: of the file.
        start: bytes before the first number.
        dtype: of the numbers.
        shape: of the array.
        is_fortran: whether the first axis varies fastest.

    Returns:
        a ``numpy.memmap``; an array without numbers if there are none.
    """
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")


def read_npz(path: Path, *, lean: bool = False) -> dict[str, np.ndarray]:
    """Read all arrays of an NPZ file by name; other members of the archive are ignored.

    Args:
        path: of the file.
        lean: map large arrays (:func:`is_large`) that are stored uncompressed.

    Returns:
        arrays by name.

    Raises:
        DataError: if the arrays exceed the memory limit.
        OSError, ValueError, zipfile.BadZipFile, ...: one of :data:`REASONS`, whose text states the reason.
    """
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.filename.endswith("/")]
        taken = [member.file_size for member in members if not (lean and member.compress_type == zipfile.ZIP_STORED)]
        limits.MEMORY.check(sum(taken), str(path), DataError)
        budget, found = limits.MEMORY.value, {}
        for member in members:
            array = _read_member(archive, member, path, budget, lean=lean)
            if array is not None:
                budget -= _needed_bytes(array.shape, array.dtype, is_mapped=isinstance(array, np.memmap), lean=lean)
                found[_name(member)] = array
    return found


def _name(member: zipfile.ZipInfo) -> str:
    """Return the name of an array for messages: control characters are escaped, and long names are cut off."""
    name = member.filename.removesuffix(".npy")
    return brief(name if name.isprintable() else repr(name)[1:-1])


def _needed_bytes(shape: tuple[int, ...], dtype: "np.dtype[Any]", *, is_mapped: bool, lean: bool) -> int:
    """Return the memory in bytes that reading an array takes."""
    if is_mapped:
        return 0
    count = math.prod(shape)
    return count * dtype.itemsize if lean and is_large(shape) else limits.data_bytes(count, dtype.itemsize)


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, budget: int, *, lean: bool
) -> np.ndarray | None:
    # other methods unpack a piece as a whole, whatever its size
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its array '{_name(member)}' is compressed in a way that NumPy does not write")
    with archive.open(member) as stream:
        if stream.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            return None
        what = f"array '{_name(member)}' in {path}"
        packed = member.compress_size if member.compress_type == zipfile.ZIP_DEFLATED else None
        place = None if packed is not None else (path, _start_of(archive, member))
        return _read_array(stream, what, budget, member.file_size, packed, place, lean=lean)


def _start_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Return the place of a member's first byte: behind its header and the name and extra bytes of that."""
    assert archive.fp is not None  # it is open
    before = archive.fp.tell()
    archive.fp.seek(member.header_offset)
    header = archive.fp.read(LOCAL_HEADER_BYTES)
    archive.fp.seek(before)
    return member.header_offset + LOCAL_HEADER_BYTES + sum(struct.unpack("<HH", header[-4:]))


def read_npy(path: Path, *, lean: bool = False) -> np.ndarray:
    """Read the array in an NPY file.

    Args:
        path: of the file.
        lean: map the array, whatever its size.

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
        place = (path, 0) if lean else None
        return _read_array(stream, str(path), limits.MEMORY.value, path.stat().st_size, None, place, lean=lean, maps_all=lean)


def _read_array(
    stream: IO[bytes],
    what: str,
    budget: int,
    file_bytes: int,
    packed_bytes: int | None,
    place: tuple[Path, int] | None,
    *,
    lean: bool,
    maps_all: bool = False,
) -> np.ndarray:
    """Read the array after the magic bytes.

    Args:
        stream: positioned after the magic bytes.
        what: name of the array, for messages.
        budget: bytes of memory that reading may use.
        file_bytes: claimed length of the file or member.
        packed_bytes: its compressed length; None if it is stored uncompressed.
        place: the file in which the array is stored uncompressed, and the byte at which it begins there, or None.
        lean: whether large arrays are mapped if they have a place.
        maps_all: whether small ones are as well.

    Returns:
        the array.

    Raises:
        ValueError: if header and content disagree, or the array holds objects.
    """
    shape, is_fortran, dtype, header_bytes = _take_header(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays are not read, for code would have to be run")
    limits.DIMENSIONS.check(len(shape), what, DataError)
    count, is_mapped = math.prod(shape), place is not None and lean and (maps_all or is_large(shape))
    needed = _needed_bytes(shape, dtype, is_mapped=is_mapped, lean=lean)
    limits.MEMORY.check(limits.MEMORY.value - budget + needed, what, DataError, "use fewer")
    content_bytes = count * dtype.itemsize
    if header_bytes + content_bytes > file_bytes:
        raise ValueError(f"it holds {file_bytes:,} bytes, fewer than its header says ({dtype}, shape {shape})")
    if packed_bytes is not None:
        check_expansion(content_bytes, packed_bytes, what)
    if is_mapped:
        assert place is not None
        if not maps_all:  # the check sum of the archive
            _pass_over(stream)
        if header_bytes + content_bytes < file_bytes:
            raise ValueError(f"it is not as long as its header says ({dtype}, shape {shape})")
        return map_array(place[0], place[1] + header_bytes, dtype, shape, is_fortran=is_fortran)
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


def _pass_over(stream: IO[bytes]) -> None:
    """Read to the end, where an archive compares its check sum."""
    while stream.read(PIECE_BYTES):
        pass


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
