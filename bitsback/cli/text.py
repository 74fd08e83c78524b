"""Escaping of control characters in printed text."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["Escaping", "escaped_output", "printable"]

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, colour, hide or reverse text, and surrogates; tabs and newlines are allowed."""


def printable(text: str) -> str:
    """Return the text with control characters escaped, which names in an untrusted file may hold.

    Returns:
        The escaped text.

    >>> print(printable("a\x1b[31mb"))
    a\\x1b[31mb
    """
    return CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class Escaping:
    """Text stream that escapes control characters; ``terminal`` is the stream below it, for live displays."""

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream

    def write(self, text: str) -> int:
        """Write the text with control characters escaped; return its length."""
        self.terminal.write(printable(text))
        return len(text)

    def printable(self, text: str) -> str:
        """Return the text with control characters escaped."""
        return printable(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write several texts with control characters escaped."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape control characters in all that is printed to standard output."""
    before = sys.stdout
    sys.stdout = Escaping(before)
    try:
        yield
    finally:
        sys.stdout = before
