"""Command-line application: its commands, and the output of errors."""

import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from bitsback.cli.certify import certify
from bitsback.cli.codelengths import codelengths
from bitsback.cli.compare import compare
from bitsback.cli.inspect import inspect
from bitsback.cli.interrupt import interruptible
from bitsback.cli.ledger import ledger
from bitsback.cli.output import output_that_may_fail
from bitsback.cli.pack import pack
from bitsback.cli.plot import plot
from bitsback.cli.predict import predict
from bitsback.cli.priors import priors
from bitsback.cli.prune import prune
from bitsback.cli.ranks import alone, says_it
from bitsback.cli.receive import LOCATIONS, receive
from bitsback.cli.report import report
from bitsback.cli.schema import schema
from bitsback.cli.send import send
from bitsback.cli.text import escaped_output, printable
from bitsback.cli.train import train
from bitsback.cli.unpack import unpack
from bitsback.cli.watch import watch
from bitsback.cli.widen import widen
from bitsback.errors import BitsbackError
from bitsback.processes import launched_count, own_rank

__all__ = ["COMMANDS", "app", "common", "main", "version"]

app = typer.Typer(
    name="bitsback",
    help="Train neural networks by minimum description length, with ledgers of gross, refund and net bits.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., Any], ...] = (
    train, watch, report, plot, ledger, widen, compare, codelengths, send, receive, pack, unpack, inspect, predict, prune,
    certify, priors, schema,
)  # fmt: skip
TAKE_LOCATIONS = (receive, unpack, inspect, predict, certify)
for command in COMMANDS:
    runs = command if command is train else alone(command)
    app.command(context_settings=LOCATIONS if command in TAKE_LOCATIONS else None)(interruptible(runs))


def version(shown: bool) -> None:
    """Print the version and exit if ``shown``."""
    if shown:
        from bitsback import __version__

        print(f"bitsback {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    _version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version and exit."),
) -> None:
    """Set the options that come before the command."""
    os.environ["BITSBACK_DEBUG"] = "1" if debug else ""


def main() -> None:
    """Run a command; a BitsbackError is printed on stderr as one message, with exit code 1."""
    with output_that_may_fail():
        try:
            with escaped_output():
                app()
        except BitsbackError as error:
            if os.environ.get("BITSBACK_DEBUG"):
                raise
            if launched_count() > 1 and not says_it(error):
                sys.exit(1)
            print(f"bitsback: {own_rank()}{printable(str(error))}", file=sys.stderr)
            sys.exit(1)
