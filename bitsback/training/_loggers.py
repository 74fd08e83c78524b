"""Loggers of epoch metrics: the progress bar, metrics.jsonl, and the protocol for others."""

import json
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from bitsback.atomic_io import write_text
from bitsback.ledger import Ledger

__all__ = ["Bar", "JsonLines", "Logger", "Metrics", "bar_text", "scalars"]

Metrics = dict[str, Any]
"""One epoch's numbers, under the names of metrics.jsonl."""


class Logger(Protocol):
    """Protocol of loggers: an object of your own with these two methods can be passed to ``train(..., loggers=[...])``.

    Anything it needs beyond the metrics, such as the model, has to be passed to its constructor.
    """

    def log(self, metrics: Metrics) -> None:
        """Receive one epoch's numbers; the dictionary is shared and must not be changed."""

    def close(self) -> None:
        """Finish: the last epoch is done, or the training has failed."""


def scalars(metrics: Metrics) -> dict[str, float]:
    """Name an epoch's numbers for dashboards: bits under ``bits/``, all others under ``training/``.

    Args:
        metrics: one epoch's numbers.

    Returns:
        numbers by tag, without the epoch and without texts.

    >>> scalars({"epoch": 3, "net_bits": 1210.0, "beta": 1.0, "test_error": None, "error_name": "error"})
    {'bits/net': 1210.0, 'training/beta': 1.0}
    """
    return {
        f"bits/{name.removesuffix('_bits')}" if name.endswith("_bits") else f"training/{name}": value
        for name, value in metrics.items()
        if isinstance(value, int | float) and name != "epoch"
    }


def bar_text(metrics: Metrics) -> str:
    """Format an epoch's bits in one unit, kbit or Mbit.

    Args:
        metrics: one epoch's numbers.

    Returns:
        text of the progress bar.

    >>> bar_text({"net_bits": 1210.0, "gross_bits": 38600.0, "refund_bits": 37900.0, "data_bits": 310.0, "test_error": 0.031,
    ...           "error_name": "error"})
    'net 1.21 kbit | gross 38.6 kbit | refund 37.9 kbit | data 0.31 kbit | err 3.1 %'
    """
    size, unit = (1e6, "Mbit") if metrics["net_bits"] >= 1e6 else (1e3, "kbit")
    parts = [f"{name} {metrics[f'{name}_bits'] / size:.3g} {unit}" for name in ("net", "gross", "refund", "data")]
    error = metrics.get("test_error")
    if error is not None:
        parts.append(f"err {100 * error:.1f} %" if metrics["error_name"] == "error" else f"rmse {error:.3g}")
    return " | ".join(parts)


class Bar:
    """Progress bar over epochs (tqdm) that shows bits.

    Args:
        epochs: total number.
        start: epochs done before.
        shown: whether the bar is visible.
    """

    def __init__(self, epochs: int, start: int, *, shown: bool) -> None:
        layout = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {desc}"
        self._bar = tqdm(total=epochs, initial=start, unit="epoch", disable=not shown, bar_format=layout, dynamic_ncols=True)

    def log(self, metrics: Metrics) -> None:
        """Show the numbers of an epoch."""
        self._bar.set_description_str(bar_text(metrics), refresh=False)
        self._bar.update(metrics["epoch"] - self._bar.n)

    def end(self, ledger: Ledger, test_error: float | None, error_name: str) -> None:
        """Show the ledger in place of the estimates of the last epoch.

        Args:
            ledger: of the training targets.
            test_error: shown beside it, or None.
            error_name: ``error`` or ``rmse``.
        """
        numbers = {f"{name}_bits": getattr(ledger, f"{name}_bits") for name in ("net", "gross", "refund", "data")}
        self._bar.set_description_str(bar_text({**numbers, "test_error": test_error, "error_name": error_name}))

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


class JsonLines:
    """File with one JSON object per line and epoch.

    Args:
        path: of the file.
        keep_epochs: epochs whose lines are kept if a run resumes; later lines are dropped.
    """

    def __init__(self, path: Path, keep_epochs: int) -> None:
        kept = []
        if keep_epochs and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["epoch"] <= keep_epochs:
                        kept.append(line)
                except (ValueError, KeyError):  # a line cut off when the process was killed
                    break
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def log(self, metrics: Metrics) -> None:
        """Append a line."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
