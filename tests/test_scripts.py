"""The scripts run, at toy size."""

import runpy
import sys
from pathlib import Path

from bitsback.config import Experiment, load_config

ROOT = Path(__file__).parent.parent


def run(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    return capsys.readouterr().out


def test_compare_priors_prints_a_row_for_every_configuration(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "compare_priors.py", "--seeds", 1, "--epochs", 1)
    kinds = {path.stem for path in (ROOT / "configs" / "priors").glob("*.yaml")}
    assert {line.split("`")[1] for line in out.splitlines() if line.startswith("| `")} == kinds


def test_recompute_ledger_agrees_with_the_ledger(monkeypatch, capsys, tmp_path):
    overrides = ["training.epochs=3", "ledger.samples=2"]
    Experiment.build(load_config(ROOT / "configs" / "digits.yaml", overrides)).train(tmp_path / "run", progress=False)
    out = run(monkeypatch, capsys, "recompute_ledger.py", tmp_path / "run")
    assert float(out.split()[-1]) < 1e-6
