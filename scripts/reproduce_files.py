"""Make the record files again: train each of configs/records, pack it, decode it in a fresh process, measure it there.

python scripts/reproduce_files.py [NAME ...] [--data-root DIR] [--seeds 0,1,2] [--out DIR] [--set training.epochs=1 ...]

A JSON line for each record and seed: bytes of the file, test error of the decoded file, seconds of training and packing.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RECORDS = Path(__file__).parent.parent / "configs" / "records"
DECODE = """
import json, sys, time
from bitsback.config import load_config
from bitsback.formats.model_file.read import load
from bitsback.model import evaluate
began = time.perf_counter()
loaded = load(sys.argv[1])
seconds = time.perf_counter() - began
test = load_config(sys.argv[2], sys.argv[3:]).data.load().test
error = evaluate(loaded.model, loaded.likelihood, test, samples=0).error
weights = sum(weight.posterior.numel for weight in loaded.model.weights)
print(json.dumps({"test_error": error, "unpack_seconds": seconds, "weights": weights}))
"""


def run(*words):
    """Run a command; its last line of standard output."""
    command = [sys.executable, "-m", "bitsback", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def reproduce(config, overrides, seed, place):
    """One record with one seed."""
    place.mkdir(parents=True, exist_ok=True)
    directory, file = place / f"{config.stem}-{seed}", place / f"{config.stem}-{seed}.bb"
    began = time.perf_counter()
    if not (directory / "summary.json").is_file():
        run("train", config, *overrides, f"seed={seed}", "--out", directory)
    trained = time.perf_counter()
    report = json.loads(run("pack", directory, "-o", file, "--json"))
    packed = time.perf_counter()
    decoded = subprocess.run(
        [sys.executable, "-c", DECODE, str(file), str(config), *overrides], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return {
        "record": config.stem,
        "seed": seed,
        "file_bytes": file.stat().st_size,
        **json.loads(decoded),
        "label_bits": report["label_bits"],
        "training_seconds": round(trained - began, 1),
        "packing_seconds": round(packed - trained, 1),
    }


def main():
    """Reproduce and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="records; default: all")
    parser.add_argument("--data-root", default="data/mnist")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("runs/records"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides, for a toy run")
    options = parser.parse_args()
    budgeted = sorted(path for path in RECORDS.glob("*.yaml") if "budget_bytes" in path.read_text(encoding="utf-8"))
    paths = [RECORDS / f"{name}.yaml" for name in options.names] or budgeted
    for config in paths:
        for seed in options.seeds.split(","):
            overrides = [f"data.root={options.data_root}", *options.set]
            print(json.dumps(reproduce(config, overrides, int(seed), options.out)), flush=True)


if __name__ == "__main__":
    main()
