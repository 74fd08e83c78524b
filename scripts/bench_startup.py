"""How long the command line takes to start.

python scripts/bench_startup.py [--run RUN] [--runs 15] [--only ledger] [--json FILE]

Wall-clock medians of whole processes, interleaved, after one of each that is not counted; without --run, the ledger is that of
a small network trained for the purpose.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_report import parsed, shown, spread, table, write

CONFIG = Path(__file__).parent.parent / "configs" / "digits_linear.yaml"
BITSBACK = [sys.executable, "-m", "bitsback"]


def finished_run(place: Path) -> Path:
    """A small run, trained now."""
    toy = ["training.epochs=1", "ledger.samples=2"]
    subprocess.run([*BITSBACK, "train", str(CONFIG), *toy, "--out", str(place)], capture_output=True, check=True)
    return place


def contestants(run: Path) -> dict[str, tuple[list[str], float | None]]:
    """Commands by name, each with the seconds it may take."""
    return {
        "python -c pass": ([sys.executable, "-c", "pass"], None),
        "python -c 'import torch'": ([sys.executable, "-c", "import torch"], None),
        "bitsback --help": ([*BITSBACK, "--help"], 0.3),
        "bitsback ledger RUN": ([*BITSBACK, "ledger", str(run)], 1.5),
        "bitsback compare --help": ([*BITSBACK, "compare", "--help"], None),
        "bitsback priors": ([*BITSBACK, "priors"], None),
        "bitsback schema": ([*BITSBACK, "schema"], None),
    }


def seconds(command: Sequence[str]) -> float:
    """How long a process takes."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=None, help="a finished run")
    parser.add_argument("--runs", type=int, default=15, help="processes of each command")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="commands with one of these words in them")
    options = parsed(parser)
    with tempfile.TemporaryDirectory() as folder:
        named = contestants(options.run or finished_run(Path(folder) / "run"))
        found = {name: one for name, one in named.items() if any(word in name for word in options.only)}
        times: dict[str, list[float]] = {name: [] for name in found}
        for number in range(1 + options.runs):
            for name, (command, _) in found.items():
                taken = seconds(command)
                times[name] += [taken] if number else []
    rows = [{"command": name, "seconds": spread(times[name]), "target_seconds": found[name][1]} for name in found]
    body = [[f"`{row['command']}`", shown(row["seconds"]), f"{row['target_seconds'] or ''}"] for row in rows]
    print(table(["command", "seconds", "target"], body))
    write(options.json, {"runs": options.runs, "rows": rows})


if __name__ == "__main__":
    main()
