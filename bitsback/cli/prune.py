"""bitsback prune: what a run costs when only the weights above their noise are kept."""

from typing import Annotated

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.receive import OutDirectory
from bitsback.cli.train import JsonOption

__all__ = ["prune"]


def prune(
    run: RunArgument,
    keep_snr: Annotated[float, typer.Option("--keep-snr", help="Weights with |mean|/std below it become zero.")] = 1.0,
    out: OutDirectory = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Whole-network draws per threshold; default: the run's.")] = None,
    curve: Annotated[bool, typer.Option("--curve/--no-curve", help="Show other thresholds too.")] = True,
    json: JsonOption = False,
) -> None:
    """Set weights below a signal-to-noise to zero, and show error and bits against the fraction kept.

    Which weights are kept is said for each tensor: a count, and log2 of the ways to choose so many. The kept ones cost their
    KL under the prior, the others nothing more. With -o, DIR/pruned.bb is the pruned network as a model file, quantised, and
    DIR/curve.json the curve.

    Example: bitsback prune runs/digits --keep-snr 1 -o runs/digits-pruned
    """
    from bitsback.analysis.prune import prune as pruned

    found = pruned(run, keep_snr, out=out, curve=curve, samples=samples, progress=True)
    print(found.to_json() if json else found)
    if out is not None and not json:
        print(f"The pruned network is in {out / 'pruned.bb'}, the curve in {out / 'curve.json'}")
