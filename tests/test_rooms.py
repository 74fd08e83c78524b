"""What stands alone: the coder and the ledger without torch, each file under a name of its own."""

import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "bitsback"

ALLOWED = {"settings.py"}
"""Base names that occur twice beside those of a contract: each family's settings."""

BLOCKED = """
    import sys

    class NoTorch:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "pyro"):
                raise ImportError(name + " is blocked")

    sys.meta_path.insert(0, NoTorch())
"""


def without_torch(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKED) + textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
