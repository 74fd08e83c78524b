"""Standard output and error that may be closed, full, or of few characters: a command ends its work, and says so."""

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
"""Exit code when the reader of a pipe went away: 128 and the number of SIGPIPE."""


class Sink(io.RawIOBase):
    """The bytes of a stream; after the first error, which is kept, they go nowhere."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, content: Any) -> int | None:
        if self.error is None:
            try:
                return int(self._raw.write(content))
            except OSError as error:
                self.error = error
        return len(content)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    @property
    def is_closed_pipe(self) -> bool:
        """Whether nobody reads any more; Windows says EINVAL (not run here)."""
        return self.error is not None and self.error.errno in (errno.EPIPE, *([errno.EINVAL] if ON_WINDOWS else []))


@contextmanager
def output_that_may_fail() -> Iterator[None]:
    """Inside, printing never raises: characters that a stream does not have are escaped, and errors wait until the end.

    Raises:
        SystemExit: always; with the command's code, but 141 for one that succeeded while the reader of standard output went
            away, and 1, after a sentence, for one whose output could not be written for another reason.
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
    """The same stream on a :class:`Sink`; itself where it is no file, or the console of Windows."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer if isinstance(buffer, io.FileIO) else None)  # python -u has no buffer between
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
    """Open what was closed before the start: the next file would get its number, and what is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
