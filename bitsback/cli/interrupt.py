"""Ctrl-C: one line that says what is left, and exit code 130."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

INTERRUPTED = 130


def stopped(what_now: str = "") -> typer.Exit:
    """Say that a verb was interrupted, and what to do now; raise what is returned."""
    print(f"\nbitsback: interrupted{what_now and '; ' + what_now}", file=sys.stderr)
    return typer.Exit(INTERRUPTED)


def interruptible(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb, ended by Ctrl-C with one line; typer alone would say nothing."""

    @functools.wraps(verb)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return verb(*arguments, **options)
        except KeyboardInterrupt:
            raise stopped() from None

    return call
