"""Handling of Ctrl-C, SIGTERM and a closed terminal: one line on stderr, and exit code 128 plus the signal's number."""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer

__all__ = ["Terminated", "ended_by_signals", "exit_code", "interruptible", "stopped"]

INTERRUPTED = 130

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that end a command. On Windows (not run here) Ctrl-C and Ctrl-Break; its SIGTERM cannot be handled."""

_received: list[int] = []


class Terminated(KeyboardInterrupt):
    """Signal that asks the process to end; a KeyboardInterrupt, so that clean-up after Ctrl-C runs too."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def stopped(error: KeyboardInterrupt, what_now: str = "") -> typer.Exit:
    """Print on stderr that a command was interrupted.

    Args:
        error: the interruption.
        what_now: advice to the user; may be empty.

    Returns:
        The exception to raise, with the exit code.
    """
    code = exit_code(error)
    if os.environ.get("RANK", "0") not in ("", "0"):  # of several processes, rank 0 says it
        return typer.Exit(code)
    by = f" by {signal.Signals(code - 128).name}" if code != INTERRUPTED else ""
    with suppress(OSError):  # the terminal may be closed
        print(f"\nbitsback: interrupted{by}{what_now and '; ' + what_now}", file=sys.stderr, flush=True)
    return typer.Exit(code)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + error.number if isinstance(error, Terminated) else INTERRUPTED


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise :class:`Terminated` at a signal, except at signals that this process was started to ignore, as by nohup."""
    before, usual = {}, (signal.SIG_DFL, signal.default_int_handler)
    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in usual:
                before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise Terminated(number)


def interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that a signal ends it with one line on stderr; typer alone prints nothing."""

    @functools.wraps(command)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            with ended_by_signals():
                return command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise stopped(error) from None
        except (typer.Exit, SystemExit):
            raise
        except Exception:
            if _received:  # a library that is being imported may turn the signal into another error
                raise stopped(Terminated(_received[-1])) from None
            raise

    return call
