"""Profile of a training step: milliseconds by phase, multiply-adds by layer, operators, and a trace."""

from collections import defaultdict
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.utils.flop_counter import FlopCounterMode

from bitsback.atomic_io import write_text
from bitsback.training.loop import Fit

__all__ = ["PHASES", "STEPS", "profile"]

WARM_UP, TRACED = 5, 20
STEPS = WARM_UP + TRACED + 1
"""Number of steps that a profile runs."""

OPERATORS = 12
"""Number of operators in the table."""

PHASES = {
    "bitsback: forward": "forward",
    "bitsback: backward": "backward",
    "bitsback: cost": "count the KL, priors follow",
    "bitsback: move and draw": "gradients, move, next draw",
}
"""Phases of a step: their names in the trace, and in the table."""

STEP = "bitsback: step"
LOOP = "loop"
"""Name of the rest of a step in the table."""


def profile(fit: Fit, directory: Path) -> str:
    """Run some training steps, and write a trace and tables of their cost.

    The files are ``directory``/trace.json (for Perfetto or chrome://tracing) and ``directory``/steps.txt.

    Args:
        fit: a training that has not begun. The steps change it: pass a copy.
        directory: created if missing.

    Returns:
        the text of steps.txt: tables of phases, layers and operators.
    """
    supply = enumerate(cycle(list(islice(fit.batches(), 8))))
    device = fit.train.targets.device

    def take(count: int) -> None:
        for number, (inputs, targets) in islice(supply, count):
            with record_function(STEP):
                fit.step(number, inputs, targets)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

    take(WARM_UP)
    accelerators = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *accelerators]) as trace:
        take(TRACED)
    with FlopCounterMode(display=False) as counter:
        take(1)
    directory.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(directory / "trace.json"))
    medians, whole = _phases(trace)
    parts = [_phase_table(medians, whole), _layer_table(counter, whole), _operator_table(trace)]
    text = "\n\n".join(parts) + "\n"
    write_text(directory / "steps.txt", text)
    return text


def _phases(trace: Any) -> tuple[dict[str, float], float]:
    """Return median seconds of each phase, of the rest and of a whole step, from ranges in the trace."""
    ranges = [event for event in trace.events() if event.name in PHASES]
    found: dict[str, list[float]] = defaultdict(list)
    for step in (event for event in trace.events() if event.name == STEP):
        begin, end = step.time_range.start, step.time_range.end
        inside = [event for event in ranges if begin <= event.time_range.start < end]
        for name, said in PHASES.items():
            found[said].append(sum(event.cpu_time_total for event in inside if event.name == name) / 1e6)
        found[STEP].append(step.cpu_time_total / 1e6)
        found[LOOP].append(found[STEP][-1] - sum(found[said][-1] for said in PHASES.values()))
    medians = {said: median(found[said]) for said in [*PHASES.values(), LOOP]}
    return medians, median(found[STEP])


def _phase_table(medians: dict[str, float], whole: float) -> str:
    lines = [f"{name:28} {1e3 * seconds:9.3f} {seconds / whole:7.1%}" for name, seconds in medians.items()]
    return "\n".join([f"{'phase of a step':28} {'ms':>9} {'share':>7}", *lines, f"{'step':28} {1e3 * whole:9.3f} {1:7.1%}"])


def _layer_table(counter: FlopCounterMode, whole: float) -> str:
    """Tabulate multiply-adds of one step by layer, forward and backward."""
    counts = {name: sum(by_kind.values()) // 2 for name, by_kind in counter.get_flop_counts().items()}
    total = max(1, counts.get("Global", 1))
    layers = [name for name in counts if not any(other.startswith(f"{name}.") for other in counts) and name != "Global"]
    short = {name: name.partition(".network.")[2] or name for name in layers}
    lines = [f"{short[name]:24} {counts[name]:15,} {counts[name] / total:7.1%}" for name in layers]
    rate = f"{2 * total / whole / 1e9:.1f} GFLOP/s over the whole step"
    return "\n".join([f"{'layer':24} {'multiply-adds':>15} {'share':>7}", *lines, f"{'step':24} {total:15,} ({rate})"])


def _operator_table(trace: Any) -> str:
    events = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)[:OPERATORS]
    total = sum(event.self_cpu_time_total for event in trace.key_averages()) or 1
    lines = [
        f"{event.key[:40]:40} {event.self_cpu_time_total / 1e3 / TRACED:9.3f} {event.self_cpu_time_total / total:7.1%} "
        f"{event.count // TRACED:6}"
        for event in events
    ]
    return "\n".join([f"{'operator':40} {'ms a step':>9} {'share':>7} {'calls':>6}", *lines])
