"""``bitsback certify``: upper bound on the probability of error on new examples."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption

__all__ = ["certify"]


def certify(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Run directory or model file.", show_default=False)],
    delta: Annotated[float, typer.Option(help="Probability that the bound fails.")] = 0.025,
    delta_draws: Annotated[float, typer.Option(help="Run: probability that the estimate of the risk fails.")] = 0.01,
    draws: Annotated[int, typer.Option(help="Run: weight draws, one for each example, rounded up to whole passes.")] = 150_000,
    alternatives: Annotated[int, typer.Option(help="Number of priors, networks or certificates tried on these examples.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draws; default: as in the run.")] = None,
    json: JsonOption = False,
) -> None:
    """Bound the error on new examples; the bound holds with probability 1 - delta - delta-draws.

    Run: PAC-Bayes-kl bound of the posterior, with weights drawn anew for every example. Model file: the same bound with the
    prior 2^-length. Give the location of its examples if the file does not hold it, such as --data.root=DIR.

    Example: bitsback certify runs/digits --delta 0.025
    """
    from bitsback.analysis.certify import certify as certified

    chances = {"delta": delta, "delta_draws": delta_draws}
    found = certified(model, context.args, **chances, draws=draws, alternatives=alternatives, seed=seed, progress=True)
    print(found.to_json() if json else found)
