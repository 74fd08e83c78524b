"""Read a configuration: YAML 1.2, ``extends``, overrides; all errors are reported together, with file and line."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.representer import SafeRepresenter

from bitsback import limits
from bitsback.config._explain import KeyPath, Origins, describe_all, where_is
from bitsback.config._shipped import configuration_file
from bitsback.config.schema import Config
from bitsback.errors import ConfigError
from bitsback.yaml import load_yaml, read_text

__all__ = ["load_config", "parse_value", "to_yaml", "validated"]

UNICODE_BREAKS = {"\x85", "\u2028", "\u2029"}
"""Characters that YAML 1.1 reads as line breaks."""

SHOWN_CHARACTERS = 80
"""Characters that a message quotes of a value that cannot be read."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from a YAML file, and apply overrides.

    Args:
        path: a YAML file, or the name of a shipped one (``digits``). A file named by ``extends: other.yaml``, relative to it,
            is read first.
        overrides: ``"prior.kind=laplace"``, ``"training.epochs=5"``; values are YAML. A changed ``kind`` replaces its section.

    Returns:
        the validated configuration.

    Raises:
        ConfigError: with all errors, each with file, line, dotted key, allowed values and the nearest match.
    """
    path, origins = configuration_file(Path(path)), dict[KeyPath, str]()
    return validated(_read(path, origins, ()), overrides, origins, str(path))


def validated(values: dict[str, Any], overrides: Sequence[str], origins: Origins, name: str) -> Config:
    """Apply overrides to the values of a configuration, and validate them.

    Args:
        values: nested mappings, as in YAML.
        overrides: as :func:`load_config` takes them.
        origins: file and line of the keys; those of the overrides are added.
        name: of the file, for messages.

    Returns:
        the validated configuration.

    Raises:
        ConfigError: with all errors.
    """
    change: dict[str, Any] = {}
    for override in overrides:
        change = _overlay(change, _parse_override(override, origins))
    values = _merge(values, change)
    if not values:
        raise ConfigError(f"{name} is empty; begin with `extends: digits.yaml` or a section such as `data: {{kind: digits}}`")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(describe_all(error.errors(), values, origins, name))) from error
    try:
        config.network.check_layers()  # last, for it needs torch
    except ConfigError as error:
        raise ConfigError(f"{where_is(('network', 'layers'), origins, name)}: {error}") from error
    return config


def to_yaml(config: Config, sections: Sequence[str] | None = None) -> str:
    """Write a configuration as YAML, with all defaults.

    Args:
        config: the configuration.
        sections: names of the sections to write; default: all.

    Returns:
        YAML text.
    """
    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.Representer = _Representer
    writer.dump(config.model_dump(mode="json", include=None if sections is None else set(sections)), stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Writer of values; a text with line breaks of Unicode is quoted and escaped, since a plain one is read with spaces."""

    def represent_str(self, data: str) -> Any:
        """Return the node of a text."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if UNICODE_BREAKS & {*data} else None)


_Representer.add_representer(str, _Representer.represent_str)


def parse_value(text: str) -> Any:
    """Parse a YAML 1.2 value: ``1e-3`` is a number, ``[1, 2]`` a list.

    Args:
        text: the value.

    Returns:
        number, text, list, mapping or None.

    Raises:
        ConfigError: if it is not YAML.

    >>> parse_value("1e-3"), parse_value("laplace"), parse_value("null")
    (0.001, 'laplace', None)
    """
    if text in (",", ";", "|"):  # as for data.delimiter and data.decimal; none of them is YAML by itself
        return text
    short = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    try:
        return load_yaml(text, f"'{short}'")
    except YAMLError as error:
        raise ConfigError(f"cannot read '{short}' as YAML: {str(error).splitlines()[0]}") from error


def _read(path: Path, origins: Origins, chain: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    limits.DEPTH.check(len(chain), f"{path}, read by extends,", ConfigError, "leave out some")
    if resolved in chain:
        names = " -> ".join(file.name for file in [*chain, resolved])
        raise ConfigError(f"{path} extends itself: {names}; remove one of the extends")
    try:
        tree = load_yaml(read_text(path), str(path), "rt")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"cannot read {path}: {reason}; give a YAML file, or the name of a shipped one such as digits"
        ) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join((error.problem or "not YAML").split())
        raise ConfigError(f"{path}{line}: {problem}; every key may be given once, indented by spaces") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}; this is not YAML") from error
    if tree is None:
        tree = CommentedMap()
    if not isinstance(tree, CommentedMap):
        what = "a list" if isinstance(tree, list) else "text" if isinstance(tree, str) else "a number"
        raise ConfigError(f"{path}: a configuration is a mapping of sections, got {what}")
    parent = tree.pop("extends", None)
    base: dict[str, Any] = {}
    if parent is not None:
        if not isinstance(parent, str):
            raise ConfigError(f"{path}: extends must name one YAML file, got {parent!r}")
        base = _read(path.parent / Path(parent).expanduser(), origins, (*chain, resolved))
    return _merge(base, _plain(tree, (), str(path), origins))


def _plain(node: Any, key_path: KeyPath, file: str, origins: Origins) -> Any:
    """Convert a ruamel tree to plain Python values, and record file and line of every key."""
    if isinstance(node, CommentedMap):
        result: dict[str, Any] = {}
        for key, value in node.items():
            here = (*key_path, str(key))
            line = (node.lc.data or {}).get(key, (node.lc.line,))[0]  # a merged key (<<) has no line of its own
            origins[here] = file if line is None else f"{file}:{line + 1}"
            result[str(key)] = _plain(value, here, file, origins)
        return result
    if isinstance(node, list):
        return [_plain(value, (*key_path, index), file, origins) for index, value in enumerate(node)]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, int):
        return int(node)
    return float(node) if isinstance(node, float) else str(node)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Merge ``change`` into ``base`` key by key; a section whose ``kind`` changes is replaced."""
    if "kind" in change and change["kind"] != base.get("kind"):
        return dict(change)
    nested = {key: _merge(base[key], value) for key, value in change.items() if _both_mappings(base.get(key), value)}
    return {**base, **change, **nested}


def _both_mappings(left: Any, right: Any) -> bool:
    return isinstance(left, dict) and isinstance(right, dict)


def _overlay(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Merge ``change`` into ``base`` key by key, whatever the ``kind``, so that the order of overrides does not matter."""
    nested = {key: _overlay(base[key], value) for key, value in change.items() if _both_mappings(base.get(key), value)}
    return {**base, **change, **nested}


def _parse_override(text: str, origins: Origins) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"cannot read '{text}'; an override is key=value, for example prior.kind=laplace")
    parts = key.split(".")
    for depth in range(1, len(parts) + 1):
        origins[tuple(parts[:depth])] = "command line"
    result: Any = parse_value(value)
    for part in reversed(parts):
        result = {part: result}
    return result
