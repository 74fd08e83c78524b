"""``bitsback train``: training of a YAML file into a run directory."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.interrupt import stopped
from bitsback.processes import launched_ranks

__all__ = ["ConfigArgument", "JsonOption", "train"]

ConfigArgument = Annotated[Path, typer.Argument(help="YAML file, for example configs/digits.yaml.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file, or data; with --resume, a run.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as prior.kind=laplace.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/NAME-DATE-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run; the result is the same.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write a profile of the training step to RUN/profile.")] = False,
    json: JsonOption = False,
) -> None:
    """Train a network and print its ledger.

    Example: bitsback train configs/digits.yaml prior.kind=laplace training.epochs=50 --out runs/laplace

    Example: bitsback train houses.csv target=price

    Example: bitsback train photos.zip size=32
    """
    from bitsback.config.from_data import config_to_train

    # report YAML errors before the slow import of torch
    source, changes = (config, overrides or []) if resume else (config_to_train(config, overrides or []), [])
    from bitsback.ledger import show
    from bitsback.runs import new_run, write_page
    from bitsback.runs import train as trained

    rank, _ = launched_ranks()
    new = Path("runs") / config.stem if rank else None  # rank 0 alone writes, and names the directory
    directory = out or (config if resume else new or context.with_resource(new_run(config.stem)))
    try:
        found = trained(source, overrides=changes, out=directory, resume=resume, profile=profile, report=False)
    except KeyboardInterrupt as error:
        has_begun = (directory / "config.yaml").is_file()
        raise stopped(error, f"continue with: bitsback train {directory} --resume" if has_begun else "") from None
    if rank:
        return
    if profile and not json:
        print((directory / "profile" / "steps.txt").read_text(encoding="utf-8"))
    print(found.ledger.to_json()) if json else show(found.ledger)
    if not json:
        print(found.closing())
    try:
        page = write_page(found)
    except KeyboardInterrupt as error:
        now = f"the run is complete, and its page is written by: bitsback report {directory}"
        raise stopped(error, now) from None
    if page is not None and not json:
        print(f"To look at it: {page}")
