"""bitsback widen: what wider and narrower posteriors would cost."""

from typing import Annotated

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.train import JsonOption

__all__ = ["widen"]


def widen(
    run: RunArgument,
    samples: Annotated[int | None, typer.Option(min=1, help="Whole-network draws per width; default: the run's.")] = None,
    json: JsonOption = False,
) -> None:
    """Multiply every posterior std by 1/16 to 16 and show what each width costs.

    A wider posterior lowers the coding cost until the data cost catches up; the trained width sits at the bottom.

    Example: bitsback widen runs/digits
    """
    from bitsback.analysis.widen import widen as widened

    found = widened(run, samples=samples, progress=True)
    print(found.to_json() if json else found)
