"""Standard streams that may be closed, on a full disk, or of a limited encoding: a command finishes and then reports it."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bitsback.locks import ON_WINDOWS

__all__ = ["Sink", "output_that_may_fail"]

CLOSED = 141
"""Exit code after the reader of a pipe has closed it: 128 plus the number of SIGPIPE."""


class Sink(io.RawIOBase):
    """Raw stream that keeps its first write error and discards all bytes after it."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, content: Any) -> int | None:
        """Write bytes; return the count written, or discarded after an error."""
        if self.error is None:
            try:
                return int(self._raw.write(content))
            except OSError as error:
                self.error = error
        return len(content)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        """Return the file descriptor of the stream."""
        return int(self._raw.fileno())

    @property
    def is_closed_pipe(self) -> bool:
        """Whether the reader has closed the pipe; on Windows (not run here) the error is EINVAL."""
        return self.error is not None and self.error.errno in (errno.EPIPE, *([errno.EINVAL] if ON_WINDOWS else []))


@contextmanager
def output_that_may_fail() -> Iterator[None]:
    """Keep printing from raising: characters that the encoding lacks are escaped, and write errors are reported at the end.

    Raises:
        SystemExit: always. The code is the command's own; if the command succeeded but its output failed, 141 for a pipe
            that its reader closed, else 1 after a message.
    """
    _open_missing_streams()
    before = (sys.stdout, sys.stderr)
    sinks: list[Sink | None] = []
    sys.stdout, sys.stderr = (_wrapped(stream, sinks) for stream in before)
    code: Any = 0
    try:
        yield
    except SystemExit as stopped:
        code = stopped.code
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError, OSError):
                stream.flush()
        (sys.stdout, sys.stderr) = before
    out = sinks[0]
    if not code and out is not None and out.error is not None:
        code = CLOSED if out.is_closed_pipe else 1
        if code != CLOSED:
            reason = out.error.strerror or out.error
            with suppress(OSError):
                print(f"bitsback: cannot write to standard output: {reason}; what was to be written to files is there",
                      file=sys.stderr, flush=True)  # fmt: skip
    sys.exit(code)


def _wrapped(stream: Any, sinks: list[Sink | None]) -> Any:
    """Return the stream on a :class:`Sink`; the stream itself if it is not a file, or is the Windows console."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer if isinstance(buffer, io.FileIO) else None)  # python -u: already raw
    if raw is None or (ON_WINDOWS and stream.isatty()):
        sinks.append(None)
        return stream
    with suppress(OSError, ValueError):
        stream.flush()
    sink = Sink(raw)
    sinks.append(sink)
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    by_line = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(io.BufferedWriter(sink), stream.encoding, errors, line_buffering=by_line)


def _open_missing_streams() -> None:
    """Open streams that were closed at the start; else the next opened file gets their number and receives the output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
