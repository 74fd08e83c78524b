"""Compare the measured coverage with its floors: every branch of what bits rest on, most lines of the rest.

make test COVERAGE="--cov --cov-report="
python scripts/check_coverage.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE_LINES = 0.92
"""Least share of the package's lines that tests run."""

WHOLE = ("ledger", "kl", "certificates", "coding")
"""Packages whose every line and branch tests run."""


def main() -> int:
    """Return 1, and say what no test runs, when a floor is not held."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(file)], check=True)
        found = json.loads(file.read_text())
    totals = found["totals"]
    lines = totals["covered_lines"] / totals["num_statements"]
    print(f"lines of the package: {lines:.1%} (at least {PACKAGE_LINES:.0%}); branches: "
          f"{totals['covered_branches'] / totals['num_branches']:.1%}")  # fmt: skip
    missed = [
        f"{path}: lines {measured['missing_lines']}, branches {measured['missing_branches']}"
        for path, measured in sorted(found["files"].items())
        if Path(path).parts[1] in WHOLE and (measured["missing_lines"] or measured["missing_branches"])
    ]
    print(f"not run of {', '.join(WHOLE)}: {'; '.join(missed) or 'nothing'}")
    return int(bool(missed) or lines < PACKAGE_LINES)


if __name__ == "__main__":
    sys.exit(main())
