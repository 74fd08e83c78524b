"""Aligned plain text that survives a pipe, and no control characters on the way out."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["Escaping", "escaped_output", "printable"]

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, colours, hides or turns around text, and what no encoding can write; tabs and line ends stay."""


def printable(text: str) -> str:
    """The text with control characters written out: names in a stranger's file can hold any.

    >>> print(printable("a\x1b[31mb"))
    a\\x1b[31mb
    """
    return CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class Escaping:
    """A stream that writes control characters out; what draws on the terminal takes the stream itself: ``terminal``."""

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream

    def write(self, text: str) -> int:
        """Write the text, printable."""
        self.terminal.write(printable(text))
        return len(text)

    def printable(self, text: str) -> str:
        """Return the text as this stream would write it."""
        return printable(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write several texts, printable."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Inside, nothing that is printed to standard output holds control characters."""
    before = sys.stdout
    sys.stdout = Escaping(before)
    try:
        yield
    finally:
        sys.stdout = before
