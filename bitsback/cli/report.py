"""``bitsback report``: HTML report of one or several runs."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; several are compared.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: RUN/report.html; of several runs, ./comparison.html.")
    ] = None,
) -> None:
    """Write a self-contained HTML report: ledger, interactive width and grid step, other priors, weights, examples.

    For several runs: their training curves in one figure, and a table.

    Example: bitsback report runs/digits
    """
    from bitsback.atomic_io import check_new_file
    from bitsback.report import write_comparison, write_report

    if out is not None:
        check_new_file(out)
    if len(runs) == 1:
        page = write_report(runs[0], to=out, progress=True)
    else:
        page = write_comparison(runs, out or Path("comparison.html"))
    print(f"The report is in {page}")
