"""Measure the known configurations, and compare them with what tests/baseline.json says.

python scripts/baseline.py [NAME ...] [--data-root DIR] [--out DIR] [--write]

A JSON line for each name: mean and spread (the standard deviation over the seeds) of bits, errors and bytes, with the commands
that made them. `--write` stores them in tests/baseline.json; without it, every mean is printed beside the stored one. Runs of
the digits take seconds; those of MNIST need its four files under --data-root, and up to ten minutes each.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
BASELINE = HOME / "tests" / "baseline.json"
DIGITS = ("digits", "digits_conv", "digits_linear", "digits_mlp")
MNIST = ("records/mnist_modes", "mnist_conv", "records/mnist_certificate", "records/mnist_800")
NAMES = (*DIGITS, "prequential_digits", *(name.removeprefix("records/") for name in MNIST))


class Measurement:
    """One configuration with one seed: its commands, run in order, and the numbers they give."""

    def __init__(self, name, seed, options):
        stem = next((full for full in MNIST if full.endswith(name)), name)
        self.name, self.config, self.place = name, f"configs/{stem}.yaml", options.out / f"{name}-{seed}"
        self.overrides = [f"seed={seed}", "logging.report=false"]
        self.root = options.data_root
        self.on_mnist = name.startswith("mnist")
        self.commands = []

    def run(self, *words, makes=None):
        """Run a command of bitsback, unless what it makes is there already; its standard output."""
        shown = ["OUT" if word == self.place else str(word).replace(str(self.place), "OUT") for word in words]
        self.commands.append("bitsback " + " ".join(shown).replace(str(self.root), "ROOT"))
        if makes is not None and makes.is_file():
            return ""
        command = [sys.executable, "-m", "bitsback", *map(str, words)]
        done = subprocess.run(command, check=True, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return done.stdout

    def trained(self):
        """Train, and return the ledger and the summary."""
        root = [f"data.root={self.root}"] if self.on_mnist else []
        self.run("train", self.config, *self.overrides, *root, "--out", self.place, makes=self.place / "summary.json")
        return [json.loads((self.place / f"{name}.json").read_text()) for name in ("ledger", "summary")]

    def numbers(self):
        """The numbers of this configuration."""
        if self.name == "prequential_digits":
            self.place.mkdir(parents=True, exist_ok=True)
            file = self.place / "message.bbm"
            said = json.loads(self.run("send", self.config, *self.overrides, "--code", "prequential", "-o", file, "--json"))
            return {"prequential_bits": said["prequential_bits"], "file_bytes": file.stat().st_size}
        ledger, summary = self.trained()
        found = {name: ledger[name] for name in ("net_bits", "data_bits", "net_weight_bits", "refund_bits")}
        found["test_error"] = summary["test_error"]
        if self.name == "mnist_certificate":
            said = json.loads(self.run("certify", self.place, "--draws", 180000, "--alternatives", 100, "--json"))
            found["bound"] = said["bound"]
        if self.name == "mnist_800":
            file = self.place / "model.bb"
            self.run("pack", self.place, "-o", file, makes=file)
            found = {"file_bytes": file.stat().st_size, "test_error": self.error_of(file)}
        return found

    def error_of(self, file):
        """Test error of a packed file, by the classes that `predict` names for the test images."""
        import numpy as np

        from bitsback.data.idx import read_idx

        images = Path(self.root) / "t10k-images-idx3-ubyte"
        images = images if images.is_file() else images.with_name(images.name + ".gz")
        said = self.run("predict", file, "--data", images, "--json")
        classes = np.array([answer["class"] for answer in json.loads(said)])
        return float((classes != read_idx(images.with_name(images.name.replace("images-idx3", "labels-idx1")))).mean())


def measure(name, options):
    """Mean and spread over the seeds."""
    seeds = [0, 1, 2] if name in DIGITS else [0]
    runs = [Measurement(name, seed, options) for seed in seeds]
    numbers = [run.numbers() for run in runs]
    return {
        "seeds": seeds,
        "commands": runs[0].commands,
        **{
            key: {
                "mean": statistics.fmean(each[key] for each in numbers),
                "spread": statistics.stdev([each[key] for each in numbers]) if len(seeds) > 1 else 0.0,
            }
            for key in numbers[0]
        },
    }


def main():
    """Measure, print, compare or store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--data-root", default="data/mnist")
    parser.add_argument("--out", type=Path, default=Path("runs/baseline"))
    parser.add_argument("--write", action="store_true", help="store the numbers in tests/baseline.json")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no configuration {unknown[0]}; there are {', '.join(NAMES)}")
    options.out = options.out.resolve()
    stored = json.loads(BASELINE.read_text()) if BASELINE.is_file() else {}
    for name in options.names or NAMES:
        found = measure(name, options)
        print(json.dumps({name: found}), flush=True)
        if options.write:
            stored[name] = found
            BASELINE.write_text(json.dumps(stored, indent=2) + "\n")
            continue
        for key, value in found.items():
            before = stored.get(name, {}).get(key)
            if isinstance(value, dict) and before:
                change = f"{100 * (value['mean'] / before['mean'] - 1):+.2f} %" if before["mean"] else ""
                print(f"{name} {key}: before {before['mean']:.6g} +- {before['spread']:.2g}, now {value['mean']:.6g} {change}")


if __name__ == "__main__":
    main()
