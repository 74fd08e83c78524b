"""The reference: one page for every room of the package, one section for every module, found by walking it."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin

from made import Made
from sphinx.pycode import ModuleAnalyzer
from text import table, toctree

import bitsback
from bitsback.registry import Registry

HIDDEN = {"bitsback.__main__"}
LAZY = "The name is imported when it is first used, so that `import bitsback` is quick."


def modules() -> list[str]:
    """Every public module of the package, by name."""
    found = (info.name for info in pkgutil.walk_packages(bitsback.__path__, "bitsback."))
    return sorted(name for name in found if name not in HIDDEN and not any(p.startswith("_") for p in name.split(".")))


def home(module: str, name: str) -> str:
    """The full name of ``name`` where it is defined, followed through the imports of ``module``."""
    lazy = next((place for place, names in bitsback.PUBLIC.items() if name in names), None) if module == "bitsback" else None
    if lazy:
        return home(f"bitsback.{lazy}", name)
    file = importlib.import_module(module).__file__ or ""
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bitsback"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return home(node.module, alias.name)
    return f"{module}.{name}"


@cache
def public() -> dict[str, list[str]]:
    """Modules that say which of their names are public, and those names."""
    said = {name: getattr(importlib.import_module(name), "__all__", None) for name in ["bitsback", *modules()]}
    return {name: sorted(names) for name, names in said.items() if names}


def summary(thing: object) -> str:
    """The first line of a docstring."""
    return (getattr(thing, "__doc__", None) or "").strip().partition("\n")[0]


def link(full: str, shown: str) -> str:
    """A reference to an object, under a name of one's own."""
    return f"{{py:obj}}`{shown} <{full}>`"


def unseen(named: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Public names that autodoc passes over: aliases and registries, which belong to another module, and bare constants."""
    found: dict[str, dict[str, Any]] = {}
    for module, names in named.items():
        for name in names:
            thing, full = getattr(importlib.import_module(module), name), home(module, name)
            owner = full.rpartition(".")[0]
            if inspect.isroutine(thing) or inspect.isclass(thing) or inspect.ismodule(thing) or hasattr(thing, "__wrapped__"):
                continue
            documented = ("", full.rpartition(".")[2]) in ModuleAnalyzer.for_module(owner).find_attr_docs()
            if not documented or getattr(thing, "__module__", owner) != owner:
                found.setdefault(owner, {})[full] = thing
    return found


def described(thing: Any) -> str:
    """What an alias or a registry holds."""
    if isinstance(thing, Registry):
        return f"Every {thing.family} by its kind: {', '.join(thing)}."
    if isinstance(thing, Mapping):
        return f"By name: {', '.join(map(str, thing))}."
    while get_origin(thing) is Annotated:
        thing = get_args(thing)[0]
    members = [each.__name__ if inspect.isclass(each) else repr(each) for each in get_args(thing)]
    return f"One of {', '.join(members)}." if members else f"A {type(thing).__name__}."


def section(name: str, names: list[str], depth: int, data: dict[str, Any]) -> str:
    """One module: its docstring, its public names that are defined elsewhere, and what it defines."""
    lines = [f"{'#' * depth} {name}", "", "```{eval-rst}", f".. automodule:: {name}", ""]
    for full, thing in data.items():
        lines += [f".. py:data:: {full.rpartition('.')[2]}", f"   :module: {name}", "", f"   {described(thing)}", ""]
    lines += ["```", ""]
    elsewhere = [each for each in names if home(name, each) != f"{name}.{each}"]
    if elsewhere:
        lines += ["Public here: " + ", ".join(link(home(name, each), each) for each in elsewhere) + ".", ""]
    return "\n".join(lines)


def page(room: str, members: list[str]) -> str:
    """The page of one room."""
    named = public()
    data = unseen(named)
    return "\n".join(section(name, named.get(name, []), 1 if name == room else 2, data.get(name, {})) for name in members)


def top(module: ModuleType) -> str:
    """The page of ``bitsback`` itself: its names, one line each, and the rooms."""
    rows = []
    for name in module.__all__:
        rows.append([link(home("bitsback", name), f"bitsback.{name}"), summary(getattr(module, name))])
    return f"# API\n\n`bitsback` itself offers what most programs need. {LAZY}\n\n" + table(["name", "what it is"], rows)


def make(made: Made) -> None:
    """Write reference/api.md and a page for every room."""
    rooms: dict[str, list[str]] = {}
    for name in modules():
        rooms.setdefault(".".join(name.split(".")[:2]), []).append(name)
    for room, members in rooms.items():
        made.write(f"reference/{room}.md", page(room, members))
    rows = [[f"[{room}]({room}.md)", summary(importlib.import_module(room))] for room in rooms]
    below = "\n## Rooms of the house\n\nImports only go down; see the plan in CONTRIBUTING.md.\n\n" + table(
        ["room", "what it is"], rows
    )
    made.write("reference/api.md", top(bitsback) + below + "\n" + toctree(list(rooms), "hidden"))
