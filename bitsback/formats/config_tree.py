"""Convert a configuration to a tree of JSON values, without the paths of this machine, and back."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bitsback.config import Config
from bitsback.config.load import parse_value
from bitsback.errors import ConfigError, FileError

__all__ = [
    "CODEC_FACTORY",
    "DEFAULTS",
    "MESSAGE_SECTIONS",
    "MODEL_SECTIONS",
    "factories_of",
    "from_tree",
    "locations_of",
    "paths_of",
    "to_tree",
    "with_first_defaults",
    "without_codec",
]

MODEL_SECTIONS = ("data", "network", "prior", "prior_overrides", "bayesian", "likelihood")
MESSAGE_SECTIONS = (*MODEL_SECTIONS, "posterior", "training", "seed")
NEEDED = {"needed": True}
"""Placeholder for a path that the receiver has to give."""

DEFAULTS = json.loads((files("bitsback.formats") / "defaults_1.json").read_bytes())
"""Meaning of a missing setting in a file of format version 1, independent of the present defaults of YAML and Python.

``first`` are the settings of the first files, which hold all of them, by section and kind; ``later`` are settings added since:
they are left out when they have these values. The table never changes except for new entries under ``later``, whose value
has to be what files without the setting meant.
"""

IGNORE = {"ignore": None}
READY = ("lstm", "mlp", "resnet", "timm", "transformer", "vit")
SINCE: dict[str, dict[str, dict[str, Any]]] = {
    "data": {"npz": {"mask": "mask", "test_mask": "test_mask", "channels": "first"}},
    "network": {kind: {"output": "auto"} for kind in ("sequential", "factory", "given", *READY)},
    "prior": {"pyro": {"learned": []}},
    "likelihood": {
        **dict.fromkeys(("bernoulli", "negative_binomial", "poisson", "tokens"), IGNORE),
        "categorical": {**IGNORE, "class_axis": None},
    },
    "training": {"": {"graph": "auto", "log_every": None}},
}
"""Settings added since that table was frozen, by section and kind, with what files without them mean."""

LOCATED = ("data", "network", "prior", "prior_overrides")
"""Sections with paths and factory functions, which each machine has in other places."""

MADE = ("likelihood",)
"""Sections with a factory function only."""


CODEC_FACTORY = "codec.factory"
"""Location of a user's codec; a file names it in the section ``codec``."""


def to_tree(config: Config, sections: Sequence[str]) -> dict[str, Any]:
    """Return sections of a configuration as JSON values, with every default written out and paths left out.

    If the receiver trains, a pretrained network is marked as needed, because training would otherwise end elsewhere, and the
    columns of a table are left out: the receiver finds them in the training rows that it holds.

    Args:
        config: a validated configuration.
        sections: names of the sections.

    Returns:
        the tree; settings added to the format later are left out at their default.
    """
    tree = {name: _plain(getattr(config, name)) for name in sections}
    for section in (*DEFAULTS["later"], *SINCE):
        part: Any = (tree["data"].get("features") or {}) if section == "features" else tree.get(section, {})
        later = DEFAULTS["later"].get(section, {}) | SINCE.get(section, {}).get(part.get("kind", ""), {})
        for name, value in later.items():
            if name in part and part[name] == value:
                del part[name]
    if "training" in sections:
        tree["data"].pop("columns", None)
        if config.network.pretrained is not None:
            tree["network"]["pretrained"] = NEEDED
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        named = {name: getattr(value, name) for name in type(value).model_fields}
        return {name: _plain(item) for name, item in named.items() if not isinstance(item, Path)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def from_tree(tree: dict[str, Any], locations: Sequence[str] = (), *, data_is_needed: bool = True) -> Config:
    """Build the configuration of a file.

    Files are not trusted: they may name no path, and a factory is called only if a location such as
    ``network.factory=package.module:function`` names the same function.

    Args:
        tree: settings as JSON values.
        locations: places on this machine, such as ``data.root=DIR``.
        data_is_needed: if false, a data section whose places are unknown is replaced by the default one.

    Returns:
        the validated configuration.

    Raises:
        FileError: if a location is not valid, or the configuration is not valid in this version or asks for too much.
    """
    values, given = with_first_defaults(tree), set()
    for location in locations:
        key, equals, text = location.removeprefix("--").partition("=")
        section, pattern, last = _split(key)
        is_location = section in LOCATED or (section in MADE and key.endswith(".factory"))
        if not equals or not is_location or not last:
            raise FileError(f"'{location}' says no place: write --data.root=DIR or --data.path=FILE; all else is in the file")
        inside = values
        for part in (section, *pattern):
            held = inside.get(part)
            inside[part] = dict(held) if isinstance(held, dict) else {}
            inside = inside[part]
        if last not in inside or inside[last] == NEEDED:
            inside[last] = parse_value(text)
        elif not key.endswith(".factory") or inside[last] != text:
            raise FileError(f"'{key}' is fixed by the file; only places, such as --data.root=DIR, can be given")
        given.add(key)
    return _validated(values, given, data_is_needed)


def with_first_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with missing settings filled in as format version 1 defines them.

    >>> with_first_defaults({"likelihood": {"kind": "gaussian", "std": 2.0}})["likelihood"]["target_step"]
    0.01
    """
    values = dict(tree)
    for section, kinds in DEFAULTS["first"].items():
        if isinstance(part := values.get(section), dict):
            values[section] = _filled(_defaults_of(section, kinds, part), part)
    if isinstance(patterns := values.get("prior_overrides"), dict):
        kinds = DEFAULTS["first"]["prior"]
        values["prior_overrides"] = {
            pattern: _filled(_defaults_of("prior", kinds, part), part) if isinstance(part, dict) else part
            for pattern, part in patterns.items()
        }
    return values


LATER_BY_KIND = {"gaussian": ("standardise", "shift_bits"), "categorical": ("labels",), "tokens": ("labels",)}
"""Settings under ``later`` that each kind of likelihood has."""


def _defaults_of(section: str, kinds: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of a section: of its kind, or of all where the section has no kinds."""
    kind = part.get("kind", "")
    if not isinstance(kind, str):
        return {}
    later = DEFAULTS["later"].get(section, {})
    known = LATER_BY_KIND.get(kind, ()) if section == "likelihood" else later
    return {**kinds.get(kind, {}), **{name: later[name] for name in known}, **SINCE.get(section, {}).get(kind, {})}


def _filled(defaults: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return the part with missing settings filled in; an optimiser or schedule of another name has other defaults."""
    if part.get("name", defaults.get("name")) != defaults.get("name"):
        return part
    nested = {key: part[key] for key, value in defaults.items() if isinstance(value, dict) and isinstance(part.get(key), dict)}
    return {**defaults, **part, **{key: _filled(defaults[key], inner) for key, inner in nested.items()}}


def _split(key: str) -> tuple[str, list[str], str]:
    """Return section, pattern of prior_overrides (which contains dots), and the last part of a location.

    >>> _split("data.root"), _split("prior_overrides.*.bias.run")
    (('data', [], 'root'), ('prior_overrides', ['*.bias'], 'run'))
    """
    section, _, rest = key.partition(".")
    pattern, _, last = rest.rpartition(".") if section == "prior_overrides" else ("", "", rest)
    return section, [pattern] if pattern else [], last


def _validated(values: dict[str, Any], given: set[str], data_is_needed: bool) -> Config:
    if isinstance(network := values.get("network"), dict) and network.get("pretrained") == NEEDED:
        raise FileError("the network starts from an earlier one; say where that is: --network.pretrained=PATH")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        missing = [".".join(map(str, one["loc"])) for one in error.errors() if one["type"] == "missing"]
        if missing and not data_is_needed and all(name.startswith("data.") for name in missing):
            return _validated({key: value for key, value in values.items() if key != "data"}, given, True)
        if missing:
            names = ", ".join(f"--{_without_kind(name)}=..." for name in missing)
            raise FileError(f"the file needs to know a place on this machine; add {names}") from error
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _unsuited(key, first["msg"]) from error
    try:
        config.network.check_layers()
    except ConfigError as error:
        reason = str(error).removeprefix("network.layers: ")
        raise _unsuited("network.sequential.layers", f"Value error, {reason}") from error
    training = config.training
    if "training" in values and "auto" in (training.epochs, training.beta.start, training.beta.warmup_epochs):
        raise FileError("the file does not say how long its sender trained; it is damaged")
    # before anything is built: code that a file names runs only if the user has named it too
    for key, name in factories_of(config).items():
        if key not in given:
            what = key.removesuffix(".factory")
            raise FileError(f"the file's {what} is made by calling {name}, and no code that a file names is run unasked; "
                            f"if you trust it, add --{key}={name}")  # fmt: skip
    for key in paths_of(config):
        if key not in given:
            raise FileError(f"the file itself names a path ({key}), which no file of bitsback does; do not use it")
    return config


def _unsuited(key: str, reason: str) -> FileError:
    return FileError(
        f"the file's configuration does not suit this bitsback ({key}: {reason}); was it written by another version?"
    )


def paths_of(config: Config) -> dict[str, Path]:
    """Return the paths that a configuration names, by dotted key; defaults are left out."""
    parts: dict[str, BaseModel] = {section: getattr(config, section) for section in ("data", "network", "prior")}
    parts |= {f"prior_overrides.{pattern}": prior for pattern, prior in config.prior_overrides.items()}
    named = ((f"{key}.{name}", getattr(part, name)) for key, part in parts.items() for name in part.model_fields_set)
    return {key: value for key, value in named if isinstance(value, Path)}


def locations_of(config: Config) -> list[str]:
    """Return the locations that a receiver has to give: paths and factories, as ``key=value``."""
    found = [f"{key}={json.dumps(str(path))}" for key, path in paths_of(config).items()]
    return [*found, *(f"{key}={name}" for key, name in factories_of(config).items())]


def factories_of(config: Config) -> dict[str, str]:
    """Return the functions that a configuration names to make its network, data, priors or likelihood, by dotted key."""
    parts: dict[str, BaseModel] = {section: getattr(config, section) for section in ("data", "network", "prior", "likelihood")}
    parts |= {f"prior_overrides.{pattern}": prior for pattern, prior in config.prior_overrides.items()}
    named = ((key, getattr(part, CODEC_FACTORY.partition(".")[2], None)) for key, part in parts.items())
    return {f"{key}.factory": name for key, name in named if isinstance(name, str)}


def _without_kind(name: str) -> str:
    """Return the name that a user knows: ``data.path`` for ``data.npz.path``, where pydantic adds the member of the union."""
    first, *rest = name.split(".")
    return ".".join([first, *rest[1:]]) if len(rest) > 1 else name


def without_codec(locations: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the locations without that of the codec, and the codec's factory or None.

    >>> without_codec(["data.root=here", "--codec.factory=mine:codec"])
    (['data.root=here'], 'mine:codec')
    """
    begin = f"{CODEC_FACTORY}="
    options = {location: location.removeprefix("--") for location in locations}
    given = [option.removeprefix(begin) for option in options.values() if option.startswith(begin)]
    others = [location for location in locations if not options[location].startswith(begin)]
    return others, given[-1] if given else None
