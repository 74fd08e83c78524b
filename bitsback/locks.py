"""File locks: at most one process writes to a file or directory, and its lock ends when the process ends.

A lock is a file created exclusively and locked by the operating system (flock). On a file system without locks, the process
number in the file decides. The lock file is opened (created, or the existing one) and locked, with one of these outcomes::

    flock succeeds     file still at its path ........ lock is held
                       removed by its owner .......... retry
    flock is refused   ............................... InUseError
    no flock here      file is new ................... lock is held
                       owner on this machine has ended remove the file, retry
                       otherwise ..................... InUseError
"""

import errno
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from bitsback.errors import RunError

__all__ = [
    "LEFT_OVER",
    "LOCK",
    "ON_WINDOWS",
    "InUseError",
    "check_not_in_use",
    "exclusive",
    "is_at",
    "lock_file",
    "remove_left_over_directories",
    "remove_left_over_files",
]

LOCK = ".lock"
"""Name of the lock file in a directory that is being written."""

LEFT_OVER = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)
"""Names of temporary files and directories: ``.TARGET.RANDOM.tmp`` with eight random characters."""

ON_WINDOWS = sys.platform == "win32"
FAR = 1 << 30
"""Offset of the byte that is locked on Windows; a locked byte cannot be read, so it lies beyond the content."""

OWNER_BYTES = 1000
TRUSTED_AGE_SECONDS = 60.0
"""Minimum age of a temporary file to be removed on Windows, where it is closed and so unlocked just before it is renamed."""

_held: dict[str, tuple[int, int, int]] = {}  # lock file -> process, thread, nesting depth
_guard = threading.Lock()


class InUseError(RunError):
    """File or directory that another process is writing."""


def lock_file(handle: int) -> bool | None:
    """Lock an open file until it is closed; False if another process holds the lock, None if the file system has no locks."""
    if sys.platform == "win32":  # not run here
        import msvcrt

        os.lseek(handle, FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return False if error.errno in (errno.EACCES, errno.EDEADLK) else None
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


def is_at(handle: int, path: str | Path) -> bool:
    """Return whether an open file is still the one at ``path``.

    Args:
        handle: file descriptor.
        path: name to compare with.

    Returns:
        False also if there is no file at ``path``.
    """
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


@contextmanager
def exclusive(lock: Path, subject: Path) -> Iterator[None]:
    """Hold a lock file; re-entrant within a thread. Folders created for it are removed at the end if they are empty.

    Args:
        lock: lock file, created here and removed at the end.
        subject: the protected file or directory, for the message.

    Yields:
        None, while the lock is held.

    Raises:
        InUseError: another process, or another thread, holds the lock.
        RunError: the lock file cannot be written.
    """
    missing = [parent for parent in lock.parents if not parent.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _enter(lock, subject)
    except OSError as error:
        raise RunError(f"cannot write {subject}: {error.strerror or error}; choose a place you may write to") from error
    try:
        yield
    finally:
        _leave(handle, lock)
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()  # fails if something was written there


def _enter(lock: Path, subject: Path) -> int | None:
    """Take the lock; return the open file, or None if this thread holds it already."""
    key, process, thread = str(lock.resolve()), os.getpid(), threading.get_ident()
    with _guard:
        owner, of, times = _held.get(key, (0, 0, 0))
        if owner != process:  # a forked child does not hold its parent's locks
            handle = _take(lock, subject)
            _held[key] = (process, thread, 1)
            return handle
        if of != thread:
            raise InUseError(_refusal(subject, f"another thread of this process ({process})"))
        _held[key] = (process, thread, times + 1)
        return None


def _leave(handle: int | None, lock: Path) -> None:
    key = str(lock.resolve())
    with _guard:
        if handle is None:
            process, thread, times = _held[key]
            _held[key] = (process, thread, times - 1)
        else:
            del _held[key]
            _release(handle, lock)


def check_not_in_use(lock: Path, subject: Path) -> None:
    """Check that no other process holds a lock file; nothing is changed.

    Args:
        lock: lock file, which may be missing.
        subject: the protected file or directory, for the message.

    Raises:
        InUseError: another process holds it.
    """
    if _held.get(str(lock.resolve()), (0, 0, 0))[0] == os.getpid():
        return
    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return
    try:
        owner = _owner(handle)
        got = lock_file(handle)
        if got is False or (got is None and not _has_ended(owner)):
            raise InUseError(_refusal(subject, _told(owner)))
    finally:
        os.close(handle)


def remove_left_over_files(folder: Path, target: str | None = None) -> None:
    """Remove temporary files of killed processes; those of running processes are locked and stay.

    Args:
        folder: directory to clean.
        target: name of the file that was being written; None: any.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            name = LEFT_OVER.fullmatch(entry.name)
            if name and target in (None, name["target"]) and entry.is_file(follow_symlinks=False):
                _remove_if_left_over(entry.path)


def remove_left_over_directories(path: Path) -> None:
    """Remove temporary directories of killed writers of ``path``; the caller must hold the lock of ``path``."""
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            name = LEFT_OVER.fullmatch(entry.name)
            if name and name["target"] == path.name and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)


def _remove_if_left_over(path: str) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR)
        try:
            is_left_over = lock_file(handle) is True and is_at(handle, path)
            if ON_WINDOWS:  # not run here
                is_left_over = is_left_over and time.time() - os.fstat(handle).st_mtime > TRUSTED_AGE_SECONDS
            elif is_left_over:
                os.unlink(path)  # while it is locked: a writer that locks it next sees with is_at that it is gone
        finally:
            os.close(handle)
        if ON_WINDOWS and is_left_over:
            os.unlink(path)


def _take(lock: Path, subject: Path) -> int:
    """Create the lock file, or take over an abandoned one; return it open and locked."""
    while True:
        try:
            handle, is_new = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                handle, is_new = os.open(lock, os.O_RDWR), False
            except FileNotFoundError:  # it was released meanwhile
                continue
        owner = _owner(handle)
        got = lock_file(handle)
        if got is None and not is_new and is_at(handle, lock) and _has_ended(owner):
            os.close(handle)
            os.unlink(lock)
            continue
        if got is False or (got is None and not is_new):
            os.close(handle)
            raise InUseError(_refusal(subject, _told(owner)))
        if is_at(handle, lock):
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            with suppress(OSError):  # disk full: the lock holds, but does not name its owner
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, json.dumps(facts).encode())
            return handle
        os.close(handle)  # its owner removed it between open and lock


def _release(handle: int, lock: Path) -> None:
    mine = is_at(handle, lock)
    if ON_WINDOWS:  # not run here: an open file cannot be removed
        os.close(handle)
    with suppress(OSError):
        if mine:
            os.unlink(lock)
    if not ON_WINDOWS:
        os.close(handle)


def _owner(handle: int) -> dict[str, object]:
    """Return the owner written in a lock file; empty if it cannot be read."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        return dict(json.loads(os.read(handle, OWNER_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _told(owner: dict[str, object]) -> str:
    facts = [re.sub(r"[^\w.: -]", "?", str(owner.get(name, "unknown")))[:64] for name in ("pid", "host", "since")]
    return "process {} on {} since {}".format(*facts)


def _refusal(subject: Path, who: str) -> str:
    return f"{subject} is being written by {who}; wait until it has finished, end it, or choose another place"


def _has_ended(owner: dict[str, object]) -> bool:
    """Return whether the owner of a lock ran on this machine and has ended."""
    number = owner.get("pid")
    if ON_WINDOWS or owner.get("host") != socket.gethostname() or not isinstance(number, int) or number <= 0:
        return False  # Windows has locks; there, os.kill(pid, 0) would end the process
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
