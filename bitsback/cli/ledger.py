"""bitsback ledger: what a run cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsback.cli.train import JsonOption

if TYPE_CHECKING:
    from bitsback.ledger import Ledger

RunArgument = Annotated[Path, typer.Argument(help="Run directory.", show_default=False)]


def ledger(
    run: RunArgument,
    recompute: Annotated[bool, typer.Option("--recompute", help="Take the ledger again from the weights.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Take it again with so many draws.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Take it again with this seed.")] = None,
    json: JsonOption = False,
) -> None:
    """Show a run's ledger: gross, refund and net per weight tensor and in total.

    Example: bitsback ledger runs/digits --recompute --samples 200
    """
    from bitsback.ledger import open_results, show

    if recompute or samples is not None or seed is not None:
        book = _taken_again(run, samples, seed)
    else:
        book = open_results(run).ledger()  # needs no torch: quick
    if json:
        print(book.to_json())
    else:
        show(book)


def _taken_again(run: Path, samples: int | None, seed: int | None) -> "Ledger":
    from bitsback.config import load_run
    from bitsback.model import take_ledger

    opened = load_run(run)
    e = opened.experiment()
    settings = e.config.ledger
    return take_ledger(
        e.model,
        e.likelihood,
        e.dataset.train,
        samples=samples or settings.samples,
        seed=e.config.seed if seed is None else seed,
        grid_step=settings.grid_step,
        progress=True,
        course=opened.course(),
    )
