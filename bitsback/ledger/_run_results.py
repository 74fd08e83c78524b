"""Results of a run directory, read from its plain files without building the network."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsback.errors import RunError
from bitsback.ledger._ledger import Ledger

__all__ = ["Results", "open_results"]


@dataclass(frozen=True)
class Results:
    """Results of a run directory.

    Attributes:
        directory: path of the run directory.
    """

    directory: Path

    def ledger(self) -> Ledger:
        """Return the final ledger; raises RunError when the run has not finished."""
        path = self.directory / "ledger.json"
        if not path.is_file():
            raise RunError(f"{self.directory} has no ledger yet; finish it with `bitsback train {self.directory} --resume`")
        try:
            return Ledger.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise RunError(f"{path} is not UTF-8 text; use `bitsback ledger RUN --recompute`") from error

    def summary(self) -> dict[str, Any]:
        """Return the summary of the training (test error, seconds, versions); raises RunError when it has not finished."""
        path = self.directory / "summary.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read; finish the run with `bitsback train {self.directory} --resume`") from error
        return found


def open_results(directory: str | Path) -> Results:
    """Return the results of a run directory; raises RunError when ``directory`` is not one."""
    path = Path(directory)
    if not (path / "config.yaml").is_file() or not (path / "checkpoint").is_dir():
        raise RunError(f"{path} is not a run directory (no config.yaml, no checkpoint/); make one with `bitsback train`")
    return Results(path)
