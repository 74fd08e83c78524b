"""Lazy imports of a package's public names, so that commands that need no torch start quickly."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["attach"]


def attach(
    package: str, homes: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package that imports its public names lazily (PEP 562).

    Args:
        package: ``__name__`` of the package.
        homes: public names by module; module paths are relative to the package.
        submodules: modules that are public names themselves.

    Returns:
        ``__getattr__``, ``__dir__``, ``__all__``.

    >>> get, _, public = attach("bitsback", {"units": ["format_bits"]})
    >>> public, get("format_bits")(2000.0)
    (['format_bits'], '2 kbit')
    """
    home = {name: module for module, names in homes.items() for name in names}
    public = sorted([*home, *submodules])
    if any(name == module for name, module in home.items()):
        sys.modules[package].__class__ = _package_with(home)

    def get(name: str) -> Any:
        if name in home:
            found = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
            setattr(sys.modules[package], name, found)  # later accesses skip __getattr__
            return found
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get, lambda: public, public


def _package_with(home: Mapping[str, str]) -> type[ModuleType]:
    """Return a module class in which a public name keeps its object when the submodule of the same name is imported."""

    # Importing bitsback.x.y sets attribute y of bitsback.x to the module; a public function y must not be replaced by it.
    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if home.get(name) == name and isinstance(value, ModuleType):
                value = getattr(value, name)
            super().__setattr__(name, value)

    return Package
