"""Seconds of training on MNIST until the net bits fall under thresholds, by one ledger for all.

python scripts/bench_bits.py [--net conv|mlp] [--seconds 20 60 180] [--seeds 1] [--lr LR ...] [--only WORD ...]
                             [--data-root data/mnist] [--threads 1] [--json FILE]

Every contestant trains for a budget of processor seconds, on batches of 128 of the same images, with the same short rise and
cosine of its rates over the budget. Now and then the clock stops, and its (mean, std) of every weight goes into a model of
ours, whose Gaussian priors take their best scale for each tensor: the ledger of that, with 3 draws, gives the net bits. A
time is that of the first ledger under the threshold (they are 12 % of the time or an epoch apart, whichever is less). Since
a short budget is quick and a long one goes deep, the summary takes, for each threshold, the budget and rate with the lowest
median over seeds.

Peers that are not installed are left out; scripts/bench_env.sh makes an environment that has them. Ctrl-C shows what is there.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from bench_report import parsed, table, write
from benchmarks.auditor import Auditor
from benchmarks.contestants import BITS, chosen, joined, rates, versions
from benchmarks.nets import BITS_NETS
from benchmarks.trainer import Task, Trainer
from torch import Tensor
from tqdm import tqdm

from bitsback.data import Examples
from bitsback.data.settings import IdxSettings
from bitsback.errors import TrainingError

THRESHOLDS = (22_200, 15_000, 12_000, 10_000)
BATCH = 128
FIRST_LOOK, MORE = 0.05, 1.12
"""Share of the budget before the first look at the posterior, and how much later each look is than the one before."""


@dataclass(frozen=True)
class Point:
    """What was found when the clock stood still."""

    cpu_seconds: float
    wall_seconds: float
    steps: int
    net_bits: float
    exact: bool


@dataclass
class Run:
    """One training of one contestant."""

    contestant: str
    budget_seconds: float
    lr: float
    seed: int
    points: list[Point] = field(default_factory=list)
    error_of_means: float | None = None
    error: str = "interrupted"

    def seconds_to(self, bits: float) -> float:
        """Processor seconds until the first ledger under so many bits; infinite when there is none."""
        return next((point.cpu_seconds for point in self.points if point.exact and point.net_bits < bits), math.inf)

    def lowest_bits(self) -> float:
        """The lowest ledger; infinite when there is none."""
        return min((point.net_bits for point in self.points if point.exact), default=math.inf)


def batches(examples: Examples, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, each in an order of its own."""
    order = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(len(examples), generator=order).split(BATCH):
            yield examples.inputs[batch], examples.targets[batch]


def train(trainer: Trainer, run: Run, auditor: Auditor) -> None:
    """Train for the budget, looking at the posterior now and then while the clock stands still."""
    supply, epoch = batches(auditor.examples, run.seed), len(auditor.examples) // BATCH
    cpu = wall = 0.0
    steps, look_at = 0, FIRST_LOOK * run.budget_seconds
    bar = tqdm(total=run.budget_seconds, desc=f"{run.contestant}, lr {run.lr:g}", unit="s", leave=False)
    while cpu < run.budget_seconds:
        began_wall, began_cpu, last_step = time.perf_counter() - wall, time.process_time() - cpu, steps + epoch
        while cpu < min(look_at, run.budget_seconds) and steps < last_step:
            trainer.progress(cpu / run.budget_seconds)
            trainer.step(*next(supply))
            steps += 1
            cpu = time.process_time() - began_cpu
        wall = time.perf_counter() - began_wall
        look_at = MORE * cpu
        ended = cpu >= run.budget_seconds
        wanted = math.inf if ended else next((bits for bits in THRESHOLDS if run.seconds_to(bits) == math.inf), 0)
        audit = auditor.audit(trainer.moments(), wanted)
        if not math.isfinite(audit.net_bits):
            raise TrainingError("not finite")
        run.points.append(Point(cpu, wall, steps, audit.net_bits, audit.exact))
        bar.update(min(cpu, run.budget_seconds) - bar.n)
        bar.set_postfix_str(f"{audit.net_bits:,.0f} bits")
    bar.close()
    run.error_of_means, run.error = auditor.error_of_means(trainer.moments()), ""


def cells(times: list[float]) -> list[str]:
    """Seconds for a table."""
    return ["-" if math.isinf(seconds) else f"{seconds:.3g}" for seconds in times]


def show_run(run: Run) -> None:
    """A line of the table that grows."""
    times = cells([run.seconds_to(bits) for bits in THRESHOLDS])
    error = run.error or f"{run.error_of_means:.1%}"
    settings = [f"{run.budget_seconds:g}", f"{run.lr:g}", str(run.seed), f"{run.points[-1].steps if run.points else 0:,}"]
    print(f"| {' | '.join([run.contestant, *settings, f'{run.lowest_bits():,.0f}', error, *times])} |", flush=True)


def summary(runs: list[Run]) -> list[dict[str, object]]:
    """For every contestant and threshold the best median over seeds, and its budget and rate."""
    rows = []
    for name in dict.fromkeys(run.contestant for run in runs):
        own: dict[tuple[float, float], list[Run]] = {}
        for run in runs:
            if run.contestant == name:
                own.setdefault((run.budget_seconds, run.lr), []).append(run)
        row: dict[str, object] = {"contestant": name}
        for bits in THRESHOLDS:
            medians = {settings: statistics.median(run.seconds_to(bits) for run in group) for settings, group in own.items()}
            best = min(medians, key=lambda settings: medians[settings])
            times = sorted(run.seconds_to(bits) for run in own[best])
            found = {"seconds": medians[best], "low": times[0], "high": times[-1], "budget_seconds": best[0], "lr": best[1]}
            row[str(bits)] = None if math.isinf(medians[best]) else found
        lows = {settings: statistics.median(run.lowest_bits() for run in group) for settings, group in own.items()}
        lowest = min(lows.values())
        rows.append({**row, "lowest_net_bits": None if math.isinf(lowest) else lowest})
    return rows


def show(rows: list[dict[str, object]], net: str) -> None:
    """The summary as a table: seconds (lowest to highest; of which budget)."""
    body = []
    for row in rows:
        line = [str(row["contestant"])]
        for bits in THRESHOLDS:
            found = row[str(bits)]
            line.append("{seconds:.3g} ({low:.3g} to {high:.3g}; of {budget_seconds:g})".format(**found) if found else "-")
        lowest = row["lowest_net_bits"]
        body.append([*line, f"{lowest:,.0f}" if lowest else "-"])
    print()
    print(table([f"{net}: seconds until net bits are under", *(f"{bits:,}" for bits in THRESHOLDS), "lowest"], body))


def run_all(options: argparse.Namespace, examples: Examples, runs: list[Run]) -> None:
    """Every training; contestants take turns, so that a slow hour of the machine hits all of them."""
    net, absent = BITS_NETS[options.net], set()
    for seed in range(options.seeds):
        for budget in options.seconds:
            for name, make in chosen(BITS, options.only).items():
                for lr in options.lr or rates(name):
                    torch.manual_seed(seed)
                    network = net.make(net.width)
                    auditor = Auditor(network, examples)
                    task = Task(net.make(net.width), examples=len(examples), lr=lr, batch_size=BATCH)
                    task.network.load_state_dict(network.state_dict())
                    trainer = None if name in absent else joined(make, name, task)
                    if trainer is None:
                        absent.add(name)
                        break
                    runs.append(Run(name, budget, lr, seed))
                    try:
                        train(trainer, runs[-1], auditor)
                    except (TrainingError, ValueError) as error:  # ours, and Pyro's, when a number is not finite
                        runs[-1].error = str(error).splitlines()[0]
                    show_run(runs[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(BITS_NETS), default="conv")
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0, 60.0, 180.0], help="budgets of a training")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, nargs="+", help="rates to try for everybody, in place of each one's own")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="contestants with one of these words in the name")
    parser.add_argument("--data-root", type=Path, default=Path("data/mnist"), help="directory of the four files of MNIST")
    parser.add_argument("--threads", type=int, default=1)
    options = parsed(parser)
    torch.set_num_threads(options.threads)
    examples = IdxSettings(root=options.data_root).load().train
    runs: list[Run] = []
    head = [
        "contestant",
        "budget, s",
        "lr",
        "seed",
        "steps",
        "lowest net bits",
        "error of means",
        *(f"{b:,}" for b in THRESHOLDS),
    ]
    print(table(head, []))
    try:
        run_all(options, examples, runs)
    except KeyboardInterrupt:
        print("\ninterrupted; so far:")
    runs = [run for run in runs if run.points]
    rows = summary(runs)
    show(rows, options.net)
    settings = {name: getattr(options, name) for name in ("net", "seconds", "seeds", "lr", "threads")}
    found = {"settings": settings, "thresholds": THRESHOLDS, "peers": versions(), "summary": rows}
    write(options.json, {**found, "runs": [asdict(run) for run in runs]})


if __name__ == "__main__":
    main()
