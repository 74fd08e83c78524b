"""What the benches of codecs, scale and start-up share: medians, tables, and a report that says where it was made."""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("bitsback", "torch", "numpy", "typer")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of several measurements."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def shown(found: dict[str, float], scale: float = 1.0) -> str:
    """A spread for a table: ``median (low to high)``, each in three digits or more."""
    median, low, high = (_number(found[name] * scale) for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is flush left, the others flush right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse, with the options that all benches have."""
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write everything that was measured there")
    return parser.parse_args()


def check_device(name: str) -> None:
    """End with a sentence if torch cannot use a device here."""
    from bitsback.errors import ConfigError
    from bitsback.training.train import device_named

    try:
        device_named(name)
    except ConfigError as error:
        raise SystemExit(str(error).replace("training.device", "--device")) from None


def write(path: Path | None, found: dict[str, Any]) -> None:
    """Write what was found, with machine, date, command and versions."""
    if path is None:
        return
    about = {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "cores_used": _cores_used(), "system": platform.platform()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **found}, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _cores_used() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
