"""Set the records of codelengths and certificates again: train, measure, and decode what is said to be decodable.

python scripts/reproduce_records.py [NAME ...] [--data-root DIR] [--text FILE] [--seeds 0,1,2] [--out DIR] [--set KEY=VALUE ...]

A JSON line for each record, code and seed: bits or bound, test error, seconds. `receive` runs in a process of its own, and its
labels are compared with the true ones. With --no-receive nothing is decoded, which saves half the time of the prequential code.
"""

import argparse
import bz2
import json
import lzma
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RECORDS = Path(__file__).parent.parent / "configs" / "records"
LABELS = """
import sys
import numpy as np
from bitsback.config import load_config
np.save(sys.argv[1], load_config(sys.argv[2], sys.argv[3:]).data.load().train.targets.numpy())
"""


def run(*words):
    """Run a command; its standard output and seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "bitsback", *map(str, words)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return said, round(time.perf_counter() - began, 1)


class Record:
    """One configuration with one seed, and where its files go."""

    def __init__(self, name, options, seed):
        self.name, self.config, self.seed, self.receives = name, RECORDS / f"{name}.yaml", seed, not options.no_receive
        self.root, self.place = f"data.root={options.data_root}", options.out / f"{name}-{seed}"
        self.text = options.text
        self.overrides = [f"data.path={self.text}" if name in TEXTS else self.root, *options.set, f"seed={seed}"]
        self.place.mkdir(parents=True, exist_ok=True)

    def say(self, code, seconds, **facts):
        """Print a line."""
        print(json.dumps({"record": self.name, "code": code, "seed": self.seed, **facts, "seconds": seconds}), flush=True)

    def train(self, config=None, to="run", *more):
        """The run, trained unless it is there already, and the seconds that takes."""
        run_directory = self.place / to
        if not (run_directory / "summary.json").is_file():
            run("train", config or self.config, *self.overrides, *more, "--out", run_directory)
        return run_directory, json.loads((run_directory / "summary.json").read_text())

    def comes_back(self, message):
        """Whether a receiver in a process of its own gets the labels, and how long it takes."""
        if not self.receives:
            return {}
        out = self.place / f"received-{message.stem}"
        _, seconds = run("receive", message, "-o", out, f"--{self.root}")
        more = [*self.overrides, "data.features=null"]
        command = [sys.executable, "-c", LABELS, str(self.place / "true.npy"), str(self.config), *more]
        subprocess.run(command, check=True)
        same = bool(np.array_equal(np.load(self.place / "true.npy"), np.load(out / "labels.npy")))
        return {"labels_come_back": same, "receive_seconds": seconds}

    def trained(self):
        """The run, whose ledger is printed."""
        directory, summary = self.train()
        ledger = json.loads((directory / "ledger.json").read_text())
        bits = {name: round(ledger[name], 1) for name in ("net_bits", "data_bits", "net_weight_bits", "hyperparameter_bits")}
        self.say("variational", round(summary["training_seconds"], 1), **bits, test_error=summary["test_error"])
        return directory

    def file_of_a_text(self):
        """Train, and write network and text as one file, beside what general compressors need for the text."""
        directory, message, content = self.trained(), self.place / "text.bb", self.text.read_bytes()
        rivals = {"bz2": bz2.compress(content), "xz": lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)}
        self.say("rivals", 0.0, **{f"{name}_bits_per_byte": round(8 * len(c) / len(content), 4) for name, c in rivals.items()})
        said, seconds = run("send", "--run", directory, "--code", "two_part", "-o", message, "--json")
        found = {"bits_per_byte": round(8 * message.stat().st_size / len(content), 4)}
        if self.receives:
            _, found["receive_seconds"] = run("receive", message, "-o", self.place / "received")
            found["text_comes_back"] = (self.place / "received" / "text.txt").read_bytes() == content
        self.say("realised", seconds, **json.loads(said), **found)

    def variational(self):
        """Train, and the two codes of the run: the ledger's net bits, and labels and network as bytes."""
        directory = self.trained()
        message = self.place / "two_part.bb"
        if not message.is_file():
            said, seconds = run("send", "--run", directory, "--code", "two_part", "-o", message, "--json")
            self.say("realised", seconds, **json.loads(said), **self.comes_back(message))

    def prequential(self):
        """The labels, block by block."""
        message = self.place / "prequential.bb"
        said, seconds = run("send", self.config, *self.overrides, "--code", "prequential", "-o", message, "--json")
        facts = {key: value for key, value in json.loads(said).items() if key not in ("blocks", "seconds")}
        self.say("prequential", seconds, **facts, **self.comes_back(message))

    def certificate(self):
        """Train, if need be on a prior from the other part of the data, and certify."""
        earlier = RECORDS / f"{self.name.removesuffix('_posterior')}_prior.yaml"
        began, more = time.perf_counter(), []
        if self.name.endswith("_posterior"):
            prior, _ = self.train(earlier, "prior")
            more = [f"prior.run={prior}"]
        directory, _ = self.train(None, "run", *more)
        said, _ = run("certify", directory, "--draws", 180000, "--alternatives", 100, "--json")
        self.say("certificate", round(time.perf_counter() - began, 1), **json.loads(said))


STEPS = {
    "mnist_modes": Record.variational,
    "mnist_smooth": Record.variational,
    "mnist_prequential": Record.prequential,
    "mnist_certificate": Record.certificate,
    "mnist_certificate_posterior": Record.certificate,
    "tinyshakespeare": Record.file_of_a_text,
}
TEXTS = ("tinyshakespeare",)


def main():
    """Reproduce and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"records, of {', '.join(STEPS)}; default: all")
    parser.add_argument("--data-root", default="data/mnist")
    parser.add_argument("--text", type=Path, default=Path("data/tinyshakespeare.txt"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("runs/records"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides, for a toy run")
    parser.add_argument("--no-receive", action="store_true", help="do not decode the messages")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in STEPS]
    if unknown:
        parser.error(f"no record {unknown[0]}; there are {', '.join(STEPS)}")
    for name in options.names or STEPS:
        for seed in options.seeds.split(","):
            STEPS[name](Record(name, options, int(seed)))


if __name__ == "__main__":
    main()
