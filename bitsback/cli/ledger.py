"""``bitsback ledger``: ledger of a run."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption

__all__ = ["RunArgument", "ledger"]

RunArgument = Annotated[Path, typer.Argument(help="Run directory.", show_default=False)]


def ledger(
    run: RunArgument,
    recompute: Annotated[bool, typer.Option("--recompute", help="Recompute the ledger from the weights.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Recompute it with this number of weight draws.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Recompute it with this seed.")] = None,
    json: JsonOption = False,
) -> None:
    """Show a run's ledger: gross, refund and net per weight tensor and in total.

    Example: bitsback ledger runs/digits --recompute --samples 200
    """
    from bitsback.ledger import open_results, show

    if recompute or samples is not None or seed is not None:
        from bitsback.config import load_run

        book = load_run(run).take_ledger(samples=samples, seed=seed, progress=True)
    else:
        book = open_results(run).ledger()  # quick: needs no torch
    print(book.to_json()) if json else show(book)
