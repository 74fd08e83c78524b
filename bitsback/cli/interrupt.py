"""Ctrl-C, SIGTERM and a closed terminal: one line that says what is left, and exit code 128 and the signal's number."""

import functools
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
"""Signals that end a command. Windows (not run here) has Ctrl-C and Ctrl-Break; its SIGTERM ends a process at once."""

_received: list[int] = []


class Terminated(KeyboardInterrupt):
    """A signal that asks the process to end; whatever cleans up after Ctrl-C does so after it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def stopped(error: KeyboardInterrupt, what_now: str = "") -> typer.Exit:
    """Say that a command was interrupted, and what to do now; raise what is returned."""
    code = exit_code(error)
    by = f" by {signal.Signals(code - 128).name}" if code != INTERRUPTED else ""
    with suppress(OSError):  # a terminal that was closed
        print(f"\nbitsback: interrupted{by}{what_now and '; ' + what_now}", file=sys.stderr, flush=True)
    return typer.Exit(code)


def exit_code(error: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + error.number if isinstance(error, Terminated) else INTERRUPTED


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise :class:`Terminated` at a signal, except at those that the caller of this process ignores, as nohup does."""
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
    """The command, ended by a signal with one line; typer alone would say nothing."""

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
            if _received:  # a library that was being imported makes another error of it
                raise stopped(Terminated(_received[-1])) from None
            raise

    return call
