"""bitsback train: from YAML to a run directory."""

import os
import sys
import traceback
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsback.cli.interrupt import stopped
from bitsback.errors import RunError
from bitsback.locks import InUseError

if TYPE_CHECKING:
    from bitsback.config import Config, Experiment

ConfigArgument = Annotated[Path, typer.Argument(help="YAML file, for example configs/digits.yaml.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def train(
    context: typer.Context,
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
    from bitsback.atomic_io import new_directory
    from bitsback.config import load_config
    from bitsback.ledger import show, shown_error
    from bitsback.locks import LOCK, exclusive

    if resume:
        directory = out or config
        settings = _settings_of_run(config, overrides or [], out)
        context.with_resource(exclusive(directory / LOCK, directory))
    else:
        if config.is_dir():
            raise RunError(f"{config} is a directory; to continue a run: bitsback train {config} --resume")
        settings = load_config(config, overrides or [])
        if out is None:
            directory = _new_run(context, config.stem)
        else:
            directory = out
            context.with_resource(new_directory(directory))
    try:
        from bitsback.config import Experiment  # torch, which nobody should wait for to hear of a misspelt key

        experiment = Experiment.build(settings)
        outcome = experiment.train(directory, resume=resume, profile=profile)
    except KeyboardInterrupt as error:
        has_begun = (directory / "config.yaml").is_file()
        raise stopped(error, f"continue with: bitsback train {directory} --resume" if has_begun else "") from None
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
    sys.stdout.flush()  # the ledger is there to read meanwhile
    try:
        from bitsback.report import write_report

        return write_report(directory, experiment=experiment, progress=True)
    except KeyboardInterrupt as error:
        now = f"the run is complete, and its page is written by: bitsback report {directory}"
        raise stopped(error, now) from None
    except Exception as error:  # whatever a library does while it draws: the training has succeeded
        say_no_page(error, directory)
        return None


def say_no_page(error: Exception, *directories: Path) -> None:
    """Say in one sentence that a page could not be written; with --debug, show where."""
    if os.environ.get("BITSBACK_DEBUG"):
        traceback.print_exc()
    reason = " ".join(str(error).split()) or type(error).__name__
    runs = " ".join(map(str, directories))
    what = "the run is complete" if len(directories) == 1 else "the runs are complete"
    print(f"bitsback: {what}, but no page could be written: {reason}; try again: bitsback report {runs}", file=sys.stderr)


def _new_run(context: typer.Context, name: str) -> Path:
    """A directory of its own for a run without --out, also when several begin within a second."""
    from bitsback.atomic_io import new_directory

    stem = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        directory = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            if not directory.exists():
                context.with_resource(new_directory(directory))
                return directory
        except InUseError:
            continue
    raise AssertionError


def _settings_of_run(config: Path, overrides: list[str], out: Path | None) -> "Config":
    from bitsback.config import load_config, load_run

    directory = out or config
    run = load_run(directory)
    if config.is_file() and load_config(config, overrides) != run.config:
        raise RunError(f"{directory} was started with another configuration than {config}; resume it as it was: "
                       f"bitsback train {directory} --resume")  # fmt: skip
    if config.is_dir() and overrides:
        raise RunError("a resumed run keeps its configuration; leave the overrides out")
    return run.config
