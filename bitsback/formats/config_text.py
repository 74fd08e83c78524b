"""Compact encoding of a configuration: the deflated difference from the nearest of some frozen configurations.

The lists (``settings_1.json``, ``settings_2.json``) belong to format version 1. They never change, because the JSON files are
also the dictionaries of the compression: a file stays decodable whatever the defaults of later releases are. A configuration
of the first list takes one byte, one of the second two.
"""

import json
import zlib
from functools import cache
from importlib.resources import files
from typing import Any

from bitsback import limits
from bitsback.errors import FileError
from bitsback.formats.container import BitReader, BitWriter

__all__ = ["Tree", "bases", "difference", "put_settings", "take_settings"]

Tree = dict[str, Any]
UNCHANGED_BITS, SECOND_BITS = 7, 8
SECOND_LIST = 127


def put_settings(writer: BitWriter, settings: Tree) -> None:
    """Write a tree of JSON values.

    One bit: changed or not; seven bits: number of the base, or 127 and eight bits: its number in the second list; if changed,
    the number of bytes of the deflated difference (a count) and those bytes.

    Args:
        writer: receives the bits.
        settings: configuration as a tree of JSON values.
    """
    first = len(bases(1))
    texts = [_difference_text(base, settings, 1 if k < first else 2) for k, base in enumerate(bases())]
    number = min(range(len(texts)), key=lambda k: (len(texts[k]) + (k >= first), k))
    writer.put(int(bool(texts[number])), 1)
    writer.put(number if number < first else SECOND_LIST, UNCHANGED_BITS)
    if number >= first:
        writer.put(number - first, SECOND_BITS)
    if texts[number]:
        writer.put_count(len(texts[number]))
        for byte in texts[number]:
            writer.put(byte, 8)


def take_settings(reader: BitReader) -> Tree:
    """Read what :func:`put_settings` wrote; raises FileError if it is not valid."""
    changed, number, which = reader.take(1), reader.take(UNCHANGED_BITS), 1
    if number == SECOND_LIST:
        number, which = reader.take(SECOND_BITS), 2
    if number >= len(bases(which)):
        raise FileError(f"the file builds on configuration {number}, which format version 1 does not have; it is damaged")
    base = json.loads(json.dumps(bases(which)[number]))
    if not changed:
        return base
    count = reader.take_count()
    limits.TEXT.check(count, "the file's configuration", FileError, "it is damaged")
    if 8 * count > reader.bits_left:
        raise FileError("the file ends before its contents do; it is damaged or incomplete")
    text = bytes(reader.take(8) for _ in range(count))
    try:
        inflater = zlib.decompressobj(-15, zdict=_dictionary(which))
        plain = inflater.decompress(text, limits.TEXT.value)
        if not inflater.eof or inflater.unused_data:
            raise ValueError("not one deflated text")
        changes, removals = json.loads(plain, parse_int=_whole)
        patched = _patched(base, changes, removals)
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise FileError("the file's configuration cannot be read; it is damaged") from error
    limits.DEPTH.check(limits.depth_of(patched), "the file's configuration", FileError, "it is damaged")
    return patched


def _whole(text: str) -> int:
    limits.DIGITS.check(len(text), "a number in the file's configuration", FileError, "it is damaged")
    return int(text)


@cache
def bases(which: int | None = None) -> list[Tree]:
    """Return the frozen configurations of format version 1: of one list, or of both, one after the other."""
    return [*bases(1), *bases(2)] if which is None else list(json.loads(_list(which)))


@cache
def _list(which: int) -> bytes:
    return (files("bitsback.formats") / f"settings_{which}.json").read_bytes()


@cache
def _dictionary(which: int) -> bytes:
    """Return the compression dictionary of a list; the part most similar to the text comes last."""
    return _list(1) if which == 1 else _list(1) + _list(2)


def _difference_text(base: Tree, settings: Tree, which: int) -> bytes:
    changes, removals = difference(base, settings)
    if not changes and not removals:
        return b""
    plain = json.dumps([changes, removals], separators=(",", ":")).encode()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_dictionary(which))
    return deflater.compress(plain) + deflater.flush()


def difference(base: Tree, settings: Tree) -> tuple[list[list[Any]], list[list[str]]]:
    """Return the changes and removals that turn one tree into another.

    Args:
        base: tree to start from.
        settings: tree to arrive at.

    Returns:
        changes ``[key, key, ..., value]`` and removals ``[key, key, ...]``.

    >>> difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    ([['a', 'b', 3]], [['a', 'c']])
    """
    changes: list[list[Any]] = []
    removals: list[list[str]] = [[key] for key in base if key not in settings]
    for key, value in settings.items():
        old = base.get(key, _MISSING)
        if isinstance(old, dict) and isinstance(value, dict):
            inner_changes, inner_removals = difference(old, value)
            changes += [[key, *change] for change in inner_changes]
            removals += [[key, *removal] for removal in inner_removals]
        elif old is _MISSING or not _same(old, value):
            changes.append([key, value])
    return changes, removals


_MISSING = object()


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)


def _patched(base: Tree, changes: list[list[Any]], removals: list[list[str]]) -> Tree:
    for change in changes:
        *path, key = _keys(change[:-1])
        _inside(base, path)[key] = change[-1]
    for removal in removals:
        *path, key = _keys(removal)
        del _inside(base, path)[key]
    return base


def _keys(found: Any) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
        raise ValueError("not a list of keys")
    return found


def _inside(tree: Tree, path: list[str]) -> Tree:
    for key in path:
        tree = tree[key]
    return tree
