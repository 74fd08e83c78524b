"""IDX, the format of MNIST and its relatives: big-endian arrays with a short header, plain or gzipped."""

import gzip
import math
import zlib
from glob import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from bitsback import limits
from bitsback.data._arrays import PIECE_BYTES, check_expansion, is_large, map_array, take
from bitsback.data._dataset import Dataset, Examples
from bitsback.data._rows import stored
from bitsback.errors import DataError, brief

if TYPE_CHECKING:
    from bitsback.data.settings import IdxSettings

__all__ = ["load_idx", "other_names", "read_idx"]

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Numpy types by the type code in the header."""


def read_idx(path: Path, *, lean: bool = False) -> np.ndarray:
    """Read the array in an IDX file, plain or gzipped.

    Args:
        path: of the file.
        lean: map a large array of a plain file, which then keeps its byte order.

    Returns:
        the array, in native byte order.

    Raises:
        DataError: if the file cannot be read, is not IDX, or is shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            is_packed, size = file.read(2) == b"\x1f\x8b" or path.suffix == ".gz", path.stat().st_size
            file.seek(0)
            if not is_packed:
                return _read_array(file, path, size, None, lean)
            with gzip.open(file, "rb") as stream:
                return _read_array(stream, path, None, size, lean)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {brief(error)}; fetch the file again") from error


def _read_array(
    stream: IO[bytes] | gzip.GzipFile, path: Path, file_bytes: int | None, packed_bytes: int | None, lean: bool
) -> np.ndarray:
    """Read the array in a stream of known length: ``file_bytes`` if it is plain, ``packed_bytes`` if it is gzipped."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES:
        raise DataError(f"{path} is not an IDX file (it must begin with 00 00 and a known type); is it another format?")
    kind, dimensions = np.dtype(TYPES[start[2]]), start[3]
    limits.DIMENSIONS.check(dimensions, str(path), DataError)
    sizes = stream.read(4 * dimensions)
    header = 4 + len(sizes)
    shape = tuple(np.frombuffer(sizes, ">u4").tolist()) if len(sizes) == 4 * dimensions else ()
    content_bytes = math.prod(shape) * kind.itemsize if shape else 0
    if not shape or (file_bytes is not None and header + content_bytes != file_bytes):
        raise _length_error(path, header if file_bytes is None else file_bytes, shape)
    is_lean = lean and is_large(shape)
    if is_lean and file_bytes is not None:
        return map_array(path, header, kind, shape)
    needed = 2 * content_bytes if is_lean else limits.data_bytes(math.prod(shape), kind.itemsize)
    limits.MEMORY.check(needed, str(path), DataError, "use fewer")
    if packed_bytes is not None:
        try:
            check_expansion(content_bytes, packed_bytes, str(path))
        except ValueError as error:
            raise DataError(f"{path} is shorter than its header {shape} says; fetch the file again") from error
    content = take(stream, content_bytes)
    rest = len(stream.read(PIECE_BYTES))
    if len(content) + rest != content_bytes:
        raise _length_error(path, header + len(content) + rest, shape, more=rest == PIECE_BYTES)
    return np.frombuffer(content, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def _length_error(path: Path, size: int, shape: tuple[int, ...], *, more: bool = False) -> DataError:
    claimed = f"{'more than ' if more else ''}{size} bytes"
    return DataError(f"{path} holds {claimed}, not what its header {shape} says; fetch the file again")


def other_names(name: str) -> list[str]:
    """List the usual spellings of a name among MNIST's four files.

    Args:
        name: of the file.

    Returns:
        the spellings, ``name`` first.

    >>> other_names("t10k-labels-idx1-ubyte")
    ['t10k-labels-idx1-ubyte', 't10k-labels.idx1-ubyte', 'test-labels-idx1-ubyte', 'test-labels.idx1-ubyte']
    """
    prefixes = next((pair for pair in (("t10k-", "test-"), ("test-", "t10k-")) if name.startswith(pair[0])), ("", ""))
    starts = [prefix + name.removeprefix(prefixes[0]) for prefix in dict.fromkeys(prefixes)]
    found = [variant for start in starts for variant in (start, start.replace("-idx", ".idx"), start.replace(".idx", "-idx"))]
    return list(dict.fromkeys(found))


def load_idx(settings: "IdxSettings", *, inputs_only: bool) -> Dataset:
    """Load the four files.

    Args:
        settings: directory and names of the files.
        inputs_only: replace missing labels by zeros.

    Returns:
        the data set, preprocessed.
    """
    train, train_peak = _read(settings, settings.train_images, settings.train_labels, "training", inputs_only)
    test, _ = _read(settings, settings.test_images, settings.test_labels, "test", inputs_only)
    return settings.finish(
        settings.root.name, train, test, largest=train_peak, are_images=train_peak == 255 and train.inputs.ndim > 2
    )


def _places(settings: "IdxSettings", name: str) -> list[Path]:
    """List the existing files of a name, its own spelling first, and plain before gzipped.

    Where there is none, one that begins otherwise is taken, such as emnist-letters-train-images-idx3-ubyte.

    Args:
        settings: with the directory.
        name: of the file.

    Returns:
        the paths.

    Raises:
        DataError: if several begin otherwise.
    """
    names = [f"{other}{suffix}" for other in other_names(name) for suffix in ("", ".gz")]
    found = [path for path in (settings.root / name for name in names) if path.is_file()]
    if found or Path(name).name != name:
        return found
    longer = [path for other in names for path in sorted(settings.root.glob(f"?*-{escape(other)}")) if path.is_file()]
    if len({path.name.removesuffix(".gz") for path in longer}) > 1:
        shown = " and ".join(path.name for path in longer[:2])
        raise DataError(
            f"{settings.root} holds {shown}, which may each be meant by {name}; name the four files (data.train_images=..., "
            "data.train_labels=..., data.test_images=..., data.test_labels=...)"
        )
    return longer


def _find(settings: "IdxSettings", name: str) -> Path:
    for path in _places(settings, name):
        return path
    raise DataError(f"{settings.root / name} (or the same with .gz) does not exist; put the file there or set data.root")


def _read(settings: "IdxSettings", images: str, labels: str, name: str, inputs_only: bool) -> tuple[Examples, float]:
    place = _find(settings, images)
    pictures = read_idx(place, lean=True)
    missing = inputs_only and not _places(settings, labels)
    answers = np.zeros(len(pictures), dtype=np.int64) if missing else read_idx(_find(settings, labels))
    peak = float(np.iinfo(pictures.dtype).max) if pictures.dtype.kind in "iu" else 1.0
    if not np.array_equal(answers, np.nan_to_num(answers).astype(np.int64)):
        raise DataError(f"the {name} labels in {labels} are not whole numbers; labels must be whole numbers")
    pictures = pictures[:, None] if pictures.ndim == 3 else pictures  # (n, channel, height, width)
    return Examples(stored(pictures, place), torch.from_numpy(answers.astype(np.int64)), name), peak
