"""What stands alone: the coder and the ledger without torch, each file under a name of its own."""

import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bitsback"

ALLOWED = {"settings.py"}
"""Base names that occur twice beside those of a contract: each family's settings."""

EXTRAS = ("matplotlib", "jinja2", "PIL", "plotext", "scipy", "sklearn", "tensorboard", "timm", "wandb")
"""Modules that only extras install."""


def without(modules, code, directory=None):
    """Run code in a process of its own where some modules are not installed."""
    program = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=directory)
    assert done.returncode == 0, done.stderr
    return done


def without_torch(code):
    return without(("torch", "pyro"), code).stdout


def test_the_coder_needs_no_torch():
    said = without_torch(
        """
        import importlib, pkgutil
        import numpy as np
        import bitsback.coding
        for found in pkgutil.iter_modules(bitsback.coding.__path__):
            importlib.import_module("bitsback.coding." + found.name)
        from bitsback.coding.ans import Stack
        from bitsback.coding.densities import NORMAL, LocatedDensity
        from bitsback.coding.quantised import quantise, tensor_codec
        prior = LocatedDensity(NORMAL, np.zeros(()), np.full((), 0.5))
        tensor = quantise(np.array([0.3, -0.9, 0.0]), 0.1, prior, step_level=-8)
        stack, codec = Stack.empty(), tensor_codec((3,), prior)
        codec.push(stack, tensor)
        print(codec.pop(Stack.from_bytes(stack.to_bytes(), 1)).values().tolist())
        """
    )
    assert said == "[0.25, -1.0, 0.0]\n"


def test_the_ledger_needs_no_torch():
    said = without_torch(
        """
        from bitsback.ledger import Entry, Ledger
        entry = Entry.of("w", weights=2, net_bits=3.0, refund_bits=10.0)
        book = Ledger(entries=(entry,), model_weights=2, data_bits=20.0, uniform_bits=100.0, examples=30)
        print(Ledger.from_json(book.to_json()) == book, "23.0" in str(book))
        """
    )
    assert said == "True True\n"


def test_a_file_has_a_name_of_its_own():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        is_of_a_contract = path.name in ("__init__.py", "base.py") or (
            room == "formats" and path.name in ("write.py", "read.py")
        )
        if room != "cli" and not is_of_a_contract:
            places[path.name].append(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in ALLOWED}
    assert not twice


def test_without_extras_a_training_ends_with_the_way_to_its_page(tmp_path):
    done = without(
        EXTRAS,
        """
        import sys
        from bitsback.cli import main
        sys.argv = ["bitsback", "train", "digits_linear", "training.epochs=1", "ledger.samples=2", "--out", "run"]
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, ended.code
        """,
        tmp_path,
    )
    assert "net bits" in done.stdout
    assert (tmp_path / "run" / "ledger.json").is_file()
    assert "pip install 'bitsback[report]'; try again: bitsback report run" in done.stderr


@pytest.mark.parametrize(("extra", "code"), [
    ("report", "import bitsback.report"),
    ("report", "from bitsback.report import plots"),
    ("watch", "from bitsback.terminal.chart import chart; chart([(1.0, 9.0), (2.0, 8.0)], {}, 60, 20)"),
])  # fmt: skip
def test_what_needs_an_extra_names_it(extra, code):
    done = without(EXTRAS, f"""
        from bitsback.errors import MissingExtraError
        try:
            {code}
        except MissingExtraError as error:
            print(error)
        """)  # fmt: skip
    assert f"pip install 'bitsback[{extra}]'" in done.stdout
