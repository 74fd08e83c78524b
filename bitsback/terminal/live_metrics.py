"""Reading a run that may still be training: its metrics as they grow, and how far it has come. No torch."""

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
"""The bits that are drawn, by the names they have before ``_bits``."""

MOST_POINTS = 2048
"""Points kept of a long training; beyond, every second one is let go."""

READ_BYTES = 1 << 20
RATE_POINTS = 20
SILENT_SECONDS, SILENT_EPOCHS = 60.0, 20.0


class Tail:
    """The lines of a metrics.jsonl that grows, is cut back by a resumed training, or is not there yet.

    Attributes:
        points: (epoch, seconds, the bits of :data:`CURVES`), thinned evenly to at most :data:`MOST_POINTS`.
        latest: the last whole line, None before the first.
        written: when the file last changed, in seconds since 1970.
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
        """Read what was added since the last call; True when anything changed."""
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
        """The points, the newest always among them."""
        newest = [_point(self.latest)] if self.latest is not None else []
        return self.points if self.points[-1:] == newest else [*self.points, *newest]


def _metrics(line: bytes) -> Metrics | None:
    """A line of metrics; None for one that a kill cut short, or that is something else."""
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
    """How far a run has come."""

    epochs: int | None
    may_stop_early: bool
    summary: Metrics | None

    @classmethod
    def of(cls, run: Path) -> "Progress":
        """Read from config.yaml, ledger.json and summary.json, as far as they are there."""
        training = _training(run / "config.yaml")
        epochs = training.get("epochs")
        return cls(epochs if isinstance(epochs, int) else None, bool(training.get("early_stop")), _summary(run))

    def later(self, run: Path) -> "Progress":
        """The same run looked at again; its configuration is not read twice."""
        return Progress.of(run) if self.epochs is None else replace(self, summary=_summary(run))

    def text(self, tail: Tail, now: float | None = None) -> str:
        """The progress in one line, with the time left at the rate of the last epochs."""
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
    """Seconds an epoch takes lately."""
    lately = points[-RATE_POINTS:]
    epochs = lately[-1][0] - (lately[0][0] if len(lately) > 1 else 0.0)
    seconds = lately[-1][1] - (lately[0][1] if len(lately) > 1 else 0.0)
    return seconds / epochs if epochs > 0 and seconds >= 0 else None


def duration(seconds: float) -> str:
    """A time for a person.

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
    """Raise RunError unless ``run`` is a run directory, of which little need be written yet."""
    signs = ("config.yaml", "metrics.jsonl", "ledger.json")
    if not any((run / sign).is_file() for sign in signs):
        what = "is not a run directory (no config.yaml, no metrics.jsonl)" if run.exists() else "does not exist"
        raise RunError(f"{run} {what}; begin a run with `bitsback train CONFIG --out {run}`, or name the one it prints")


def _training(path: Path) -> Metrics:
    """The section ``training`` of a configuration; empty when it cannot be read."""
    from ruamel.yaml.error import YAMLError

    try:
        found = load_yaml(read_text(path), str(path))
        return dict(found["training"])
    except (OSError, ValueError, KeyError, TypeError, YAMLError, ConfigError):
        return {}


def _summary(run: Path) -> Metrics | None:
    """What a finished training ended with; None while it goes on: ledger.json is written last."""
    if not (run / "ledger.json").is_file():
        return None
    try:
        return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
