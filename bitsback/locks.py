"""Locks: one process at a time writes to a place, and a lock ends with the process that holds it.

A lock is a file that is made exclusively and locked by the operating system. Where a file system has no locks, the process
number in the file decides.
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
"""Names of temporary files and directories: what they were to become, and eight random characters."""

ON_WINDOWS = sys.platform == "win32"
FAR = 1 << 30
"""Byte that Windows locks: a locked byte cannot be read, so it lies far behind what the file says."""

OWNER_BYTES = 1000
TRUSTED_AGE_SECONDS = 60.0
"""On Windows a temporary file is closed, and so unlocked, just before it is renamed; a young one is left alone."""

_held: dict[str, tuple[int, int, int]] = {}  # lock file -> process, thread, how many times
_guard = threading.Lock()


class InUseError(RunError):
    """A place that another process is writing to."""


def lock_file(handle: int) -> bool | None:
    """Lock an open file until it is closed; False if somebody else has locked it, None if its file system has no locks."""
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
    """True if an open file is the one that stands at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


@contextmanager
def exclusive(lock: Path, subject: Path) -> Iterator[None]:
    """Hold a lock file; the same thread may do so several times. Folders made for it go away again if nothing else is written.

    Args:
        lock: the file, made here and removed at the end.
        subject: what it protects, for the message.

    Raises:
        InUseError: when another process, or another thread, holds it.
        RunError: when the place cannot be written.
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
                parent.rmdir()  # fails where something was written


def _enter(lock: Path, subject: Path) -> int | None:
    """Take the lock; the open file, or None if this thread has it already."""
    key, process, thread = str(lock.resolve()), os.getpid(), threading.get_ident()
    with _guard:
        owner, of, times = _held.get(key, (0, 0, 0))
        if owner != process:  # what a process held is not held by those it forks
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
    """Raise InUseError when another process holds a lock file; nothing is changed."""
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
    """Remove temporary files that processes left which were killed; those of living processes are locked, and stay.

    Args:
        folder: where they lie.
        target: name of the file that they were to become; None: any.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            name = LEFT_OVER.fullmatch(entry.name)
            if name and target in (None, name["target"]) and entry.is_file(follow_symlinks=False):
                _remove_if_left_over(entry.path)


def remove_left_over_directories(path: Path) -> None:
    """Remove temporary directories that were to become ``path``; the caller holds the lock that their writers held."""
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
                os.unlink(path)  # while it is locked: its writer would see that it is gone
        finally:
            os.close(handle)
        if ON_WINDOWS and is_left_over:
            os.unlink(path)


def _take(lock: Path, subject: Path) -> int:
    """Make or take over the lock file; returns it open and locked."""
    while True:
        try:
            handle, is_new = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                handle, is_new = os.open(lock, os.O_RDWR), False
            except FileNotFoundError:  # it was given back meanwhile
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
            with suppress(OSError):  # a full disk: the lock holds, but does not say whose it is
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, json.dumps(facts).encode())
            return handle
        os.close(handle)  # its owner removed it between the two steps


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
    """Who a lock file says made it; empty when it cannot be read."""
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
    """True if the process that made a lock is of this machine and has ended."""
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
