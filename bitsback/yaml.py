"""YAML from untrusted sources: length, nesting, aliases and integers are checked before the text is loaded."""

import re
from pathlib import Path
from typing import Any, Literal

from bitsback import limits
from bitsback.errors import ConfigError

__all__ = ["load_yaml", "read_text"]

WHOLE = re.compile(r"[-+]?(0[box])?[0-9a-fA-F_:]+")
DIGIT = re.compile(r"[0-9a-fA-F]")


def read_text(path: Path) -> str:
    """Read a UTF-8 text file up to the limit ``BITSBACK_LIMIT_TEXT``.

    Returns:
        The text, with newlines as ``\\n`` and without byte order mark.

    Raises:
        ConfigError: it is longer than the limit.
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    most = limits.TEXT.value
    with path.open("rb") as file:
        content = file.read(most + 1)
        if len(content) > most:
            limits.TEXT.check(max(path.stat().st_size, len(content)), str(path), ConfigError)
    return content.decode("utf-8-sig").replace("\r\n", "\n")


def load_yaml(text: str, what: str, kind: Literal["rt", "safe"] = "safe") -> Any:
    """Load a YAML 1.2 text.

    Args:
        text: one document.
        what: name of the text in messages; a colon and the line number follow.
        kind: ``safe`` for plain values, ``rt`` for ruamel's round-trip values, which hold their line numbers.

    Returns:
        The document's value.

    Raises:
        ConfigError: the text exceeds a limit, or holds a value that cannot be read.
        ruamel.yaml.error.YAMLError: the text is not YAML.

    >>> load_yaml("{a: [1, 2e3]}", "the text")
    {'a': [1, 2000.0]}
    >>> load_yaml("a: &a [*a]", "the text")
    Traceback (most recent call last):
    bitsback.errors.ConfigError: the text:1: the alias 'a' stands inside what it stands for; write the value out
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        _check(text, what)
        return YAML(typ=kind, pure=True).load(text)
    except (YAMLError, ConfigError):
        raise
    except RecursionError as error:
        raise ConfigError(f"{what}: its values are nested too deeply; write them out flat") from error
    except Exception as error:  # an invalid date, a tag without a value: ruamel passes on Python's errors
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"{what}: a value cannot be read ({reason}); put text into quotes") from error


def _check(text: str, what: str) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    limits.TEXT.check(len(text.encode(errors="replace")), what, ConfigError)
    values, sizes, begun = 0, dict[str, int](), list[tuple[str | None, int]]()
    for event in YAML(typ="safe", pure=True).parse(text):
        here = f"{what}:{event.start_mark.line + 1}"
        if isinstance(event, CollectionStartEvent):
            values += 1
            begun.append((event.anchor, values))
            limits.DEPTH.check(len(begun), here, ConfigError, "write it flat")
        elif isinstance(event, CollectionEndEvent):
            anchor, before = begun.pop()
            if anchor is not None:
                sizes[anchor] = values - before + 1
        elif isinstance(event, ScalarEvent):
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if WHOLE.fullmatch(event.value):
                limits.DIGITS.check(len(DIGIT.findall(event.value)), f"{here}: a number", ConfigError, "put text into quotes")
        elif isinstance(event, AliasEvent):
            if event.anchor in [anchor for anchor, _ in begun]:
                raise ConfigError(f"{here}: the alias '{event.anchor}' stands inside what it stands for; write the value out")
            values += sizes.get(event.anchor, 0)
        limits.VALUES.check(values, f"{here}: with its aliases written out, it", ConfigError, "use fewer")
