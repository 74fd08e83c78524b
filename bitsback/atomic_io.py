"""Writing files whole or not at all, and reading them only when they are whole."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bitsback.errors import RunError, brief
from bitsback.locks import (
    LEFT_OVER,
    LOCK,
    ON_WINDOWS,
    check_not_in_use,
    exclusive,
    is_at,
    lock_file,
    remove_left_over_directories,
    remove_left_over_files,
)

__all__ = [
    "SEAL",
    "DamagedFileError",
    "check_new_directory",
    "check_new_file",
    "check_seal",
    "file_name",
    "new_directory",
    "new_neighbour",
    "read_tensors",
    "whole_directory",
    "write_array",
    "write_bytes",
    "write_tensors",
    "write_text",
]

SEAL = b'{"__metadata__":{"sha256":"'
"""How the header of a tensor file begins that carries a checksum; 64 hexadecimal digits follow."""

DIGITS = 64
READ_BYTES = 1 << 20


class DamagedFileError(RunError):
    """A tensor file that cannot be read, or is not what was written."""


def write_bytes(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write ``content`` to a temporary neighbour, then rename it: a reader sees the old file or the new one, never half.

    Temporary neighbours that killed writers of the same file left are removed.

    Args:
        path: the file.
        content: what is to be in it.
        keep: where the old file goes, if there is one, just before the new one takes its place.

    Raises:
        RunError: when the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over_files(path.parent, path.name)
        handle, temporary = _temporary_file(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; choose a place you may write to") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if not ON_WINDOWS:  # while it is open, and so locked: nobody takes it for left over
                os.chmod(temporary, 0o644)
                _put_in_place(temporary, path, keep)
        if ON_WINDOWS:  # not run here: an open file cannot be renamed
            _put_in_place(temporary, path, keep)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"cannot write {path}: {error.strerror or error}; is the disk full?") from error
        raise


def _put_in_place(temporary: str, path: Path, keep: Path | None) -> None:
    if keep is not None:
        with suppress(FileNotFoundError):
            os.replace(path, keep)
    os.replace(temporary, path)


def _temporary_file(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, open and locked."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        lock_file(handle)
        if is_at(handle, temporary):
            return handle, temporary
        os.close(handle)  # another writer took it for left over before it was locked


def check_new_directory(path: Path) -> None:
    """Raise RunError unless ``path`` can become a new directory: it is missing or empty, and its place can be written.

    What a training leaves that was killed before it had begun counts as nothing.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a directory; choose another --out")
    if path.is_dir() and any(not _is_no_content(entry) for entry in path.iterdir()):
        check_not_in_use(path / LOCK, path)
        raise RunError(f"{path} is not empty; choose another --out, or continue a run with `train --resume`")
    parent = next(parent for parent in [path, *path.resolve().parents] if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"cannot write {path}: {parent} is not a directory you may write to; choose another --out")


def _is_no_content(entry: Path) -> bool:
    """True for a lock, a temporary file, and the files of a run as they are before its configuration is written."""
    if entry.name == LOCK or LEFT_OVER.fullmatch(entry.name):
        return True
    metrics = entry.parent / "metrics.jsonl"
    has_begun = (entry.parent / "config.yaml").exists() or not metrics.is_file() or metrics.stat().st_size > 0
    return not has_begun and entry.name in ("metrics.jsonl", "checkpoint")


@contextmanager
def new_directory(path: Path) -> Iterator[None]:
    """Hold a place that is to become a new directory: nobody else can begin to write to it.

    Raises:
        InUseError: when another process holds it.
        RunError: when it is not empty, or cannot be written.
    """
    check_new_directory(path)
    with exclusive(path / LOCK, path):
        check_new_directory(path)  # another may have been there between
        remove_left_over_files(path)
        (path / "metrics.jsonl").unlink(missing_ok=True)
        shutil.rmtree(path / "checkpoint", ignore_errors=True)
        yield


@contextmanager
def new_neighbour(path: Path) -> Iterator[None]:
    """Hold a place that :func:`whole_directory` is to fill: nobody else can begin to write to it.

    Raises:
        InUseError: when another process holds it.
        RunError: when it is not empty, or cannot be written.
    """
    check_new_directory(path)
    with exclusive(_lock_beside(path), path):
        check_new_directory(path)
        yield


def _lock_beside(path: Path) -> Path:
    resolved = path.resolve()
    return resolved.with_name(f".{resolved.name}{LOCK}")


def check_new_file(path: Path) -> None:
    """Raise RunError unless a file can be written to ``path``; nothing is changed."""
    parent = next(parent for parent in path.resolve().parents if parent.exists())
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"cannot write {path}: it is a directory, or stands in a place you may not write to; choose another -o")


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A neighbour to write files into, which becomes ``path`` at the end, or goes away when something fails.

    Raises:
        InUseError: when another process is filling ``path``.
        RunError: when it cannot be written.
    """
    with exclusive(_lock_beside(path), path):
        target = path.resolve()
        remove_left_over_directories(target)
        try:
            staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}; choose a place you may write to") from error
        try:
            yield staging
            staging.chmod(0o755)
            if ON_WINDOWS and target.is_dir():  # not run here: a directory cannot replace another, empty as it may be
                target.rmdir()
            os.replace(staging, target)  # onto nothing, or an empty directory
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunError(f"cannot write {path}: {error.strerror or error}; is the disk full?") from error
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


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], *, keep: Path | None = None) -> None:
    """:func:`write_bytes` for tensors, in the safetensors format, with a checksum of every byte among the metadata."""
    from safetensors.torch import save

    write_bytes(path, _sealed(save(dict(tensors)), metadata), keep)


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        DamagedFileError: when it cannot be read, or a checksum stands in it and does not fit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_seal(path)
        with safe_open(path, framework="pt") as file:
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key != "sha256"}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"cannot read {path}: {brief(error)}; is the run complete?") from error


def check_seal(path: Path) -> bool:
    """Compare a tensor file with the checksum in it; False when it has none, as files of other programs do.

    Raises:
        DamagedFileError: when they differ.
        OSError: when it cannot be read.
    """
    end = 8 + len(SEAL)
    with path.open("rb") as file:
        head = file.read(end + DIGITS)
        if head[8:end] != SEAL:
            return False
        digest = hashlib.sha256(head[:end] + b"0" * DIGITS)
        while block := file.read(READ_BYTES):
            digest.update(block)
    if digest.hexdigest().encode() != head[end:]:
        raise DamagedFileError(
            f"cannot read {path}: it is damaged, its checksum does not fit what is in it; take it from a copy, or write it anew"
        )
    return True


def _sealed(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with these metadata, and before them the SHA-256 of the file in which its own digits are zeros."""
    length = int.from_bytes(content[:8], "little")
    facts = {"sha256": "0" * DIGITS, **dict(sorted(metadata.items()))}
    text = json.dumps({"__metadata__": facts, **json.loads(content[8 : 8 + length])}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = bytearray(b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length :]]))
    begin = 8 + len(SEAL)
    whole[begin : begin + DIGITS] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole)


def file_name(text: str) -> str:
    """A name for a file or directory that every system takes, much like ``text``.

    >>> file_name("data.root=/tmp/a: b?")
    'data.root=_tmp_a_ b_'
    """
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", text).rstrip(". ")
    return name or "_"
