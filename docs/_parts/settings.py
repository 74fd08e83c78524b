"""Every setting of a configuration, from the schema that validates it."""

import json
from typing import Any

from made import Made
from text import code, table, unmarked

from bitsback.config import json_schema

INTRODUCTION = """# Every setting

A configuration is YAML; every key is optional unless its default is "required", and unknown keys are errors. This page is
made from the schema that validates it (`bitsback schema`); how to use it is in [Training and configuration](../training.md).

"""
KIND = "kind"
DASH = "\u2013"


class Pages:
    """Sections for every definition of the schema, each once, in the order in which they are met."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema, self._definitions = schema, schema["$defs"]
        self._waiting: list[tuple[str, str]] = []
        self._done: set[str] = set()

    def text(self) -> str:
        """All of the page below its introduction."""
        parts = ["## The sections of a file\n", self._fields(self._schema["properties"], set(), "")]
        for key in self._schema["properties"]:
            before = len(self._waiting)
            self._kinds(self._schema["properties"][key], key)
            if before < len(self._waiting):
                parts.append(f"\n## {key}\n")
                parts += [self._definition(*each) for each in self._drain()]
        return "\n".join(parts)

    def _drain(self) -> Any:
        while self._waiting:
            yield self._waiting.pop(0)

    def _definition(self, name: str, path: str) -> str:
        found = self._definitions[name]
        required = set(found.get("required", ()))
        for key, value in found["properties"].items():
            self._kinds(value, f"{path.partition(':')[0]}.{key}")
        about = found.get("description", "")
        return f"({anchor(name)})=\n### {path}\n\n{unmarked(about)}\n\n{self._fields(found['properties'], required, path)}"

    def _fields(self, properties: dict[str, Any], required: set[str], path: str) -> str:
        rows = []
        for key, value in properties.items():
            if key == KIND and len(constants(value)) == 1:
                continue  # the heading says it
            default = "required" if key in required else shown(value)
            about = value.get("description") or self._about(value)
            rows.append([code(key), self._type(value), default, unmarked(about)])
        if not rows:
            return "Nothing to set.\n"
        return table(["setting", "value", "default", "meaning"], rows)

    def _about(self, value: dict[str, Any]) -> str:
        """What the one section says of itself that a setting leads to."""
        found = self._definitions[value["$ref"].rpartition("/")[2]] if "$ref" in value else {}
        return str(found.get("description", "")).partition("\n\n")[0]

    def _kinds(self, value: dict[str, Any], path: str) -> None:
        for name in references(value):
            if name not in self._done:
                self._done.add(name)
                kind = self._definitions[name]["properties"].get(KIND, {})
                self._waiting.append((name, f"{path}: {' or '.join(constants(kind))}" if constants(kind) else path))

    def _type(self, value: dict[str, Any]) -> str:
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2]
            kinds = constants(self._definitions[name]["properties"].get(KIND, {}))
            return f"[{', '.join(kinds) or 'a section'}](#{anchor(name)})"
        options = value.get("oneOf") or value.get("anyOf")
        if options:
            return " or ".join(dict.fromkeys(self._type(option) for option in options))
        if constants(value):
            return ", ".join(code(each) for each in constants(value))
        if value.get("type") == "array":
            items = value.get("items") or (value.get("prefixItems") or [{}])[0]
            return f"list of {self._type(items)}"
        if isinstance(value.get("additionalProperties"), dict):
            return f"by name: {self._type(value['additionalProperties'])}"
        return {"null": "null", "object": "mapping"}.get(value.get("type", ""), value.get("type", "any")) + limits(value)


def anchor(name: str) -> str:
    """Where a definition stands on the page."""
    return f"setting-{name.lower()}"


def constants(value: dict[str, Any]) -> list[str]:
    """The values that are allowed, where they can be counted."""
    return [str(each) for each in value.get("enum", [value["const"]] if "const" in value else [])]


def references(value: Any) -> list[str]:
    """The definitions that a schema names, in order."""
    if isinstance(value, list):
        return [name for each in value for name in references(each)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"].rpartition("/")[2]] if "$ref" in value else []
    return own + [name for key, each in value.items() if key not in ("default", "discriminator") for name in references(each)]


def limits(value: dict[str, Any]) -> str:
    """What a number may be."""
    signs = {"minimum": "\u2265", "exclusiveMinimum": ">", "maximum": "\u2264", "exclusiveMaximum": "<"}
    found = [f"{sign} {value[key]:,}" for key, sign in signs.items() if key in value]
    return f" {', '.join(found)}" if found else ""


def shown(value: dict[str, Any]) -> str:
    """The default, short: of a section only its kind."""
    default = value.get("default")
    if isinstance(default, dict) and default:
        return code(str(default[KIND])) if KIND in default else "see below"
    return DASH if default is None or default == {} else code(json.dumps(default) if not isinstance(default, str) else default)


def make(made: Made) -> None:
    """Write reference/settings.md."""
    made.write("reference/settings.md", INTRODUCTION + Pages(json_schema()).text())
