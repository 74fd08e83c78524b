"""Bytes that training steps hold for each weight, beyond a process that has trained a small network.

python scripts/bench_memory.py [--width 10000] [--json FILE]

One dense layer of width x width weights, batches of one example, three steps, each contestant in a process of its own: the
deterministic network with default Adam, and `bitsback.optim.Adam` with noise that is drawn afresh and with a pool of it
(`training.noise_reuse: 8`). Of float32 numbers, w, its gradient, mean, log std and four moments are 32 bytes.
"""

import argparse
import json
import subprocess
import sys

import torch
from bench_report import parsed, write
from benchmarks.timing import peak_bytes
from torch import nn

import bitsback

SMALL, STEPS, REUSE = 100, 3, 8
CONTESTANTS = ("deterministic", "bitsback", "bitsback, noise reused")


def take_steps(name: str, width: int) -> None:
    """Train a layer for a few steps."""
    network = nn.Linear(width, width, bias=False)
    if name == "deterministic":
        call, optimizer = network, torch.optim.Adam(network.parameters())
    else:
        call = bitsback.bayesianize(network, seed=0)
        optimizer = bitsback.optim.Adam(call, examples=100)
        call.set_noise(None, REUSE if name.endswith("reused") else 1)
    for _ in range(STEPS):
        call(torch.randn(1, width)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def bytes_each(name: str, width: int) -> float:
    """Return the peak beyond that of a small network, for each weight, in this process."""
    torch.set_num_threads(1)
    take_steps(name, SMALL)
    before = peak_bytes()
    take_steps(name, width)
    return (peak_bytes() - before) / width**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=10_000)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parsed(parser)
    if options.only:
        print(json.dumps(bytes_each(options.only, options.width)))
        return
    found = {}
    for name in CONTESTANTS:
        command = [sys.executable, __file__, "--width", str(options.width), "--only", name]
        found[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name:24} {found[name]:6.1f} bytes a weight", flush=True)
    write(options.json, {"width": options.width, "steps": STEPS, "bytes_each": found})


if __name__ == "__main__":
    main()
