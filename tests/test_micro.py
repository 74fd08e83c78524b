"""The idea in one file of the standard library: it sends, it receives, and its bits are those of the theory."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "notebooks" / "microbitsback.py"


@pytest.fixture(scope="module")
def micro():
    spec = importlib.util.spec_from_file_location("microbitsback", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_needs_the_standard_library_alone():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 250
    imported = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= set(sys.stdlib_module_names)
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(ast.parse(text)))


def test_messages_give_everything_back_and_a_finer_grid_costs_nothing(micro, capsys):
    coarse, middle, fine = micro.main()  # asserts that payload and labels come back
    assert "bit for bit" in capsys.readouterr().out
    for bits in (coarse, middle, fine):
        assert bits["net"] == pytest.approx(bits["data"] + bits["gross"] - bits["refund"], abs=3)  # rounded bit lengths
        assert bits["gross"] - bits["refund"] == pytest.approx(bits["kl"], abs=25)  # of one draw
        assert bits["net"] < 200  # of 300 without a model
    for finer, coarser in ((middle, coarse), (fine, middle)):
        assert finer["gross"] - coarser["gross"] == pytest.approx(2 * micro.WEIGHTS, abs=16)  # two bits a weight
        assert finer["refund"] - coarser["refund"] == pytest.approx(2 * micro.WEIGHTS, abs=16)


def test_what_was_pushed_is_popped(micro):
    grid = micro.Grid(2.0**-3)
    edge = grid.gaussian(0.4, 0.02)
    for cell in (0, 7, grid.cells // 2, grid.cells - 1):
        found, left = micro.pop(micro.put(123456789123456789, edge, cell), edge, grid.cells)
        assert (found, left) == (cell, 123456789123456789)
    assert (edge(0), edge(grid.cells)) == (0, 1 << micro.BITS)


def test_a_short_payload_is_refused(micro):
    points, labels = micro.rings(5)
    with pytest.raises(ValueError, match="give a longer one"):
        micro.send(b"short", points, labels, [(0.0, 0.5)] * micro.WEIGHTS, micro.Grid(2.0**-8))


def test_the_gradient_is_the_derivative(micro):
    points, labels = micro.rings(6)
    weights = [0.1 * k - 0.5 for k in range(micro.WEIGHTS)]

    def cost(w):
        import math

        return -sum(
            math.log(p if label else 1 - p)
            for p, label in ((micro.forward(w, x)[0], y) for x, y in zip(points, labels, strict=True))
        )

    for i, d in enumerate(micro.gradient(weights, points, labels)):
        up, down = ([w + h * (k == i) for k, w in enumerate(weights)] for h in (1e-5, -1e-5))
        assert d == pytest.approx((cost(up) - cost(down)) / 2e-5, abs=1e-6)
