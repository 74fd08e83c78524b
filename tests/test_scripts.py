"""The scripts run, at toy size."""

import json
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


def test_benchmark_codecs_measures(monkeypatch, capsys):
    report = json.loads(run(monkeypatch, capsys, "benchmark_codecs.py", "--weights", 4000, "--quantised-weights", 4000))
    assert abs(report["message"]["net_bits"] / report["message"]["ledger_bits"] - 1) < 0.01
    assert report["quantised"]["file_bits"] >= report["quantised"]["declared_bits"]


def test_reproduce_files_trains_packs_and_decodes(monkeypatch, capsys, tmp_path, mnist):
    toy = ["training.epochs=1", "training.schedule.warmup_epochs=0", "ledger.samples=1", "pack.budget_bytes=90"]
    toy.append("pack.tuning={groups: 2, steps: 1, balance_steps: 1}")
    toy.append("pack.index_bits=8")
    out = run(monkeypatch, capsys, "reproduce_files.py", "mnist_800", "--data-root", mnist, "--out", tmp_path, "--set", *toy)
    record = json.loads(out)
    assert record["file_bytes"] <= 90
    assert record["weights"] == 5994
    assert 0 <= record["test_error"] <= 1
