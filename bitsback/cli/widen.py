"""``bitsback widen``: ledger at wider and narrower posteriors."""

from typing import Annotated

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.train import JsonOption

__all__ = ["widen"]


def widen(
    run: RunArgument,
    samples: Annotated[int | None, typer.Option(min=1, help="Weight draws per width; default: as in the run.")] = None,
    json: JsonOption = False,
) -> None:
    """Multiply every posterior std by factors from 1/16 to 16 and print the bits at each width.

    A wider posterior lowers the bits of the weights and raises those of the data; net bits are lowest near the trained width.

    Example: bitsback widen runs/digits
    """
    from bitsback.analysis.widen import widen as widened

    found = widened(run, samples=samples, progress=True)
    print(found.to_json() if json else found)
