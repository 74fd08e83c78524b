"""One training step, against a deterministic network, the peers, each prior, and another checkout.

python scripts/bench_step.py --net mlp|lenet|resnet20 | --priors | --config FILE [--set KEY=VALUE ...]
                             [--beside DIR] [--threads 1 2] [--steps 5] [--rounds 30] [--batch 128] [--only WORD ...]
                             [--device cpu|cuda] [--no-memory] [--json FILE]

A step is forward, data cost, KL / N with N = 60,000, backward and optimiser, on synthetic images of the shape of MNIST's or
CIFAR's. All contestants live in one process and take turns, so that noise hits all alike; a ratio is to the deterministic
network with default Adam in the same round, by processor time with one thread and by wall time with more, or on another
device, which is waited for. Shown are medians (quartiles). Operators: ATen calls of a step. Memory: the peak of a few steps
beyond a process that has imported the contestant, made the data and trained a tiny network; each contestant in a process of
its own.

``--priors``: every kind of prior on 784-300-10, under weight noise and as ``auto`` has it, against the Gaussian. ``--config``:
as the file says, data and batches too, against its network without posterior. ``--beside``: what is ours also with the bitsback
of another checkout (git worktree add DIR COMMIT), in processes of their own that take turns with the others.

Peers that are not installed are left out; scripts/bench_env.sh makes an environment that has them.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from bench_report import check_device, parsed, shown, table, write
from benchmarks.contestants import BASELINE, chosen, versions
from benchmarks.elsewhere import Elsewhere, Race
from benchmarks.nets import STEP_NETS
from benchmarks.timing import operator_calls, peak_bytes, quartiles, ratios, take, timed_rounds
from benchmarks.trainer import Missing, Trainer

MEMORY_STEPS = 3
BESIDE = "before: "
"""How the contestants of the other checkout are called."""


def race_of(options: argparse.Namespace) -> Race:
    """What is asked for."""
    config = str(options.config.resolve()) if options.config else ""
    return Race(options.net or "", options.batch, config, tuple(options.set), device=options.device)


def baseline_of(name: str, names: list[str]) -> str:
    """What a contestant is compared with: the deterministic network, or the Gaussian prior under the same estimator."""
    return BASELINE if BASELINE in names else f"gaussian, {name.rpartition(', ')[2]}"


def names_of(race: Race, only: list[str]) -> list[str]:
    """Those that were chosen, and what they are compared with."""
    every = list(race.contestants())
    wanted = list(chosen(race.contestants(), only))
    return [name for name in every if name in wanted or name in {baseline_of(other, every) for other in wanted}]


def memory_of(name: str, race: Race) -> int:
    """Bytes that a few steps of a contestant hold, in this process."""
    torch.set_num_threads(1)
    supply = cycle(race.batches())
    for width in (race.network.tiny, race.network.width):
        before = peak_bytes()
        trainer = race.trainer(name, width)
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


def joined(race: Race, names: list[str], beside: Path | None) -> dict[str, Trainer]:
    """Those that can take part."""
    found: dict[str, Trainer] = {}
    for name in names:
        trainer = race.trainer(name)
        if trainer is not None:
            found[name] = trainer
        if beside is not None and (not race.net or name.startswith("bitsback")) and name != BASELINE:
            try:
                found[BESIDE + name] = Elsewhere(race, name, beside)
            except Missing as error:
                print(f"left out: {BESIDE}{name}: {error}", file=sys.stderr)
    return found


def measured(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Everything, by contestant."""
    race = race_of(options)
    names = names_of(race, options.only)
    batches, rows = race.batches(), {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        trainers = joined(replace(race, threads=threads), names, options.beside)
        cpu, wall = timed_rounds(trainers, batches, options.rounds, options.steps)
        for name, trainer in trainers.items():
            base = baseline_of(name, names)
            row = rows.setdefault(name, {})
            row[f"threads_{threads}"] = {
                "cpu_seconds": quartiles(cpu[name]),
                "wall_seconds": quartiles(wall[name]),
                "cpu_ratio": ratios(cpu, base)[name],
                "wall_ratio": ratios(wall, base)[name],
            }
            if isinstance(trainer, Elsewhere):
                trainer.close()
            else:
                row["operator_calls"] = operator_calls(trainer, batches[0])
    for name, row in rows.items():
        has_memory = options.memory and race.net and race.device == "cpu" and "operator_calls" in row
        row["extra_bytes"] = memory_elsewhere(name, options) if has_memory else None
    return rows


def show(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    head = [
        f"{options.net or options.config or '784-300-10'}, batch {options.batch if not options.config else 'as configured'}"
    ]
    for threads in options.threads:
        head += [f"ms a step, {threads} thread{'s' * (threads > 1)}", "ratio"]
    body = []
    for name, row in rows.items():
        line = [name]
        for threads in options.threads:
            clock, found = "cpu" if threads == 1 and options.device == "cpu" else "wall", row[f"threads_{threads}"]
            line += [f"{found[f'{clock}_seconds']['median'] * 1e3:,.2f}", shown(found[f"{clock}_ratio"])]
        calls, held = row.get("operator_calls"), row["extra_bytes"]
        body.append([*line, "" if calls is None else f"{calls:,}", "" if held is None else f"{held / 1e6:.1f}"])
    print(table([*head, "operators", "memory, MB"], body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--net", choices=list(STEP_NETS))
    what.add_argument("--priors", action="store_true", help="every kind of prior against the Gaussian")
    what.add_argument("--config", type=Path, metavar="FILE", help="a configuration against its network without posterior")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the configuration")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout of bitsback, which takes part too")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=5, help="steps of a contestant in a round")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu", help="where the networks train, except those of --config, which say it")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="contestants with one of these words in the name")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the memory")
    parser.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    options = parsed(parser)
    if options.memory_of:
        print(memory_of(options.memory_of, race_of(options)))
        return
    check_device(options.device)
    rows = measured(options)
    show(rows, options)
    settings = {name: getattr(options, name) for name in ("net", "threads", "steps", "rounds", "batch")}
    settings |= {"device": options.device, "config": str(options.config or ""), "beside": str(options.beside or "")}
    write(options.json, {"settings": settings, "peers": versions(), "baseline": BASELINE, "contestants": rows})


if __name__ == "__main__":
    main()
