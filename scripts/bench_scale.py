"""How step, ledger, pack and memory grow with weights and examples, and what a step of a ResNet-18 holds.

python scripts/bench_scale.py [--weights 10000 31623 ...] [--examples 1000 ...] [--rounds 2] [--parts ...]
                              [--device cpu|cuda] [--json FILE]

``weights``: a dense network, 64 - width - width - 10, on batches of 32: the weights decide the time. A step is the trainer's;
the ledger takes one draw and 1000 examples; pack is what `bitsback pack --codec quantised` does, its checks included.
``examples``: an epoch and a ledger of a network of 17,610 weights, in batches of 256. ``resnet18-memory``: the peak of training
steps of a ResNet-18 for 32 x 32 images, batch 8, default Adam against weight noise in all but batch norm.

Every measurement is a process of its own, in one thread; seconds are processor time (on a GPU wall time, the device waited
for), medians over rounds; bytes are the peak beyond libraries and data: of the step, of step and ledger, of all three. The
exponent is the slope of log time against log size over the upper half of the sizes, where fixed costs have faded, by least
squares; the last slope is that of the last two.
Linux gives blocks above 32 MB back when they are freed and clears them when they are asked for again, which costs large sizes
time: MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=8589934592 in the environment leaves that out.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_report import check_device, parsed, shown, spread, table, write

PROBE = Path(__file__).parent / "scale_probe.py"
PARTS = {"weights": "growth with weights", "examples": "growth with examples", "resnet18-memory": "memory of a ResNet-18 step"}
WEIGHTS = [10_000, 31_623, 100_000, 316_228, 1_000_000, 3_162_278, 10_000_000, 31_622_777]
EXAMPLES = [1_000, 3_162, 10_000, 31_623, 100_000, 316_228, 1_000_000]
TARGET_EXPONENT, TARGET_MEMORY = 1.05, 2.2
CONTESTANTS = ("deterministic", "ours")
ADAM_STATE = 3
"""Numbers that a deterministic network and its Adam hold for every weight."""


def probe(kind: str, what: object, device: str) -> dict[str, float]:
    """One measurement."""
    done = subprocess.run([sys.executable, str(PROBE), kind, str(what), device], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"scale_probe.py {kind} {what} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float | None]:
    """Least squares of log seconds on log sizes: the slope and its standard error (none for two points)."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    spread_of_x = sum((one - middle) ** 2 for one in x)
    found = sum((one - middle) * (other - level) for one, other in zip(x, y, strict=True)) / spread_of_x
    left = sum((other - level - found * (one - middle)) ** 2 for one, other in zip(x, y, strict=True))
    return found, math.sqrt(left / (len(x) - 2) / spread_of_x) if len(x) > 2 else None


def exponents(size_name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The growth of every time in the rows."""
    upper = rows[min(len(rows) // 2, len(rows) - 2) :]
    found = []
    for name in [name for name in rows[0] if name.endswith("_seconds")]:
        exponent, error = slope([row[size_name] for row in upper], [row[name]["median"] for row in upper])
        last, _ = slope([row[size_name] for row in rows[-2:]], [row[name]["median"] for row in rows[-2:]])
        limits = [upper[0][size_name], upper[-1][size_name]]
        found.append(
            {"what": name, "of": size_name, "range": limits, "exponent": exponent, "stderr": error, "last_slope": last}
        )
    return found


def growth(kind: str, sizes: Sequence[int], rounds: int, device: str) -> list[dict[str, Any]]:
    """A row for every size, smallest first; rounds go through all sizes in turn."""
    found: list[list[dict[str, float]]] = [[] for _ in sizes]
    for _ in range(rounds):
        for place, size in enumerate(sorted(sizes)):
            found[place].append(probe(kind, size, device))
    rows = []
    for trials in found:
        times = {name: spread([trial[name] for trial in trials]) for name in trials[0] if name.endswith("_seconds")}
        rows.append(
            {kind: round(trials[0][kind]), **times, **{n: max(t[n] for t in trials) for n in trials[0] if n.endswith("bytes")}}
        )
    return rows


def show_growth(kind: str, rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> None:
    """The rows and the fits as tables."""
    times = [name for name in rows[0] if name.endswith("_seconds")]
    memory = [name for name in rows[0] if name.endswith("bytes")]
    head = [
        kind,
        *(f"{name.removesuffix('_seconds')}, ms" for name in times),
        *(f"{name.replace('_', ' ')}, MB" for name in memory),
    ]
    body = [
        [f"{row[kind]:,}", *(shown(row[name], 1e3) for name in times), *(f"{row[name] / 1e6:,.0f}" for name in memory)]
        for row in rows
    ]
    print(table(head, body))
    print()
    lines = []
    for fit in fits:
        error = "" if fit["stderr"] is None else f" +- {fit['stderr']:.3f}"
        low, high = fit["range"]
        name = fit["what"].removesuffix("_seconds")
        lines.append([name, f"{low:,} to {high:,}", f"{fit['exponent']:.3f}{error}", f"{fit['last_slope']:.3f}"])
    print(table([f"growth with {kind}", "fitted over", f"exponent (target {TARGET_EXPONENT})", "last slope"], lines))


def resnet18_memory(rounds: int, device: str) -> dict[str, Any]:
    """Our peak beyond the deterministic one, in units of its parameters and Adam state."""
    trials = [{who: probe("resnet18", who, device) for who in CONTESTANTS} for _ in range(rounds)]
    names = ("peak_bytes", "step_seconds")
    found: dict[str, Any] = {
        who: {name: spread([trial[who][name] for trial in trials]) for name in names} for who in CONTESTANTS
    }
    weights = trials[0]["deterministic"]["weights"]
    unit = 4 * ADAM_STATE * weights
    beyond = found["ours"]["peak_bytes"]["median"] - found["deterministic"]["peak_bytes"]["median"]
    return {**found, "weights": weights, "parameter_and_adam_bytes": unit, "beyond_bytes": beyond, "ratio": beyond / unit}


def show_memory(found: dict[str, Any]) -> None:
    """The two networks and the ratio."""
    rows = [[who, shown(found[who]["peak_bytes"], 1e-6), shown(found[who]["step_seconds"], 1e3)] for who in CONTESTANTS]
    print(table([f"ResNet-18, {found['weights']:,} weights", "peak, MB", "step, ms"], rows))
    print(
        f"\nbeyond the deterministic step: {found['beyond_bytes'] / 1e6:,.0f} MB, {found['ratio']:.2f} times its weights and "
        f"Adam state ({found['parameter_and_adam_bytes'] / 1e6:,.0f} MB); target {TARGET_MEMORY}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=WEIGHTS)
    parser.add_argument("--examples", type=int, nargs="+", default=EXAMPLES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    options = parsed(parser)
    check_device(options.device)
    found: dict[str, Any] = {}
    for part in options.parts:
        began = time.perf_counter()
        if part == "resnet18-memory":
            found[part] = resnet18_memory(options.rounds + 2, options.device)
            show_memory(found[part])
        else:
            rows = growth(part, getattr(options, part), options.rounds, options.device)
            found[part] = {"rows": rows, "exponents": exponents(part, rows)}
            show_growth(part, rows, found[part]["exponents"])
        found[part]["bench_seconds"] = time.perf_counter() - began
        print(f"\n({PARTS[part]}: measured in {found[part]['bench_seconds']:.0f} s)\n")
    write(options.json, found)


if __name__ == "__main__":
    main()
