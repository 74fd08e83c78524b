"""Clocks: interleaved rounds of steps, operator calls of a step, and the memory of a training."""

import os
import resource
import statistics
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.profiler import profile
from tqdm import tqdm

from benchmarks.trainer import Trainer

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes a line whenever it begins and ends

Batch = tuple[Tensor, Tensor]
Seconds = dict[str, list[float]]
"""Seconds of a step in every round, by contestant."""


def timed_rounds(trainers: dict[str, Trainer], batches: Sequence[Batch], rounds: int, steps: int) -> tuple[Seconds, Seconds]:
    """CPU and wall seconds of a step.

    In every round each contestant in turn takes one step that is not counted and ``steps`` that are; each round begins with
    another contestant.
    """
    cpu: Seconds = {name: [] for name in trainers}
    wall: Seconds = {name: [] for name in trainers}
    names, supply = list(trainers), cycle(batches)
    for name in names:
        take(trainers[name], supply, 3)
    for number in tqdm(range(rounds), desc="rounds", leave=False):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            by_cpu, by_wall = trainers[name].timed(supply, steps)
            cpu[name].append(by_cpu)
            wall[name].append(by_wall)
    return cpu, wall


def take(trainer: Trainer, supply: Iterator[Batch], steps: int) -> None:
    """So many steps."""
    for _ in range(steps):
        trainer.step(*next(supply))


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def ratios(seconds: Seconds, baseline: str) -> dict[str, dict[str, float]]:
    """Of every contestant to the baseline in the same round."""
    base = seconds[baseline]
    return {name: quartiles([a / b for a, b in zip(own, base, strict=True)]) for name, own in seconds.items()}


def operator_calls(trainer: Trainer, batch: Batch) -> int:
    """ATen operators called in one step, also those called by others."""
    trainer.step(*batch)
    with profile(use_kineto=False) as found:
        trainer.step(*batch)
    return sum(event.count for event in found.key_averages() if event.key.startswith("aten::"))


def peak_bytes() -> int:
    """The most memory that this process has held (ru_maxrss would begin with its parent's)."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def synthetic_batches(shape: Sequence[int], batch_size: int, count: int = 8, device: str = "cpu") -> list[Batch]:
    """Random images and labels of ten classes."""
    torch.manual_seed(0)
    several = [(torch.randn(batch_size, *shape), torch.randint(10, (batch_size,))) for _ in range(count)]
    return [(x.to(device), y.to(device)) for x, y in several]
