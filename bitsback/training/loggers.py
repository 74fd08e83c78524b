"""Where the numbers of an epoch go: the progress bar, metrics.jsonl, TensorBoard."""

import json
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from bitsback.errors import RunError
from bitsback.files import write_text

Metrics = dict[str, Any]


class Logger(Protocol):
    """Takes the metrics of every epoch."""

    def log(self, metrics: Metrics) -> None:
        """One epoch's numbers."""

    def close(self) -> None:
        """Nothing more will come."""


def bar_text(metrics: Metrics) -> str:
    """The bits of an epoch, all in one unit.

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
    """A tqdm bar over epochs that speaks in bits."""

    def __init__(self, epochs: int, start: int, *, shown: bool) -> None:
        layout = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {desc}"
        self._bar = tqdm(total=epochs, initial=start, unit="epoch", disable=not shown, bar_format=layout, dynamic_ncols=True)

    def log(self, metrics: Metrics) -> None:
        self._bar.set_description_str(bar_text(metrics), refresh=False)
        self._bar.update(metrics["epoch"] - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class JsonLines:
    """One JSON object per line; lines after ``keep_epochs`` are dropped when a run resumes."""

    def __init__(self, path: Path, keep_epochs: int) -> None:
        kept = []
        if keep_epochs and path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["epoch"] <= keep_epochs:
                        kept.append(line)
                except (ValueError, KeyError):  # the line a kill cut short
                    break
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def log(self, metrics: Metrics) -> None:
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def require_tensorboard(directory: Path | None) -> None:
    """Raise RunError, before anything is written, when TensorBoard is not installed or has nowhere to write."""
    if directory is None:
        raise RunError("logging.tensorboard needs a run directory to write to")
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as fault:
        raise RunError("logging.tensorboard needs the extra: pip install 'bitsback[tensorboard]'") from fault


class TensorBoard:
    """Scalars under ``bits/`` and ``training/``."""

    def __init__(self, directory: Path, keep_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=keep_epochs + 1)

    def log(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "epoch":
                place = f"bits/{name.removesuffix('_bits')}" if name.endswith("_bits") else f"training/{name}"
                self._writer.add_scalar(place, value, metrics["epoch"])

    def close(self) -> None:
        self._writer.close()
