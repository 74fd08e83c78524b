"""One training step, against a deterministic network and against the peers.

python scripts/bench_step.py --net mlp|lenet|resnet20 [--threads 1 2] [--steps 5] [--rounds 30] [--batch 128]
                             [--only WORD ...] [--no-memory] [--json FILE]

A step is forward, data cost, KL / N with N = 60,000, backward and optimiser, on synthetic images of the shape of MNIST's or
CIFAR's. All contestants live in one process and take turns, so that noise hits all alike; a ratio is to the deterministic
network with default Adam in the same round, by processor time with one thread and by wall time with more. Shown are medians
(quartiles). Operators: ATen calls of a step. Memory: the peak of a few steps beyond a process that has imported the
contestant, made the data and trained a tiny network; each contestant in a process of its own.

Peers that are not installed are left out; scripts/bench_env.sh makes an environment that has them.
"""

import argparse
import json
import subprocess
import sys
from itertools import cycle
from typing import Any

import torch
from bench_report import parsed, shown, table, write
from benchmarks.contestants import BASELINE, STEP, chosen, joined, versions
from benchmarks.nets import STEP_NETS
from benchmarks.timing import operator_calls, peak_bytes, quartiles, ratios, synthetic_batches, take, timed_rounds
from benchmarks.trainer import Task, Trainer

MEMORY_STEPS = 3


def trainer_of(name: str, net: str, width: int, batch: int) -> Trainer | None:
    """A contestant on a network."""
    torch.manual_seed(0)
    return joined(STEP[name], name, Task(STEP_NETS[net].make(width), batch_size=batch))


def memory_of(name: str, net: str, batch: int) -> int:
    """Bytes that a few steps of a contestant hold, in this process."""
    torch.set_num_threads(1)
    supply = cycle(synthetic_batches(STEP_NETS[net].shape, batch))
    for width in (STEP_NETS[net].tiny, STEP_NETS[net].width):
        before = peak_bytes()
        trainer = trainer_of(name, net, width, batch)
        assert trainer is not None
        take(trainer, supply, MEMORY_STEPS)
    return peak_bytes() - before


def memory_elsewhere(name: str, options: argparse.Namespace) -> int | None:
    """The same, in a process of its own; None, with a line, when that fails."""
    command = [sys.executable, __file__, "--net", options.net, "--batch", str(options.batch), "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"the memory of {name} could not be measured: {done.stderr[-300:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def measured(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Everything, by contestant."""
    names = list(dict.fromkeys([BASELINE, *chosen(STEP, options.only)]))
    width = STEP_NETS[options.net].width
    joining = {name: trainer_of(name, options.net, width, options.batch) for name in names}
    trainers = {name: trainer for name, trainer in joining.items() if trainer is not None}
    batches = synthetic_batches(STEP_NETS[options.net].shape, options.batch)
    rows: dict[str, dict[str, Any]] = {name: {} for name in trainers}
    for threads in options.threads:
        torch.set_num_threads(threads)
        cpu, wall = timed_rounds(trainers, batches, options.rounds, options.steps)
        by_cpu, by_wall = ratios(cpu, BASELINE), ratios(wall, BASELINE)
        for name, row in rows.items():
            seconds = {"cpu_seconds": quartiles(cpu[name]), "wall_seconds": quartiles(wall[name])}
            row[f"threads_{threads}"] = {**seconds, "cpu_ratio": by_cpu[name], "wall_ratio": by_wall[name]}
    for name, row in rows.items():
        row["operator_calls"] = operator_calls(trainers[name], batches[0])
        row["extra_bytes"] = memory_elsewhere(name, options) if options.memory else None
    return rows


def show(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    head = [f"{options.net}, batch {options.batch}"]
    for threads in options.threads:
        head += [f"ms a step, {threads} thread{'s' * (threads > 1)}", "ratio"]
    body = []
    for name, row in rows.items():
        line = [name]
        for threads in options.threads:
            clock, found = "cpu" if threads == 1 else "wall", row[f"threads_{threads}"]
            line += [f"{found[f'{clock}_seconds']['median'] * 1e3:,.1f}", shown(found[f"{clock}_ratio"])]
        held = row["extra_bytes"]
        body.append([*line, f"{row['operator_calls']:,}", "" if held is None else f"{held / 1e6:.1f}"])
    print(table([*head, "operators", "memory, MB"], body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(STEP_NETS), required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=5, help="steps of a contestant in a round")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="contestants with one of these words in the name")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the memory")
    parser.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    options = parsed(parser)
    if options.memory_of:
        print(memory_of(options.memory_of, options.net, options.batch))
        return
    rows = measured(options)
    show(rows, options)
    settings = {name: getattr(options, name) for name in ("net", "threads", "steps", "rounds", "batch")}
    write(options.json, {"settings": settings, "peers": versions(), "baseline": BASELINE, "contestants": rows})


if __name__ == "__main__":
    main()
