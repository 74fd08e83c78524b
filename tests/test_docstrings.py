"""Docstrings say what a function does, takes and returns; ruff checks their form (pyproject.toml), and here what it does not."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bitsback"
FILES = sorted(PACKAGE.rglob("*.py"))
RIDDLES = ("What", "How", "Where", "Everything")
"""Words that begin a riddle, not a sentence that says what is done."""


def texts(tree):
    """Every docstring, and every string below a constant, with the line where it stands."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for line in body if isinstance(body, list) else ():
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str):
                yield line.lineno, line.value.value


def public_functions(tree):
    """Functions of a module, and methods of its classes, that do not begin with an underscore."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (each for each in node.body if isinstance(each, ast.FunctionDef))


def arguments(function):
    of = function.args
    names = [each.arg for each in [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_docstring_is_a_riddle(path):
    found = [
        line for line, text in texts(ast.parse(path.read_text())) if text.split()[:1] and text.split()[0].strip(",:") in RIDDLES
    ]
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_of_several_arguments_describe_them(path):
    """The docstring of a command is its help, which lists the options itself."""
    if path.parent.name == "cli":
        return
    missing = []
    for function in public_functions(ast.parse(path.read_text())):
        said = ast.get_docstring(function)
        if function.name.startswith("_") or said is None or len(arguments(function)) < 2:
            continue
        returns = ast.unparse(function.returns) if function.returns else "None"
        silent = returns in ("None", "Never", "NoReturn")
        if "Args:" not in said or not (silent or "Returns:" in said or "Yields:" in said):
            missing.append(f"{function.name} (line {function.lineno})")
    assert not missing
