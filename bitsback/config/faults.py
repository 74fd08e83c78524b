"""What is wrong with a configuration, in sentences with file, line and a near miss."""

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bitsback.config.schema import Config
from bitsback.errors import near_miss

Place = tuple[str | int, ...]
Origins = dict[Place, str]


def describe(error: ErrorDetails, values: dict[str, Any], origins: Origins, file: str) -> str:
    """One fault as ``file:line: dotted.key: what is wrong; what is allowed``."""
    place = _without_tags(error["loc"], values)
    where = next((origins[place[:depth]] for depth in range(len(place), 0, -1) if place[:depth] in origins), file)
    key = ".".join(str(part) for part in place) or "configuration"
    return f"{where}: {key}: {_problem(error, place, values)}"


def _problem(error: ErrorDetails, place: Place, values: dict[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = list(_fields_at(place[:-1], values))
        return f"unknown key{near_miss(str(place[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return "this key is required here"
    if kind == "union_tag_not_found":
        return "a section needs its kind; set it with kind: NAME"
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
        return f"unknown kind '{context['tag']}'{near_miss(str(context['tag']), tags)}; allowed: {', '.join(tags)}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{message}, got {error['input']!r}" if kind != "value_error" else message


def _without_tags(location: Place, values: Any) -> Place:
    """Drop the union tags that pydantic puts into a location: they are not keys of the file."""
    place: list[str | int] = []
    node: Any = values
    for position, part in enumerate(location):
        is_tag = isinstance(node, dict) and part not in node and node.get("kind") == part
        if is_tag or (isinstance(part, str) and part.startswith("function-")):
            continue
        is_type = isinstance(part, str) and not isinstance(node, dict | list) and position == len(location) - 1
        if is_type:  # the member of a plain union that was tried, such as 'int'
            continue
        place.append(part)
        known = isinstance(node, dict) and part in node
        node = node[part] if known or (isinstance(node, list) and isinstance(part, int) and part < len(node)) else None
    return tuple(place)


def _fields_at(place: Place, values: Any) -> list[str]:
    """The keys that a section of the configuration may have."""
    models: list[Any] = [Config]
    node = values
    for part in place:
        node = node.get(part) if isinstance(node, dict) else node[part] if isinstance(node, list) else None  # type: ignore[index]
        following: list[Any] = []
        for model in models:
            if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
                following += _members(model.model_fields[str(part)].annotation)
        tag = node.get("kind") if isinstance(node, dict) else None
        models = [m for m in following if tag is None or "kind" not in m.model_fields or m.model_fields["kind"].default == tag]
    return sorted({field for model in models for field in model.model_fields})


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside an annotation: through unions, Annotated, dicts and tuples."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [member for inner in typing.get_args(annotation) for member in _members(inner)]
