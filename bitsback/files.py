"""Writing files whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitsback.errors import RunError, brief


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary neighbour, then rename it: a reader sees the old file or the new one, never half.

    Raises:
        RunError: when the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as fault:
        raise RunError(f"cannot write {path}: {fault.strerror or fault}; choose a place you may write to") from fault
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as fault:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(fault, OSError):
            raise RunError(f"cannot write {path}: {fault.strerror or fault}; is the disk full?") from fault
        raise


def check_new_directory(path: Path) -> None:
    """Raise RunError unless ``path`` can become a new directory: it is missing or empty, and its place can be written."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a directory; choose another --out")
    if path.is_dir() and any(path.iterdir()):
        raise RunError(f"{path} is not empty; choose another --out, or continue a run with `train --resume`")
    place = next(parent for parent in [path, *path.resolve().parents] if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"cannot write {path}: {place} is not a directory you may write to; choose another --out")


def check_new_file(path: Path) -> None:
    """Raise RunError unless a file can be written to ``path``; nothing is changed."""
    place = next(parent for parent in path.resolve().parents if parent.exists())
    if path.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"cannot write {path}: it is a directory, or stands in a place you may not write to; choose another -o")


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A neighbour to write files into, which becomes ``path`` at the end, or goes away when something fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as fault:
        raise RunError(f"cannot write {path}: {fault.strerror or fault}; choose a place you may write to") from fault
    try:
        yield place
        place.chmod(0o755)
        os.replace(place, path)  # onto nothing, or an empty directory
    except BaseException as fault:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(fault, OSError):
            raise RunError(f"cannot write {path}: {fault.strerror or fault}; is the disk full?") from fault
        raise


def write_text(path: Path, content: str) -> None:
    """:func:`write_bytes` for text, in UTF-8."""
    write_bytes(path, content.encode())


def write_array(path: Path, array: Any) -> None:
    """:func:`write_bytes` for a NumPy array, in the npy format."""
    import io

    import numpy as np

    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_bytes(path, stream.getvalue())


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """:func:`write_bytes` for tensors, in the safetensors format."""
    from safetensors.torch import save

    write_bytes(path, save(dict(tensors), dict(metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises RunError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as fault:
        raise RunError(f"cannot read {path}: {brief(fault)}; is the run complete?") from fault
