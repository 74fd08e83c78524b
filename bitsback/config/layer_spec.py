"""The form of a layer in YAML: its name, or a mapping of its name to its arguments."""

from typing import Any

__all__ = ["LayerSpec", "split_spec"]

LayerSpec = str | dict[str, dict[str, Any] | None]
"""A layer's name, or a mapping with one entry: its name and arguments."""


def split_spec(spec: LayerSpec) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a layer."""
    if isinstance(spec, str):
        return spec, {}
    (name, arguments), *_ = spec.items()
    return name, dict(arguments or {})
