"""The scripts run, at toy size."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

from bitsback.config import Experiment, load_config

ROOT = Path(__file__).parent.parent


def run(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.syspath_prepend(ROOT / "scripts")
    runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    return capsys.readouterr().out


def table_rows(text):
    """The lines of Markdown tables that begin with a name, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = [place for place, line in enumerate(lines) if line.startswith("| ---")]
    return [line for place, line in enumerate(lines) if not {place, place + 1} & set(heads)]


def test_compare_priors_prints_a_row_for_every_configuration(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "compare_priors.py", "--seeds", 1, "--epochs", 1)
    kinds = {path.stem for path in (ROOT / "configs" / "priors").glob("*.yaml")}
    assert {line.split("`")[1] for line in out.splitlines() if line.startswith("| `")} == kinds


def test_recompute_ledger_agrees_with_the_ledger(monkeypatch, capsys, tmp_path):
    overrides = ["training.epochs=3", "ledger.samples=2"]
    Experiment.build(load_config(ROOT / "configs" / "digits.yaml", overrides)).train(tmp_path / "run", progress=False)
    out = run(monkeypatch, capsys, "recompute_ledger.py", tmp_path / "run")
    assert float(out.split()[-1]) < 1e-6


def report(path):
    """What a bench wrote, which says where it comes from."""
    found = json.loads(path.read_text())
    assert found["machine"]["cores"] >= 1
    assert {"date", "command", "versions"} < set(found)
    return found


def test_bench_codec_measures_speed_and_overhead(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "bench_codec.py", "--weights", 2000, "--rounds", 1, "--json", tmp_path / "codec.json")
    rows = {row["codec"]: row for row in report(tmp_path / "codec.json")["rows"]}
    assert len(rows) == len(table_rows(out)) == 3
    assert abs(rows["message"]["overhead_percent"]) < 1
    assert rows["quantised"]["beyond_tables_bits"] > -8  # its own side information is counted in whole bits
    assert abs(rows["relative entropy"]["overhead_bits"]) <= 6  # half a block
    assert all(row["write_weights_per_second"]["median"] > 0 for row in rows.values())


def test_bench_scale_fits_exponents(monkeypatch, capsys, tmp_path):
    sizes = ["--weights", 500, 2000, "--rounds", 1, "--parts", "weights"]
    out = run(monkeypatch, capsys, "bench_scale.py", *sizes, "--json", tmp_path / "scale.json")
    found = report(tmp_path / "scale.json")["weights"]
    assert [row["weights"] for row in found["rows"]] == pytest.approx([500, 2000], rel=0.1)
    assert [fit["what"] for fit in found["exponents"]] == ["step_seconds", "ledger_seconds", "pack_seconds"]
    assert len(table_rows(out)) == 5


@pytest.mark.slow
def test_bench_ranks_measures_and_extrapolates(monkeypatch, capsys, tmp_path):
    size = ["--weights", 20000, "--width", 100, "--sizes", 32, 48, 64, "--steps", 2, "--rounds", 1]
    run(monkeypatch, capsys, "bench_ranks.py", *size, "--parts", "memory", "scale", "--json", tmp_path / "ranks.json")
    found = report(tmp_path / "ranks.json")
    assert found["memory"]["one"]["weights"] == found["memory"]["two"][0]["weights"]
    runs = found["scale"]["runs"]
    assert {(one["ranks"], one["strategy"]) for one in runs} == {(1, "none"), (2, "ddp"), (2, "fsdp")}
    for one in runs:  # the file is what the formula says, but for its header and the numbers that are not weights
        assert one["checkpoint_bytes"] == pytest.approx(one["checkpoint_by_formula"], rel=0.2, abs=20_000)


def test_formulas_of_scale_are_those_of_the_page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    of = runpy.run_path(str(ROOT / "scripts" / "bench_ranks.py"))
    assert of["held_bytes"](1000, 4, "fsdp", 10) == 32 * 1000 / 4 + 8 * 100
    assert of["held_bytes"](1000, 4, "ddp", 10) == 32 * 1000
    assert of["sent_bytes"](1000, 4, "ddp") == 8 * 1000 * 3 / 4
    assert of["sent_bytes"](1000, 4, "fsdp") == 12 * 1000 * 3 / 4
    assert of["step_flops"](1000, 7) == 6 * 1000 * 7
    assert of["ledger_flops"](1000, 7, 3) == 2 * 1000 * 7 * 3
    constants = {"flops": 10.0, "pass": 0.5, "network": 100.0, "draw": 0.1, "ledger_flops": 20.0}
    assert of["step_seconds"](1000, 8, 4, "fsdp", constants) == pytest.approx(6 * 1000 * 2 / 10 + 250 * 0.5 + 9000 / 100)
    assert of["ledger_seconds"](1000, 8, 3, 4, "fsdp", constants) == pytest.approx(3 * 250 * 0.1 + 48000 / 4 / 20)


def test_an_exponent_is_the_slope_of_a_power_law(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    slope = runpy.run_path(str(ROOT / "scripts" / "bench_scale.py"))["slope"]
    assert slope([1, 10, 100], [2, 20 * 10**0.5, 2000]) == pytest.approx((1.5, 0.0), abs=1e-9)
    exponent, stderr = slope([1, 10, 100], [1, 20, 100])
    assert (exponent, stderr) == pytest.approx((1.0, math.log10(2) / 3**0.5))


def test_bench_memory_says_bytes_for_each_weight(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "bench_memory.py", "--width", 1500, "--json", tmp_path / "memory.json")
    found = json.loads((tmp_path / "memory.json").read_text())["bytes_each"]
    assert len(out.splitlines()) == len(found) == 3
    assert 15 < found["deterministic"] < found["bitsback"] < 60  # of 2.25 million weights


def test_bench_startup_times_every_command(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "bench_startup.py", "--runs", 1, "--only", "ledger", "--json", tmp_path / "startup.json")
    (row,) = report(tmp_path / "startup.json")["rows"]
    assert row["command"] == "bitsback ledger RUN"
    assert row["seconds"]["median"] > 0
    assert len(table_rows(out)) == 1


def test_bench_step_compares_with_the_deterministic_network(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    toy = ["--net", "mlp", "--rounds", 2, "--steps", 1, "--batch", 8, "--only", "bitsback weight", "--no-memory"]
    out = run(monkeypatch, capsys, "bench_step.py", *toy, "--json", tmp_path / "step_mlp.json")
    found = report(tmp_path / "step_mlp.json")
    assert found["contestants"][found["baseline"]]["threads_1"]["cpu_ratio"]["median"] == 1
    ours = found["contestants"]["bitsback weight"]
    assert ours["threads_1"]["cpu_ratio"]["low"] > 0
    assert ours["operator_calls"] < found["contestants"]["bitsback weight, plain"]["operator_calls"]
    assert len(table_rows(out)) == len(found["contestants"])


def test_bench_gpu_runs_in_the_interpreter(monkeypatch, capsys, tmp_path):
    pytest.importorskip("triton")
    out = run(monkeypatch, capsys, "bench_gpu.py", "--tiny", "--only", "kernel", "--json", tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["what"] for row in found] == ["pass over 17,290 weights"]
    assert found[0]["over_bytes_by_bandwidth"] > 0
    assert "over bytes by bandwidth" in out


def test_bench_bits_counts_seconds_to_bits(monkeypatch, capsys, tmp_path, mnist):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    toy = ["--net", "mlp", "--seconds", 0.3, "--only", "bitsback, Adam", "--data-root", mnist]
    run(monkeypatch, capsys, "bench_bits.py", *toy, "--json", tmp_path / "bits.json")
    found = report(tmp_path / "bits.json")
    assert {run["contestant"] for run in found["runs"]} >= {"bitsback, Adam", "bitsback, Adam, plain"}
    first = found["runs"][0]
    assert first["points"][-1]["cpu_seconds"] >= 0.2
    assert found["summary"][0]["22200"]["seconds"] <= 1  # two hundred labels cost less from the start


def test_bench_overhead_measures_what_surrounds_the_steps(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    run(monkeypatch, capsys, "bench_overhead.py", "--epochs", 1, "--rounds", 1, "--json", tmp_path / "overhead.json")
    rows = report(tmp_path / "overhead.json")["rows"]
    assert set(rows) == {"LeNet-5-Caffe", "digits MLP"}
    assert all(row["step_ms"] > 0 < row["share"] for row in rows.values())


def test_bench_boosting_compares_with_trees(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    toy = ["iris", "diabetes", "--splits", 1, "--smoke", "--trees", tmp_path / "trees.json"]
    out = run(monkeypatch, capsys, "bench_boosting.py", *toy, "--json", tmp_path / "boosting.json")
    iris, diabetes = report(tmp_path / "boosting.json")["tables"]
    assert len(table_rows(out)) == 2
    assert iris["marginal_bits"] > 120 * math.log2(3)  # 120 labels, nearly uniform, and their frequencies
    kept = json.loads((tmp_path / "trees.json").read_text())
    assert (iris["trees"], diabetes["trees"]) == ([kept["iris"]["0"]], [kept["diabetes"]["0"]])
    assert 0 < iris["trees_error"] < 1.1 < 60 < diabetes["trees_error"] < 90  # one tree: a little below no tree at all
    out = run(monkeypatch, capsys, "bench_boosting.py", "iris", "--splits", 1, "--smoke", "--permuted")
    assert "more than no model" in out


def test_bench_figures_draws_what_was_measured(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    places = ["--results", ROOT / "docs" / "benchmarks", "--out", tmp_path]
    run(monkeypatch, capsys, "bench_figures.py", *places)
    assert {path.name for path in tmp_path.glob("*.svg")} == {"steps.svg", "bits.svg", "scale.svg"}


def test_reproduce_files_trains_packs_and_decodes(monkeypatch, capsys, tmp_path, mnist):
    toy = ["training.epochs=1", "training.schedule.warmup_epochs=0", "ledger.samples=1", "pack.budget_bytes=90"]
    toy.append("pack.tuning={groups: 2, steps: 1, balance_steps: 1}")
    toy.append("pack.index_bits=8")
    out = run(monkeypatch, capsys, "reproduce_files.py", "mnist_800", "--data-root", mnist, "--out", tmp_path, "--set", *toy)
    record = json.loads(out)
    assert record["file_bytes"] <= 90
    assert record["weights"] == 5994
    assert 0 <= record["test_error"] <= 1
