"""Atomic writing of files and directories, and tensor files with a checksum."""

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
    "write_arrays",
    "write_bytes",
    "write_tensors",
    "write_text",
]

SEAL = b'{"__metadata__":{"sha256":"'
"""First bytes of the header of a tensor file with a checksum; 64 hexadecimal digits of SHA-256 follow."""

DIGITS = 64
READ_BYTES = 1 << 20


class DamagedFileError(RunError):
    """Tensor file that cannot be read, or whose checksum is wrong."""


def write_bytes(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write a file atomically: to a temporary file beside it, which is then renamed. Readers see the old or the new content.

    Temporary files that killed writers of the same file left are removed.

    Args:
        path: file to write.
        content: its bytes.
        keep: path to which an existing file is moved first; None overwrites it.

    Raises:
        RunError: the file cannot be written.
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
            if not ON_WINDOWS:  # still open and so locked: no other writer removes it as left over
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
    """Create a temporary file beside ``path``; return it open and locked, with its name."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        lock_file(handle)
        if is_at(handle, temporary):
            return handle, temporary
        os.close(handle)  # another writer removed it as left over before it was locked


def check_new_directory(path: Path) -> None:
    """Check that ``path`` can become a new directory: it is missing or empty, and its parent is writable.

    Files of a training that was killed before its first step do not count as content.

    Raises:
        InUseError: another process is writing it.
        RunError: it is not empty, or cannot be written.
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
    """Return whether ``entry`` is a lock, a temporary file, or a file of a run that has not written its configuration."""
    if entry.name == LOCK or LEFT_OVER.fullmatch(entry.name):
        return True
    metrics = entry.parent / "metrics.jsonl"
    has_begun = (entry.parent / "config.yaml").exists() or not metrics.is_file() or metrics.stat().st_size > 0
    return not has_begun and entry.name in ("metrics.jsonl", "checkpoint")


@contextmanager
def new_directory(path: Path) -> Iterator[None]:
    """Lock a directory that is to be created, so that no other process begins to write it.

    Raises:
        InUseError: another process holds it.
        RunError: it is not empty, or cannot be written.
    """
    check_new_directory(path)
    with exclusive(path / LOCK, path):
        check_new_directory(path)  # another process may have written it before the lock was taken
        remove_left_over_files(path)
        (path / "metrics.jsonl").unlink(missing_ok=True)
        shutil.rmtree(path / "checkpoint", ignore_errors=True)
        yield


@contextmanager
def new_neighbour(path: Path) -> Iterator[None]:
    """Lock a directory that :func:`whole_directory` is to create, so that no other process begins to write it.

    Raises:
        InUseError: another process holds it.
        RunError: it is not empty, or cannot be written.
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
    """Create a directory atomically: files are written to a temporary directory, which is renamed to ``path`` at the end.

    ::

        .DIR.lock          held from begin to end
        .DIR.a1b2c3d4.tmp  files are written here  --success--> os.replace --> DIR
                                                   --error----> removed

    Yields:
        The temporary directory, beside ``path``.

    Raises:
        InUseError: another process is writing ``path``.
        RunError: it cannot be written.
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
            if ON_WINDOWS and target.is_dir():  # not run here: a directory cannot replace another, even an empty one
                target.rmdir()
            os.replace(staging, target)  # target is missing or an empty directory
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunError(f"cannot write {path}: {error.strerror or error}; is the disk full?") from error
            raise


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, atomically.

    Args:
        path: file to write.
        content: its text.
    """
    write_bytes(path, content.encode())


def write_array(path: Path, array: Any) -> None:
    """Write a NumPy array in the npy format, atomically.

    Args:
        path: file to write.
        array: any shape, no objects.
    """
    import io

    import numpy as np

    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_bytes(path, stream.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write NumPy arrays in the npz format, atomically.

    Args:
        path: file to write.
        arrays: by name; any shapes, no objects.
    """
    import io
    import zipfile

    import numpy as np

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # as numpy.savez does, which takes no array called "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_bytes(path, stream.getvalue())


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], *, keep: Path | None = None) -> None:
    """Write tensors in the safetensors format, atomically, with the SHA-256 of the file among the metadata.

    Args:
        path: file to write.
        tensors: by name.
        metadata: strings by name.
        keep: path to which an existing file is moved first; None overwrites it.
    """
    from safetensors.torch import save

    write_bytes(path, _sealed(save(dict(tensors)), metadata), keep)


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        Tensors by name; metadata by name, without the checksum.

    Raises:
        DamagedFileError: it cannot be read, or its checksum is wrong.
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
    """Verify the checksum of a tensor file.

    Returns:
        False if it has none, as files of other programs.

    Raises:
        DamagedFileError: the checksum is wrong.
        OSError: the file cannot be read.
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
    """Return a safetensors file with the metadata, preceded by the SHA-256 of the file with zeros in place of its digits."""
    length = int.from_bytes(content[:8], "little")
    facts = {"sha256": "0" * DIGITS, **dict(sorted(metadata.items()))}
    text = json.dumps({"__metadata__": facts, **json.loads(content[8 : 8 + length])}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = bytearray(b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length :]]))
    begin = 8 + len(SEAL)
    whole[begin : begin + DIGITS] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole)


def file_name(text: str) -> str:
    """Return ``text`` with the characters replaced that a file name may not hold on Linux, macOS or Windows.

    Returns:
        A name that is not empty.

    >>> file_name("data.root=/tmp/a: b?")
    'data.root=_tmp_a_ b_'
    """
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", text).rstrip(". ")
    return name or "_"
