"""--profile says where a step goes, and changes nothing."""

import json
from pathlib import Path

from bitsback.config import Experiment, load_run
from bitsback.config.load import load_config
from bitsback.training._profile import PHASES

CONFIG = Path(__file__).parent.parent / "configs" / "digits_conv.yaml"


def test_profile_writes_a_trace_and_tables_and_leaves_the_training_alone(tmp_path, run_command):
    quick = ["training.epochs=2", "ledger.samples=2"]
    done = run_command("train", CONFIG, *quick, "--profile", "--out", tmp_path / "a")
    assert done.code == 0
    written = (tmp_path / "a" / "profile" / "steps.txt").read_text()
    assert written in done.out
    shares = {}
    for said in [*PHASES.values(), "loop", "step"]:
        line = next(line for line in written.splitlines() if line.startswith(f"{said:28} "))
        shares[said] = float(line.removeprefix(said).split()[0])
    assert min(shares.values()) > 0
    assert max(shares.values()) == shares["step"]  # phases lie within their step, and so do their medians
    assert "aten::" in written
    assert "conv2d1" in written
    trace = json.loads((tmp_path / "a" / "profile" / "trace.json").read_text())
    assert {*PHASES, "bitsback: optimiser"} <= {event.get("name") for event in trace["traceEvents"]}
    Experiment.build(load_config(CONFIG, quick)).train(tmp_path / "b", progress=False)
    assert load_run(tmp_path / "a").ledger() == load_run(tmp_path / "b").ledger()
