"""``bitsback prune``: pruning of a run by signal-to-noise ratio."""

from typing import Annotated

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.receive import OutDirectory
from bitsback.cli.train import JsonOption

__all__ = ["prune"]


def prune(
    run: RunArgument,
    keep_snr: Annotated[float, typer.Option("--keep-snr", help="Set weights with smaller |mean|/std to zero.")] = 1.0,
    out: OutDirectory = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Weight draws per threshold; default: as in the run.")] = None,
    curve: Annotated[bool, typer.Option("--curve/--no-curve", help="Measure other thresholds too.")] = True,
    json: JsonOption = False,
) -> None:
    """Set weights below a signal-to-noise ratio to zero, and show error and bits against the fraction kept.

    For each tensor the kept weights cost their number, log2 of the ways to choose that many, and their KL under the prior;
    pruned weights cost nothing more. With -o, DIR/pruned.bb is the pruned network as a quantised model file, and
    DIR/curve.json the curve.

    Example: bitsback prune runs/digits --keep-snr 1 -o runs/digits-pruned
    """
    from bitsback.analysis.prune import prune as pruned

    found = pruned(run, keep_snr, out=out, curve=curve, samples=samples, progress=True)
    print(found.to_json() if json else found)
    if out is not None and not json:
        print(f"The pruned network is in {out / 'pruned.bb'}, the curve in {out / 'curve.json'}")
