"""bitsback train: from YAML to a run directory."""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsback.cli.interrupt import stopped
from bitsback.errors import RunError

if TYPE_CHECKING:
    from bitsback.config import Experiment

ConfigArgument = Annotated[Path, typer.Argument(help="YAML file, for example configs/digits.yaml.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; with --resume, a run directory.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as prior.kind=laplace.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/NAME-DATE-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run, to the same end.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where a step goes, in RUN/profile.")] = False,
    json: JsonOption = False,
) -> None:
    """Train a network and take its ledger.

    Example: bitsback train configs/digits.yaml prior.kind=laplace training.epochs=50 --out runs/laplace
    """
    from bitsback.config import Experiment, load_config
    from bitsback.files import check_new_directory
    from bitsback.ledger import show, shown_error

    if resume:
        experiment, directory = _resumed(config, overrides or [], out)
    else:
        if config.is_dir():
            raise RunError(f"{config} is a directory; to continue a run: bitsback train {config} --resume")
        directory = out or Path("runs") / f"{config.stem}-{datetime.now():%Y%m%d-%H%M%S}"
        settings = load_config(config, overrides or [])
        check_new_directory(directory)
        experiment = Experiment.build(settings)
    try:
        outcome = experiment.train(directory, resume=resume, profile=profile)
    except KeyboardInterrupt:
        raise stopped(f"continue with: bitsback train {directory} --resume") from None
    if json:
        print(outcome.ledger.to_json())
        write_page(experiment, directory)
        return
    if profile:
        print((directory / "profile" / "steps.txt").read_text(encoding="utf-8"))
    show(outcome.ledger)
    early = f", stopped early after {outcome.epochs} epochs" if outcome.stopped_early else ""
    facts = [f"Trained in {outcome.training_seconds:.1f} s{early}"]
    if outcome.test_error is not None:
        facts.append(f"test error {shown_error(outcome.error_name, outcome.test_error)}")
    print(f"{'; '.join(facts)}. The run is in {directory}")
    if page := write_page(experiment, directory):
        print(f"To look at it: {page}")


def write_page(experiment: "Experiment", directory: Path) -> Path | None:
    """RUN/report.html of a run that has just finished, unless its configuration wants none; returns where it is."""
    if not experiment.config.logging.report:
        return None
    from bitsback.report import write_report

    sys.stdout.flush()  # the ledger is there to read meanwhile
    try:
        return write_report(directory, experiment=experiment, progress=True)
    except KeyboardInterrupt:
        raise stopped(f"the run is complete, and its page is written by: bitsback report {directory}") from None


def _resumed(config: Path, overrides: list[str], out: Path | None) -> "tuple[Experiment, Path]":
    from bitsback.config import Experiment, load_config, load_run

    directory = out or config
    run = load_run(directory)
    if config.is_file() and load_config(config, overrides) != run.config:
        raise RunError(f"{directory} was started with another configuration than {config}; resume it as it was: "
                       f"bitsback train {directory} --resume")  # fmt: skip
    if config.is_dir() and overrides:
        raise RunError("a resumed run keeps its configuration; leave the overrides out")
    return Experiment.build(run.config), directory
