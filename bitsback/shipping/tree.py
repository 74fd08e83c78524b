"""A configuration as a tree of JSON values without the places of this machine, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bitsback.config import Config
from bitsback.config.load import parse_value
from bitsback.errors import FileError

MODEL_SECTIONS = ("data", "network", "prior", "prior_overrides", "bayesian", "likelihood")
MESSAGE_SECTIONS = (*MODEL_SECTIONS, "posterior", "training", "seed")


def to_tree(config: Config, sections: Sequence[str]) -> dict[str, Any]:
    """The sections of a configuration, every default written out, paths left out: a receiver has places of its own."""
    return {name: _plain(getattr(config, name)) for name in sections}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        named = {name: getattr(value, name) for name in type(value).model_fields}
        return {name: _plain(item) for name, item in named.items() if not isinstance(item, Path)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def from_tree(tree: dict[str, Any], places: Sequence[str] = (), *, data_is_needed: bool = True) -> Config:
    """The configuration of a file, with ``places`` such as ``data.root=DIR`` that say where this machine keeps things.

    Without need for the data, a data section whose places are unknown becomes the default one.

    Raises:
        FileError: for a place that is not one, and for a configuration that this version cannot use.
    """
    values = dict(tree)
    for place in places:
        key, equals, text = place.removeprefix("--").partition("=")
        *path, last = key.split(".")
        if not equals or not path or path[0] not in ("data", "network", "prior"):
            raise FileError(f"'{place}' says no place: write --data.root=DIR or --data.path=FILE; all else is in the file")
        inside = values
        for part in path:
            inside[part] = dict(inside.get(part) or {})
            inside = inside[part]
        if last in inside:
            raise FileError(f"'{key}' is fixed by the file; only places, such as --data.root=DIR, can be given")
        inside[last] = parse_value(text)
    try:
        return Config.model_validate(values)
    except ValidationError as fault:
        missing = [".".join(map(str, error["loc"])) for error in fault.errors() if error["type"] == "missing"]
        if missing and not data_is_needed and all(name.startswith("data.") for name in missing):
            return from_tree({key: value for key, value in values.items() if key != "data"})
        if missing:
            names = ", ".join(f"--{_without_kind(name)}=..." for name in missing)
            raise FileError(f"the file needs to know a place on this machine; add {names}") from fault
        first = fault.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise FileError(f"the file's configuration does not suit this bitsback ({place}: {first['msg']}); "
                        "was it written by another version?") from fault  # fmt: skip


def _without_kind(name: str) -> str:
    """``data.npz.path`` is ``data.path`` to a user: pydantic names the member of the union too."""
    first, *rest = name.split(".")
    return ".".join([first, *rest[1:]]) if len(rest) > 1 else name
