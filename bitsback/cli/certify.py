"""bitsback certify: a bound on the probability of error on new examples."""

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsback.cli.train import JsonOption
from bitsback.errors import CertificateError
from bitsback.ledger.table import shown_error

if TYPE_CHECKING:
    from bitsback.certificates import Certificate


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
    from bitsback.analysis.certify import certify_model_file, certify_run

    if model.is_dir():
        if context.args:
            raise CertificateError(
                f"'{context.args[0]}' says a place for a model file; a run knows its locations, leave it out"
            )
        found = certify_run(
            model, delta=delta, delta_draws=delta_draws, draws=draws, alternatives=alternatives, seed=seed, progress=True
        )
    else:
        found = certify_model_file(model, tuple(context.args), delta=delta, alternatives=alternatives)
    print(json_library.dumps(found.to_dict(), indent=2) if json else _shown(found))


def _shown(found: "Certificate") -> str:
    from bitsback.cli.text import table

    rows = [
        ("examples n", f"{found.n:,}", "that the risk is measured on"),
        ("risk on them", f"{found.risk:.5f}", f"from {found.draws:,} draws" if found.draws else "exact"),
        ("at most", f"{found.risk_bound:.5f}", f"but for delta-draws {found.delta_draws:g}" if found.draws else "exact"),
        ("weight bits", f"{found.weight_bits:,.1f}", "KL(q || p)" if found.draws else "length of the file, prefix-free"),
        ("hyper-parameter bits", f"{found.hyperparameter_bits:,.1f}", "learned numbers on their grids"),
        ("alternatives bits", f"{found.alternatives_bits:,.1f}", f"log2 of {found.alternatives:,}"),
        ("KL bits", f"{found.kl_bits:,.1f}", "the three together"),
        ("complexity", f"{found.complexity:.6f}", f"(KL + ln(2 sqrt(n) / {found.delta:g})) / n, in nats"),
        ("bound", f"{found.bound:.5f}", "largest R with kl(risk || R) <= complexity"),
    ]
    if found.test_risk is not None:
        rows.append(("test error", shown_error("error", found.test_risk), "for information: nothing depends on it"))
    subject = "weights drawn from the posterior for every example" if found.draws else "the network in this file"
    assumed = [f"Taken to be independent of the examples: {'; '.join(found.assumed)}"] if found.assumed else []
    return "\n".join([
        table(["", "value", ""], rows),
        *assumed,
        f"With probability {found.confidence:g}, {subject} misjudge{'' if found.draws else 's'} a new example at most "
        f"{100 * found.bound:.2f} % of the time.",
    ])  # fmt: skip
