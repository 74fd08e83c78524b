"""Pieces of Markdown."""

import re
from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines) + "\n"


def code(value: str) -> str:
    """Text in the type of code, backticks and all."""
    return f"`` {value} ``" if "`" in value else f"`{value}`"


def unmarked(text: str) -> str:
    """A docstring's prose as Markdown: roles become code, and its doctests are left out."""
    prose = "\n\n".join(part for part in text.split("\n\n") if not part.lstrip().startswith(">>>"))
    prose = re.sub(r":[a-z:]+:`~?(?:[^`<]*<)?([^`>]*)>?`", r"`\1`", prose).replace("``", "`")
    parts = re.split(r"(`[^`]*`)", prose)
    return "".join(part if odd % 2 else re.sub(r"([{*<\[_])", r"\\\1", part) for odd, part in enumerate(parts))


def toctree(names: Sequence[str], *options: str) -> str:
    """A table of contents of these pages."""
    return "\n".join(["```{toctree}", *(f":{option}:" for option in options), "", *names, "```", ""])
