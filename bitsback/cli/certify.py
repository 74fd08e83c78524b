"""bitsback certify: a bound on the probability of error on new examples."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.train import JsonOption

__all__ = ["certify"]


def certify(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Run directory or model file.", show_default=False)],
    delta: Annotated[float, typer.Option(help="Probability that the bound fails.")] = 0.025,
    delta_draws: Annotated[float, typer.Option(help="Probability that the measurement of a run's risk fails.")] = 0.01,
    draws: Annotated[
        int, typer.Option(help="Weight draws behind a run's risk, each on one example; rounded up to whole passes.")
    ] = 150_000,
    alternatives: Annotated[
        int, typer.Option(help="Among how many priors, networks or certificates, tried on the same examples, it was chosen.")
    ] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draws; default: the run's.")] = None,
    json: JsonOption = False,
) -> None:
    """Certify an error: with probability 1 - delta - delta-draws, a new example is misjudged at most so often.

    For a run: PAC-Bayes-kl on the posterior, with weights drawn anew for every example. For a model file: the same with a
    prior of 2^-length; say where the examples are, such as --data.root=DIR, where the file cannot know.

    Example: bitsback certify runs/digits --delta 0.025
    """
    from bitsback.analysis.certify import certify as certified

    chances = {"delta": delta, "delta_draws": delta_draws}
    found = certified(model, context.args, **chances, draws=draws, alternatives=alternatives, seed=seed, progress=True)
    print(found.to_json() if json else found)
