"""The figures of docs/benchmarks.md, from what the benches wrote.

python scripts/bench_figures.py [--results docs/benchmarks] [--out docs/benchmarks]

Reads step_mlp.json, step_lenet.json, step_resnet20.json, bits.json and scale.json, where they are, and needs matplotlib, which
scripts/bench_env.sh installs.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS, THEIRS, PLAIN = "#c2410c", "#64748b", "#cbd5e1"
STYLES = ("o-", "s--", "^-", "v--", "D-", "x--", "+-", "*--", "<-", ">--", "p-", "h--")
NETS = {"mlp": "MLP 784-400-400-10", "lenet": "LeNet-5-Caffe", "resnet20": "ResNet-20"}
Results = dict[str, Any]


def colour(name: str) -> str:
    """Ours, a peer's, or that of a network without posterior."""
    return OURS if name.startswith("bitsback") else PLAIN if name.startswith("deterministic") else THEIRS


def read(folder: Path, name: str) -> Results | None:
    """A bench's results, where there are some."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def steps(plot: Any, folder: Path) -> Any:
    """Time of a training step, in steps of the deterministic network."""
    found = {net: read(folder, f"step_{net}") for net in NETS}
    found = {net: results for net, results in found.items() if results}
    if not found:
        return None
    figure, axes = plot.subplots(1, len(found), figsize=(5 * len(found), 5.5), squeeze=False, sharey=True)
    names = list(reversed(list(next(iter(found.values()))["contestants"])))
    for axis, (net, results) in zip(axes[0], found.items(), strict=True):
        ratios = [results["contestants"].get(name, {}).get("threads_1", {}).get("cpu_ratio", {}) for name in names]
        medians = [ratio.get("median", 0.0) for ratio in ratios]
        axis.barh(names, medians, color=[colour(name) for name in names])
        for place, median in enumerate(medians):
            axis.text(median, place, f" {median:.2f}", va="center", fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=NETS[net], xlim=(0, 1.15 * max(medians)), xlabel="step time / deterministic")
    return figure


def bits(plot: Any, folder: Path) -> Any:
    """Net bits against seconds of training: for each contestant the lowest that any of its runs had reached."""
    results = read(folder, "bits")
    if results is None:
        return None
    figure, axis = plot.subplots(figsize=(10, 5.5))
    for name in dict.fromkeys(run["contestant"] for run in results["runs"]):
        points = sorted(
            (point["cpu_seconds"], point["net_bits"])
            for run in results["runs"]
            if run["contestant"] == name
            for point in run["points"]
            if point["exact"]
        )
        lowest, line = float("inf"), []
        for seconds, net_bits in points:
            if net_bits < lowest:
                lowest = net_bits
                line.append((seconds, net_bits))
        if line:
            style = STYLES[len(axis.lines) % len(STYLES)]
            axis.plot(*zip(*line, strict=True), style, label=name, color=colour(name), markersize=4, linewidth=1)
    for threshold in results["thresholds"]:
        axis.axhline(threshold, color="black", linewidth=0.5, linestyle=":", zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="processor seconds of training", ylabel="net bits of MNIST's labels")
    axis.set_ylim(top=40_000)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_minor_formatter("{x:,.0f}")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def scale(plot: Any, folder: Path) -> Any:
    """Step, ledger and pack time against the number of weights."""
    results = read(folder, "scale")
    if results is None:
        return None
    figure, axis = plot.subplots(figsize=(7, 5))
    rows = results["weights"]["rows"]
    for name in ("step", "ledger", "pack"):
        axis.loglog([row["weights"] for row in rows], [row[f"{name}_seconds"]["median"] for row in rows], "o-", label=name)
    axis.set(xlabel="weights", ylabel="seconds")
    axis.legend()
    return figure


FIGURES: dict[str, Callable[[Any, Path], Any]] = {"steps": steps, "bits": bits, "scale": scale}


def main() -> None:
    """Draw what there are results for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    try:
        import matplotlib as library
    except ModuleNotFoundError:
        sys.exit("the figures need matplotlib; run scripts/bench_env.sh, or: pip install matplotlib")
    library.use("Agg")
    library.rcParams["svg.hashsalt"] = "bitsback"  # the same picture is the same file
    from matplotlib import pyplot

    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw(pyplot, options.results)
        if figure is None:
            print(f"{name}: no results in {options.results}")
            continue
        figure.tight_layout()
        figure.savefig(options.out / f"{name}.svg", metadata={"Date": None})
        print(options.out / f"{name}.svg")


if __name__ == "__main__":
    main()
