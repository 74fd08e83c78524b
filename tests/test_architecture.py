"""Imports only go down the tower, ln 2 lives in one place, nothing unsafe is read."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from bitsback.formats.kinds import HOMES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bitsback"
WRITTEN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "scripts").glob("*.py")),
    *sorted((ROOT / "notebooks").glob("[!.]*.*")),
]
"""What names modules to people."""
TOWER = [
    {"errors", "lazy"},
    {"units", "limits", "locks", "processes", "profiling", "torch_state", "result", "factories", "extras", "inputs", "kernels"},
    {"registry", "yaml", "atomic_io", "distributed"},
    {"ledger", "coding"},
    {"learned", "data"},
    {"posteriors", "priors", "likelihoods"},
    {"kl", "layers", "networks"},
    {"model"},
    {"nn", "optim", "certificates"},
    {"training", "testing", "interop"},
    {"config"},
    {"formats", "report", "terminal"},
    {"analysis"},
    {"runs", "sklearn"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(TOWER) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        rooms |= {name.split(".")[1] for name in names if name.startswith("bitsback.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in FLOOR, f"{room} has no floor; place it in the tower"
    for other in imported_rooms(path) - {room}:
        assert FLOOR[other] < FLOOR[room], (
            f"{path.relative_to(PACKAGE)} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"
        )


def test_only_units_knows_the_logarithm_of_two():
    for path in FILES:
        text = path.read_text()
        assert path.name == "units.py" or ("log(2)" not in text and "log(2.0)" not in text and "0.6931" not in text), path


def test_nothing_reads_pickle_or_unsafe_yaml():
    for path in FILES:
        text = path.read_text()
        for unsafe in ("import pickle", "torch.load(", "allow_pickle=True", "yaml.load("):
            assert unsafe not in text, f"{path}: {unsafe}"


def module_of(path: Path) -> str:
    return ".".join(["bitsback", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, with_types: bool = False):
    """Every node below, those inside functions included, but for what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        yield child
        if with_types or not for_types_only(child):
            yield from walk(child, with_types)


@cache
def imports_of(module: str, with_types: bool = False) -> set[tuple[str, str]]:
    """(module, name) of everything of the package that a module imports; the name is empty for a module itself."""
    found = set()
    for node in walk(ast.parse(MODULES[module].read_text()), with_types):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add((whole, "") if whole in MODULES else (node.module, alias.name))
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name in MODULES}
    return found


def home(module: str, name: str) -> str:
    """The module that defines what a package offers under a name."""
    if MODULES[module].name == "__init__.py" and name:
        for inner, offered in imports_of(module, with_types=True):
            if offered == name:
                return home(inner, name)
    return module


def test_no_circle_of_imports_between_files():
    below = {module: {home(*each) for each in imports_of(module)} - {module} for module in MODULES}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(below[module]):
                visit(other)
            done.add(path.pop())

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "bitsback.__main__"])
def test_a_module_says_what_it_offers(module):
    offered = importlib.import_module(module).__all__
    assert len(set(offered)) == len(offered)
    for name in offered:
        assert not name.startswith("_") or name == "__version__"
        assert getattr(importlib.import_module(module), name, None) is not None, name


def test_nothing_is_imported_that_is_not_offered():
    taken = {(module, *each) for module in MODULES for each in imports_of(module) if each[1]}
    hidden = [f"{module}: {of}.{name}" for module, of, name in taken if name not in importlib.import_module(of).__all__]
    assert not hidden


def test_private_modules_begin_with_an_underscore_and_only_they():
    """A module that nothing outside of its own package imports is private; pages, scripts and what a string names count."""
    written = "\n".join(path.read_text() for path in WRITTEN)
    wrong = []
    users = {of: {module for module in MODULES if of in {each[0] for each in imports_of(module)}} for of in MODULES}
    for module, path in MODULES.items():
        package, _, name = module.rpartition(".")
        if path.name == "__init__.py" or package in ("bitsback", "bitsback.cli") or name == "__main__":
            continue
        outside = [user for user in users[module] if not (user == package or user.startswith(f"{package}."))]
        is_named = re.search(rf"{re.escape(module)}\b", written) is not None or module in HOMES.values()
        is_contract = name == "base"
        if name.startswith("_") != (not outside and not is_named and not is_contract):
            wrong.append(f"{module}: imported from outside by {outside or 'nothing'}")
    assert not wrong
