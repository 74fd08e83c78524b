"""Pieces of Markdown."""

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


def toctree(names: Sequence[str], *options: str) -> str:
    """A table of contents of these pages."""
    return "\n".join(["```{toctree}", *(f":{option}:" for option in options), "", *names, "```", ""])
