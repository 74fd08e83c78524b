"""Imports only go down the tower, ln 2 lives in one place, nothing unsafe is read."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bitsback"
TOWER = [
    {"errors", "lazy"},
    {"units", "limits", "locks", "profiling", "torch_state", "result", "factories"},
    {"registry", "yaml", "atomic_io"},
    {"ledger", "coding"},
    {"learned", "data"},
    {"posteriors", "priors", "likelihoods"},
    {"kl", "layers"},
    {"model"},
    {"nn", "optim", "certificates"},
    {"training", "testing", "interop"},
    {"config"},
    {"formats", "report"},
    {"analysis"},
    {"runs"},
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
