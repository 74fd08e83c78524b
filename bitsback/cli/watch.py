"""bitsback watch: live curves of a training in the terminal."""

import json as json_library
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitsback.cli.interrupt import exit_code
from bitsback.cli.ledger import RunArgument
from bitsback.cli.text import printable
from bitsback.cli.train import JsonOption
from bitsback.errors import RunError
from bitsback.ledger.rendering import shown_error
from bitsback.terminal.live_metrics import Metrics, Progress, Tail, check_run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["frame", "watch"]

GLANCE_SECONDS = 0.1
"""How soon a terminal of another size is noticed."""

LEAST_CHART_LINES = 5
END_LINES = 4
"""What stands below the last picture, and the prompt."""


def watch(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Print one picture as plain text and stop.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the run.")] = 1.0,
    json: JsonOption = False,
) -> None:
    """Show a run's net, gross, refund and data bits over its epochs, live, until the training has finished.

    Ctrl-C leaves; the training goes on. In a pipe, one picture is printed as plain text; --json prints the latest metrics.

    Example: bitsback watch runs/digits --every 5
    """
    check_run(run)
    tail = Tail(run / "metrics.jsonl")
    tail.read()
    if json:
        if tail.latest is None:
            raise RunError(f"{run} has no metrics yet; look again after its first epoch")
        print(json_library.dumps(tail.latest))
    elif once or not sys.stdout.isatty():
        _print_once(run, tail)
    else:
        _live(run, tail, every)


def _print_once(run: Path, tail: Tail) -> None:
    size = shutil.get_terminal_size()
    progress = Progress.of(run)
    for line in frame(run, tail, progress, size.columns, size.lines - END_LINES, plain=not _draws(sys.stdout.encoding)):
        print(line.plain.rstrip())
    _print_end(progress)


def _live(run: Path, tail: Tail, every: float) -> None:
    from rich.console import Console

    console = Console(highlight=False, file=getattr(sys.stdout, "terminal", sys.stdout))
    if console.is_dumb_terminal:
        _print_once(run, tail)
        return
    try:
        progress = _follow(console, run, tail, every)
    except KeyboardInterrupt as error:
        raise typer.Exit(exit_code(error)) from None
    for line in _frame_for(console, run, tail, progress):
        console.print(line, no_wrap=True, overflow="crop", crop=True)
    _print_end(progress)


def _follow(console: "Console", run: Path, tail: Tail, every: float) -> Progress:
    """Draw until the run has finished; returns its end."""
    from rich.live import Live
    from rich.text import Text

    progress = Progress.of(run)
    if progress.summary is not None:
        return progress
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while progress.summary is None:
            tail.read()
            lines = _frame_for(console, run, tail, progress)
            live.update(Text("\n", no_wrap=True, overflow="crop").join(lines), refresh=True)
            seen, looked = console.size, time.monotonic()
            while time.monotonic() - looked < every and console.size == seen:
                time.sleep(min(GLANCE_SECONDS, every))
            progress = progress.later(run)
    tail.read()
    return progress


def _frame_for(console: "Console", run: Path, tail: Tail, progress: Progress) -> "list[Text]":
    width, height = console.size
    lines = height - END_LINES if progress.summary is not None else height
    return frame(run, tail, progress, width, lines, plain=not _draws(console.encoding))


def _draws(encoding: str | None) -> bool:
    """True when the terminal's encoding has the characters of the curves."""
    try:
        "⠿│└─".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def frame(run: Path, tail: Tail, progress: Progress, width: int, height: int, *, plain: bool = False) -> "list[Text]":
    """One picture of a run, in at most ``height`` lines of ``width`` columns: where it stands, the curves, the rest.

    Args:
        run: the run directory, for its name.
        tail, progress: what was read of it.
        width, height: of the terminal, in characters.
        plain: ASCII alone.
    """
    from rich.text import Text

    from bitsback.terminal.chart import chart, figures

    head = _heading(printable(str(run)), progress.text(tail), width)
    if tail.latest is None:
        return [Text(line, style="bold") for line in head]
    values, unit = figures(tail.latest)
    facts = Text(printable(_facts(tail.latest, values, unit, width)))
    rows = height - len(head) - 1
    curves = chart(tail.curve(), values, width, rows, plain=plain) if rows >= LEAST_CHART_LINES and width >= 30 else []
    return [*(Text(line, style="bold") for line in head), *curves, facts]


def _heading(name: str, state: str, width: int) -> list[str]:
    """The run's name and its state on one line, or two where the terminal is narrow."""
    if len(name) + len(state) + 2 <= width:
        return [name + state.rjust(width - len(name))]
    return [name if len(name) <= width else "..." + name[3 - width :], state[:width]]


def _facts(metrics: Metrics, values: dict[str, str], unit: str, width: int) -> str:
    """The numbers below the curves, as many as fit on the line."""
    parts = [f"net {values['net']} {unit} = gross {values['gross']} - refund {values['refund']}"]
    if metrics.get("test_error") is not None:
        parts.append(f"test error {shown_error(metrics.get('error_name', 'error'), metrics['test_error'])}")
    if metrics.get("beta", 1.0) != 1.0:
        parts.append(f"beta {metrics['beta']:.3g}")
    if metrics.get("lr"):
        parts.append(f"lr {metrics['lr']:.2g}")
    while len(parts) > 1 and len("   ".join(parts)) > width:
        parts.pop()
    return "   ".join(parts)[:width]


def _print_end(progress: Progress) -> None:
    """What the training ended with."""
    summary: dict[str, Any] = progress.summary or {}
    if "sentence" not in summary:
        return
    print(f"\n{summary['sentence']}")
    errors = {name: value for name, value in summary.items() if name.startswith("test_") and value is not None}
    for name, value in errors.items():
        print(f"Test error {shown_error(name.removeprefix('test_'), value)}")
