"""Readable messages for validation errors: file, line, key, the allowed values and the nearest match."""

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bitsback.config.schema import Config
from bitsback.errors import near_miss

__all__ = ["KeyPath", "Origins", "Problem", "describe_all", "where_is"]

KeyPath = tuple[str | int, ...]
"""Keys and list indices that lead from the top of a configuration to one value."""
Origins = dict[KeyPath, str]
"""File and line (``file:line``) of each key path."""


WRONG_FORM = {"model_type", "model_attributes_type", "dict_type", "dict_attributes_type"}
"""Pydantic's error types for a value that should have been a mapping."""


SHOWN_CHARACTERS = 200
"""Characters of a value that a message quotes."""


@dataclass(frozen=True)
class Problem:
    """One validation error and its position in the configuration.

    Attributes:
        error: pydantic's error.
        key_path: position of the value.
        of_union: whether the error concerns one member of a union of types.
        value: the value at that position.
        word: literal such as ``'auto'`` that is allowed there in place of a number.
    """

    error: ErrorDetails
    key_path: KeyPath
    of_union: bool
    value: Any
    word: str = ""

    @property
    def is_about_another_form(self) -> bool:
        """Return whether the error is a scalar member's complaint about a mapping, or a mapping member's about a scalar."""
        expects_mapping = self.error["type"] in WRONG_FORM
        if isinstance(self.value, dict):
            return (
                self.of_union
                and self.error["type"] not in ("missing", "extra_forbidden", "value_error")
                and not expects_mapping
            )
        return self.of_union and expects_mapping


def describe_all(errors: Sequence[ErrorDetails], values: dict[str, Any], origins: Origins, file: str) -> list[str]:
    """Return one message for each distinct error.

    Args:
        errors: pydantic's errors.
        values: the configuration that was validated, as nested dictionaries.
        origins: file and line of its keys.
        file: named for keys without an origin.

    Returns:
        messages of the form ``file:line: dotted.key: the error; the allowed values``.
    """
    problems = _with_words([_locate(error, values) for error in errors])
    key_paths = {problem.key_path for problem in problems}
    kept = []
    for problem in problems:
        begin, depth = problem.key_path, len(problem.key_path)
        others = [other for other in problems if other.key_path[:depth] == begin and other is not problem]
        deeper = any(key_path != begin and key_path[:depth] == begin for key_path in key_paths)
        # pydantic drops invalid items of a list, and then reports that the list is too short
        echo = problem.error["type"] == "too_short" and deeper
        if not echo and not (problem.is_about_another_form and any(not other.is_about_another_form for other in others)):
            kept.append(_sentence(problem, values, origins, file))
    return list(dict.fromkeys(kept))


def _with_words(problems: list[Problem]) -> list[Problem]:
    """Merge the two errors of a value that may be a number or a word such as 'auto', and is neither."""
    words = {
        problem.key_path: problem.error["ctx"]["expected"] for problem in problems if problem.error["type"] == "literal_error"
    }
    numbers = [problem for problem in problems if problem.error["type"] != "literal_error"]
    both = {problem.key_path for problem in numbers} & words.keys()
    merged = [replace(problem, word=words[problem.key_path]) if problem.key_path in both else problem for problem in numbers]
    return [
        *merged,
        *(problem for problem in problems if problem.error["type"] == "literal_error" and problem.key_path not in both),
    ]


def _sentence(problem: Problem, values: dict[str, Any], origins: Origins, file: str) -> str:
    key_path = (*problem.key_path, "kind") if problem.error["type"] == "union_tag_invalid" else problem.key_path
    where = where_is(key_path, origins, file)
    key = ".".join(str(part) for part in problem.key_path) or "configuration"
    return f"{where}: {key}: {_problem(problem.error, problem.key_path, values, problem.word)}"


def where_is(key_path: KeyPath, origins: Origins, file: str) -> str:
    """Return file and line of a key, or of the nearest enclosing section that has them.

    Args:
        key_path: position of the key.
        origins: file and line of the known keys.
        file: returned if nothing on the path has an origin.

    Returns:
        ``file:line``, or ``file``.
    """
    return next((origins[key_path[:depth]] for depth in range(len(key_path), 0, -1) if key_path[:depth] in origins), file)


def _problem(error: ErrorDetails, key_path: KeyPath, values: dict[str, Any], word: str = "") -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _fields_at(key_path[:-1], values)
        return f"unknown key{near_miss(str(key_path[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return "this key is required here"
    if kind in WRONG_FORM:
        example = "{kind: NAME}" if kind == "model_attributes_type" else "{key: value}"
        return f"give a mapping, such as {example}, got {_shown(error['input'])}"
    if kind == "tuple_type":
        said = _shown(error["input"])
        return f"give a list, such as [{said}], got {said}"
    if kind == "union_tag_not_found":
        return "a section needs its kind; set it with kind: NAME"
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
        return f"unknown kind '{context['tag']}'{near_miss(str(context['tag']), tags)}; allowed: {', '.join(tags)}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message += f" (or {word})" if word else ""
    return f"{message}, got {_shown(error['input'])}" if kind != "value_error" else message


def _shown(value: Any) -> str:
    """Return the repr of a value, cut off after :data:`SHOWN_CHARACTERS` characters."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _locate(error: ErrorDetails, values: Any) -> Problem:
    """Find an error's position: its location without the union tags and member names that pydantic inserts."""
    key_path: list[str | int] = []
    node, of_union, location = values, False, error["loc"]
    for position, part in enumerate(location):
        last = position == len(location) - 1
        known = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if not known and not (last and error["type"] == "missing"):
            of_union |= not (isinstance(node, dict) and node.get("kind") == part)
            continue
        key_path.append(part)
        node = node[part] if known else None
    return Problem(error, tuple(key_path), of_union, node)


def _fields_at(key_path: KeyPath, values: Any) -> list[str]:
    """List the keys that are allowed in a section of the configuration."""
    models: list[Any] = [Config]
    node = values
    for part in key_path:
        node = node.get(part) if isinstance(node, dict) else node[part] if isinstance(node, list) else None  # type: ignore[index]
        following: list[Any] = []
        for model in models:
            if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
                following += _members(model.model_fields[str(part)].annotation)
        tag = node.get("kind") if isinstance(node, dict) else None
        following = following or models  # a free key, such as a name pattern: the classes found so far apply to its value
        models = [m for m in following if tag is None or "kind" not in m.model_fields or m.model_fields["kind"].default == tag]
    return sorted({field for model in models for field in model.model_fields})


def _members(annotation: Any) -> list[type[BaseModel]]:
    """List the settings classes inside an annotation: through unions, Annotated, dicts and tuples."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [member for inner in typing.get_args(annotation) for member in _members(inner)]
