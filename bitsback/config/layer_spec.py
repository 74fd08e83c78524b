"""How a layer of a network is written in YAML: its name, or its name with arguments."""

from typing import Any

__all__ = ["LayerSpec", "split_spec"]

LayerSpec = str | dict[str, dict[str, Any] | None]


def split_spec(spec: LayerSpec) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a layer."""
    if isinstance(spec, str):
        return spec, {}
    (name, arguments), *_ = spec.items()
    return name, dict(arguments or {})
