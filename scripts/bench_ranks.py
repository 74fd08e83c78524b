"""Several processes against one: memory of shards, time of a step, and the cost of scale by formula and by measurement.

python scripts/bench_ranks.py [--parts memory step scale] [--weights 50000000] [--rounds 3] [--json FILE]

All processes run on this machine's CPU with gloo, in one thread each, in loops of their own (DDP, fully_shard).

``memory``: the peak of three steps of a dense network under Adam, in one process and in each of two under FSDP2; beyond that of
the same process before the network is made. Linux keeps freed blocks of up to 32 MB for later ones of the same size, of which
gathered and freed layers leave many: MALLOC_MMAP_THRESHOLD_=65536 in the environment of all of them leaves that out.
``step``: seconds of a step of two DDP processes against one process with twice the batch; medians over steps, best of the
rounds; two cores have to be free, and where they are not, the ratio of processor time, without waiting, says what would be.
``scale``: seconds of a step (best of several), a ledger and a checkpoint at three sizes, and
what docs/scale.md's formulas say, with constants fitted to one process; then the same formulas at 10^9 weights on 64 GPUs.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_report import parsed, table, write
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("memory", "step", "scale")
MOST_MEMORY, MOST_TIME = 0.6, 0.75
"""Targets: memory of one of two ranks, and time of a step of two, in those of one process."""

NUMBERS_HELD = 8
"""Float32 numbers of a weight in a step: w, its gradient, mean, log std and four moments."""

NUMBERS_SAVED = 7
"""Of these, what a checkpoint holds: all but the gradient."""

SIZES = (400, 800, 1600)
"""Widths of the three dense networks of part ``scale``, of four hidden layers."""

GPU = {"flops": 4e14, "bytes_moved": 60.0, "bandwidth": 4.3e12, "network": 5e10, "disk": 2e9}
"""Assumptions of the extrapolation: sustained bfloat16 FLOP/s, bytes of the step's one pass over a weight and memory bytes/s
(both measured on an H200, docs/scale.md), bytes/s between ranks, and bytes/s to disk."""


class Rows(nn.Module):
    """A dense network whose layers are all of one width, so that its weights are width^2 for each layer."""

    def __init__(self, width: int, layers: int, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.out(x)


def lenet() -> nn.Module:
    """LeNet-5-Caffe, 431,080 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def perceptron() -> nn.Module:
    """An MLP 784-400-400-10, 478,410 weights."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))


def joined(job: dict[str, Any]) -> None:
    """Join the processes of a job."""
    if job["ranks"] > 1:
        dist.init_process_group("gloo", init_method=f"file://{job['meet']}", rank=job["rank"], world_size=job["ranks"])


def made(network: nn.Module, strategy: str) -> tuple[Any, Callable[[Tensor], Tensor], Any]:
    """Model, its forward, and its optimiser."""
    import bitsback

    model = bitsback.bayesianize(network, seed=0)
    forward: Any = model
    if strategy == "ddp":
        forward = nn.parallel.DistributedDataParallel(model)
    if strategy == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in [*network.layers, network.out]:
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
    return model, forward, bitsback.optim.Adam(model, examples=60_000)


def step(forward: Callable[[Tensor], Tensor], optimizer: Any, x: Tensor, y: Tensor) -> None:
    """One step."""
    F.cross_entropy(forward(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(
    job: dict[str, Any], forward: Callable[[Tensor], Tensor], optimizer: Any, batch: tuple[Tensor, Tensor],
    of: Callable[[list[float]], float] = statistics.median,
) -> float:  # fmt: skip
    """Median seconds of a step, or another number of them, after two that are not counted."""
    seconds: list[float] = []
    for number in range(job["steps"] + 2):
        began = time.perf_counter()
        step(forward, optimizer, *batch)
        if number > 1:
            seconds.append(time.perf_counter() - began)
    return of(seconds)


def work(job: dict[str, Any]) -> dict[str, float]:
    """What one process of a job measures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    joined(job)
    if job["kind"] == "memory":
        layers = max(1, round(job["weights"] / job["width"] ** 2))
        x, y = torch.randn(8, job["width"]), torch.randint(10, (8,))
        small = made(Rows(32, 2), job["strategy"])
        step(small[1], small[2], x[:, :32], y)
        before = peak_bytes()
        model, forward, optimizer = made(Rows(job["width"], layers), job["strategy"])
        for _ in range(3):
            step(forward, optimizer, x, y)
        return {"bytes": peak_bytes() - before, "before": before, "weights": sum(w.numel for w in model.weights)}
    if job["kind"] == "step":
        network = {"LeNet-5-Caffe": lenet, "MLP 784-400-400-10": perceptron}[job["network"]]()
        batch = torch.randn(job["batch"], 1, 28, 28), torch.randint(10, (job["batch"],))
        _, forward, optimizer = made(network, job["strategy"])
        seconds, began = timed(job, forward, optimizer, batch), time.process_time()
        timed(job, forward, optimizer, batch)
        return {"seconds": seconds, "processor": (time.process_time() - began) / (job["steps"] + 2)}
    return scaled(job)


def scaled(job: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step, a ledger and a checkpoint, and bytes of the latter."""
    import bitsback
    from bitsback.atomic_io import write_tensors
    from bitsback.distributed import whole

    batch = torch.randn(job["batch"], job["width"]), torch.randint(10, (job["batch"],))
    model, forward, optimizer = made(Rows(job["width"], 4), job["strategy"])
    found = {"step": timed(job, forward, optimizer, batch, min), "weights": float(sum(w.numel for w in model.weights))}
    examples = bitsback.Examples(torch.randn(job["examples"], job["width"]), torch.randint(10, (job["examples"],)))
    if job["strategy"] == "ddp":
        from bitsback.distributed import present

        model.ranks = present()
    began = time.perf_counter()
    bitsback.take_ledger(model, bitsback.likelihoods.CategoricalLikelihood(10), examples, samples=job["samples"])
    found["ledger"] = time.perf_counter() - began
    began = time.perf_counter()
    states = [t for state in optimizer.state_dict()["state"].values() for t in state.values()]
    held = {f"{number}": whole(t.detach()) for number, t in enumerate([*model.state_dict().values(), *states])}
    if job["rank"] == 0:
        with tempfile.TemporaryDirectory() as folder:
            write_tensors(Path(folder) / "state", {name: t.contiguous().clone() for name, t in held.items()}, {})
            found["checkpoint_bytes"] = float((Path(folder) / "state").stat().st_size)
    found["checkpoint"] = time.perf_counter() - began
    return found


def run(ranks: int, **job: Any) -> list[dict[str, float]]:
    """What the processes of a job measure, by rank."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        several = []
        for rank in range(ranks):
            own = json.dumps({**job, "rank": rank, "ranks": ranks, "meet": f"{folder}/meet"})
            command = [sys.executable, __file__, "--worker", own]
            environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if job["kind"] == "memory" else {})}
            several.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)))
        said = [process.communicate()[0] for process in several]
        if any(process.returncode for process in several):
            raise SystemExit(f"a process of {job} failed")
        return [json.loads(text.splitlines()[-1]) for text in said]


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of one process and of two under FSDP2."""
    job = {"kind": "memory", "weights": options.weights, "width": options.width}
    (one,) = run(1, strategy="none", **job)
    two = run(2, strategy="fsdp", **job)
    most = max(rank["bytes"] for rank in two)
    whole = max(rank["bytes"] + rank["before"] for rank in two) / (one["bytes"] + one["before"])
    found = {
        "weights": one["weights"],
        "one": one,
        "two": two,
        "ratio": most / max(1, one["bytes"]),
        "ratio_of_processes": whole,
    }
    rows = [
        ["one process", f"{one['bytes'] / 1e6:,.0f}", f"{one['bytes'] / one['weights']:.1f}", "1"],
        ["each of two, FSDP2", f"{most / 1e6:,.0f}", f"{most / one['weights']:.1f}", f"{found['ratio']:.2f}"],
    ]
    print(table(["memory of a step", "MB", "bytes a weight", f"ratio (at most {MOST_MEMORY})"], rows), flush=True)
    return found


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of two DDP processes against one with twice the batch."""
    found, rows = {}, []
    for network, batch in (("LeNet-5-Caffe", 128), ("MLP 784-400-400-10", 512)):
        one, two = [], []
        for _ in range(options.rounds):
            job = {"kind": "step", "network": network, "steps": options.steps}
            one += run(1, strategy="none", batch=2 * batch, **job)
            both = run(2, strategy="ddp", batch=batch, **job)
            two.append({name: max(rank[name] for rank in both) for name in both[0]})
        best = {name: [min(each[name] for each in several) for several in (one, two)] for name in one[0]}
        ratios = {name: last / first for name, (first, last) in best.items()}
        found[network] = {
            "batch": batch,
            "one": one,
            "two": two,
            "ratio": ratios["seconds"],
            "of_processor": ratios["processor"],
        }
        shown = [f"{number * 1e3:.1f}" for number in best["seconds"]]
        rows.append([network, f"2 x {batch}", *shown, *(f"{ratio:.2f}" for ratio in ratios.values())])
    head = ["step", "batch", "one process, ms", "two under DDP, ms", f"ratio (at most {MOST_TIME})", "of processor time"]
    print(table(head, rows), flush=True)
    return found


# The formulas of docs/scale.md


def step_flops(weights: float, batch: float) -> float:
    """Multiply-adds of forward and backward, counted twice: 6 for each weight and example."""
    return 6 * weights * batch


def ledger_flops(weights: float, examples: float, samples: float) -> float:
    """Forward passes of every draw: 2 for each weight and example."""
    return 2 * weights * examples * samples


def sent_bytes(weights: float, ranks: float, strategy: str) -> float:
    """Bytes that a rank sends in a step: DDP sums gradients in a ring, FSDP2 gathers weights twice and scatters gradients."""
    return {"none": 0.0, "ddp": 2.0, "fsdp": 3.0}[strategy] * 4 * weights * (ranks - 1) / ranks


def held_bytes(weights: float, ranks: float, strategy: str, layers: float) -> float:
    """Bytes of weights in a rank; under FSDP2 its shards, and one whole layer with its gradient."""
    shards = ranks if strategy == "fsdp" else 1
    return 4 * NUMBERS_HELD * weights / shards + (2 * 4 * weights / layers if shards > 1 else 0.0)


def step_seconds(weights: float, batch: float, ranks: int, strategy: str, constants: dict[str, float]) -> float:
    """A rank's arithmetic on its share of the batch, its pass over the weights it holds, and its messages."""
    held = weights / (ranks if strategy == "fsdp" else 1)
    arithmetic = step_flops(weights, batch / ranks) / constants["flops"]
    return arithmetic + held * constants["pass"] + sent_bytes(weights, ranks, strategy) / constants["network"]


def ledger_seconds(
    weights: float, examples: float, samples: float, ranks: int, strategy: str, constants: dict[str, float]
) -> float:
    """Draws of the weights that a rank holds, and forward passes over its share of the examples."""
    drawn = weights / (ranks if strategy == "fsdp" else 1)
    return samples * drawn * constants["draw"] + ledger_flops(weights, examples, samples) / ranks / constants["ledger_flops"]


def fitted(rows: list[list[float]], seconds: list[float]) -> list[float]:
    """Coefficients above zero that fit seconds best by relative error, for two columns."""
    a = torch.tensor([[x / t for x in row] for row, t in zip(rows, seconds, strict=True)], dtype=torch.float64)
    found = torch.linalg.lstsq(a, torch.ones(len(seconds), 1, dtype=torch.float64)).solution.flatten()
    return [max(float(one), 1e-30) for one in found]


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """Three sizes by measurement and by formula, and the extrapolation."""
    samples = 4
    job = {"kind": "scale", "steps": options.steps, "samples": samples}
    runs, rows = [], []
    for width in options.sizes:
        for ranks, strategy in ((1, "none"), (2, "ddp"), (2, "fsdp")):
            for batch in (32, 256) if ranks == 1 else (256,):
                examples = 8 * batch
                several = run(ranks, strategy=strategy, width=width, batch=batch // ranks, examples=examples, **job)
                found = {name: max(rank[name] for rank in several) for name in ("step", "ledger", "checkpoint", "weights")}
                where = {"width": width, "ranks": ranks, "strategy": strategy, "batch": batch, "examples": examples}
                runs.append({**where, **found, "checkpoint_bytes": several[0]["checkpoint_bytes"]})
    alone = [one for one in runs if one["ranks"] == 1]
    flops, each = fitted([[step_flops(r["weights"], r["batch"]), r["weights"]] for r in alone], [r["step"] for r in alone])
    ledger = [[ledger_flops(r["weights"], r["examples"], samples), samples * r["weights"]] for r in alone]
    ledger_rate, draw = fitted(ledger, [r["ledger"] for r in alone])
    constants = {"flops": 1 / flops, "pass": each, "ledger_flops": 1 / ledger_rate, "draw": draw, "network": math.inf}
    shared = [one for one in runs if one["ranks"] == 2]
    left = [max(r["step"] - step_seconds(r["weights"], r["batch"], 2, r["strategy"], constants), 1e-6) for r in shared]
    sent = [sent_bytes(r["weights"], 2, r["strategy"]) for r in shared]
    constants["network"] = sum(sent) / sum(left)
    for one in runs:
        one["step_by_formula"] = step_seconds(one["weights"], one["batch"], one["ranks"], one["strategy"], constants)
        one["ledger_by_formula"] = ledger_seconds(
            one["weights"], one["examples"], samples, one["ranks"], one["strategy"], constants
        )
        one["checkpoint_by_formula"] = 4 * NUMBERS_SAVED * one["weights"]
        rows.append([
            f"{one['weights']:,.0f}", f"{one['ranks']} {one['strategy']}", f"{one['batch']}", f"{one['examples']:,}",
            f"{one['step'] * 1e3:.0f} / {one['step_by_formula'] * 1e3:.0f}",
            f"{one['ledger']:.2f} / {one['ledger_by_formula']:.2f}",
            f"{one['checkpoint_bytes'] / 1e6:,.0f} / {one['checkpoint_by_formula'] / 1e6:,.0f}",
        ])  # fmt: skip
    head = ["weights", "ranks", "batch", "examples", "step, ms", "ledger, s", "checkpoint, MB"]
    print(table(head, rows), "\n(measured / by formula)", flush=True)
    return {"runs": runs, "constants": constants, "extrapolated": extrapolated()}


def extrapolated(weights: float = 1e9, ranks: int = 64, layers: float = 32.0) -> dict[str, float]:
    """10^9 weights on 64 GPUs under FSDP2: 1,024 sequences of 1,024 tokens a step, 10^9 tokens and 10 draws in the ledger."""
    tokens, examples, samples = 2.0**20, 1e9, 10
    constants = {"flops": GPU["flops"], "pass": GPU["bytes_moved"] / GPU["bandwidth"], "network": GPU["network"]}
    ledger_flops_of_all = ledger_flops(weights, examples, samples)
    found = {
        "held_bytes": held_bytes(weights, ranks, "fsdp", layers),
        "held_bytes_ddp": held_bytes(weights, ranks, "ddp", layers),
        "step_flops": step_flops(weights, tokens),
        "step_seconds": step_seconds(weights, tokens, ranks, "fsdp", constants),
        "step_seconds_ddp": step_seconds(weights, tokens, ranks, "ddp", constants),
        "sent_bytes": sent_bytes(weights, ranks, "fsdp"),
        "ledger_flops": ledger_flops_of_all,
        "ledger_seconds": ledger_flops_of_all / ranks / GPU["flops"],
        "checkpoint_bytes": 4.0 * NUMBERS_SAVED * weights,
        "checkpoint_seconds": 4.0 * NUMBERS_SAVED * weights / GPU["disk"],
    }
    print(table(["10^9 weights on 64 ranks", "by formula"], [[name, f"{value:.3g}"] for name, value in found.items()]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--weights", type=int, default=50_000_000, help="of part memory")
    parser.add_argument("--width", type=int, default=1024, help="of part memory")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="widths of part scale")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parsed(parser)
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))))
        return
    measures = {"memory": memory, "step": steps, "scale": scale}
    write(options.json, {part: measures[part](options) for part in options.parts})


if __name__ == "__main__":
    main()
