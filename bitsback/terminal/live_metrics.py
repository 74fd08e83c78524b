"""Reading of a run while it trains: its metrics and its progress. Needs no torch."""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitsback.errors import ConfigError, RunError
from bitsback.yaml import load_yaml, read_text

__all__ = ["CURVES", "MOST_POINTS", "Metrics", "Progress", "Tail", "check_run", "duration"]

Metrics = dict[str, Any]

CURVES = ("gross", "net", "refund", "data")
"""Names of the drawn bits, without the suffix ``_bits``."""

MOST_POINTS = 2048
"""Maximum number of points kept; above, every second one is dropped."""

READ_BYTES = 1 << 20
RATE_POINTS = 20
SILENT_SECONDS, SILENT_EPOCHS = 60.0, 20.0


class Tail:
    """Incremental reader of a metrics.jsonl that may be missing, grow, or be truncated by a resumed training.

    Attributes:
        points: (epoch, seconds, bits of :data:`CURVES`), thinned evenly to at most :data:`MOST_POINTS`.
        latest: metrics of the last complete line; None before the first.
        written: time of the file's last change, in seconds since 1970.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0.0
        self._forget()

    def _forget(self) -> None:
        self.points: list[tuple[float, ...]] = []
        self.latest: Metrics | None = None
        self._file_number = self._place = self._lines = 0
        self._stride, self._rest = 1, b""

    def read(self) -> bool:
        """Read the lines added since the last call; return whether anything changed."""
        try:
            facts = self.path.stat()
            if facts.st_ino != self._file_number or facts.st_size < self._place:
                self._forget()
                self._file_number = facts.st_ino
            if facts.st_size == self._place:
                return False
            self._take(facts.st_size)
        except FileNotFoundError:
            changed = self.latest is not None
            self._forget()
            return changed
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror or error}; is it the run's own file?") from error
        self.written = facts.st_mtime
        return True

    def _take(self, end: int) -> None:
        last = b""
        with self.path.open("rb") as file:
            file.seek(self._place)
            while self._place < end and (more := file.read(min(READ_BYTES, end - self._place))):
                self._place += len(more)
                *whole, self._rest = (self._rest + more).split(b"\n")
                for line in whole:
                    self._keep(line)
                last = next((line for line in reversed(whole) if _metrics(line)), last)
        self.latest = _metrics(last) or self.latest

    def _keep(self, line: bytes) -> None:
        self._lines += 1
        if (self._lines - 1) % self._stride:
            return
        found = _metrics(line)
        if found is None:
            return
        self.points.append(_point(found))
        if len(self.points) > MOST_POINTS:
            self.points, self._stride = self.points[::2], 2 * self._stride

    def curve(self) -> list[tuple[float, ...]]:
        """Return the points, the newest always included."""
        newest = [_point(self.latest)] if self.latest is not None else []
        return self.points if self.points[-1:] == newest else [*self.points, *newest]


def _metrics(line: bytes) -> Metrics | None:
    """Parse a line of metrics; None if it is incomplete or holds something else."""
    try:
        found = json.loads(line)
        _point(found)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return dict(found)


def _point(metrics: Metrics) -> tuple[float, ...]:
    bits = (float(metrics[f"{name}_bits"]) for name in CURVES)
    return (float(metrics["epoch"]), float(metrics.get("seconds", math.nan)), *bits)


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        epochs: number of epochs to train; None if unknown.
        may_stop_early: whether training may end before.
        summary: result of a finished training; None while it trains.
    """

    epochs: int | None
    may_stop_early: bool
    summary: Metrics | None

    @classmethod
    def of(cls, run: Path) -> "Progress":
        """Read config.yaml, ledger.json and summary.json, as far as they exist."""
        training = _training(run / "config.yaml")
        epochs = training.get("epochs")
        return cls(epochs if isinstance(epochs, int) else None, bool(training.get("early_stop")), _summary(run))

    def later(self, run: Path) -> "Progress":
        """Return the run's current progress; its configuration is not read again."""
        return Progress.of(run) if self.epochs is None else replace(self, summary=_summary(run))

    def text(self, tail: Tail, now: float | None = None) -> str:
        """Return the progress in one line, with the time left at the rate of the last epochs.

        Args:
            tail: metrics of the run.
            now: current time in seconds since 1970; default: the clock.

        Returns:
            Text such as ``epoch 3 of 10 (30 %), about 5.0 s left``.
        """
        if tail.latest is None:
            return "waiting for the first epoch"
        epoch, seconds = int(tail.latest["epoch"]), float(tail.latest.get("seconds", math.nan))
        if self.summary is not None:
            return f"finished: {epoch:,} epochs" + (f" in {duration(seconds)}" if math.isfinite(seconds) else "")
        done = f"epoch {epoch:,}" + (f" of {self.epochs:,} ({100 * epoch // self.epochs} %)" if self.epochs else "")
        rate = _epoch_seconds(tail.curve())
        silent = (time.time() if now is None else now) - tail.written
        is_silent = silent > max(SILENT_SECONDS, SILENT_EPOCHS * (rate or 0.0))
        if self.epochs is not None and epoch >= self.epochs:
            return f"{done}, taking the ledger" + (f" for {duration(silent)}" if is_silent else "")
        if is_silent:
            return f"{done}, silent for {duration(silent)}"
        if self.epochs is None or rate is None:
            return done
        return f"{done}, {'at most' if self.may_stop_early else 'about'} {duration(rate * (self.epochs - epoch))} left"


def _epoch_seconds(points: list[tuple[float, ...]]) -> float | None:
    """Seconds per epoch over the last points."""
    lately = points[-RATE_POINTS:]
    epochs = lately[-1][0] - (lately[0][0] if len(lately) > 1 else 0.0)
    seconds = lately[-1][1] - (lately[0][1] if len(lately) > 1 else 0.0)
    return seconds / epochs if epochs > 0 and seconds >= 0 else None


def duration(seconds: float) -> str:
    """Format a duration.

    Returns:
        Text with one or two units.

    >>> duration(0.4), duration(3.25), duration(95), duration(4000), duration(200_000)
    ('0.4 s', '3.2 s', '1 min 35 s', '1 h 07 min', '2 d 07 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"


def check_run(run: Path) -> None:
    """Raise RunError unless ``run`` is a run directory, possibly of a training that has just begun."""
    signs = ("config.yaml", "metrics.jsonl", "ledger.json")
    if not any((run / sign).is_file() for sign in signs):
        what = "is not a run directory (no config.yaml, no metrics.jsonl)" if run.exists() else "does not exist"
        raise RunError(f"{run} {what}; begin a run with `bitsback train CONFIG --out {run}`, or name the one it prints")


def _training(path: Path) -> Metrics:
    """Return the section ``training`` of a configuration; empty if it cannot be read."""
    from ruamel.yaml.error import YAMLError

    try:
        found = load_yaml(read_text(path), str(path))
        return dict(found["training"])
    except (OSError, ValueError, KeyError, TypeError, YAMLError, ConfigError):
        return {}


def _summary(run: Path) -> Metrics | None:
    """Return the summary of a finished training; None while it trains (ledger.json is written last)."""
    if not (run / "ledger.json").is_file():
        return None
    try:
        return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
