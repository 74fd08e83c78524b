"""Rendering of a ledger as a plain-text table."""

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitsback.ledger._ledger import Ledger

__all__ = ["Row", "render", "show", "shown_bits", "shown_error"]

Row = tuple[str, str, str, str, str, str, str]


def shown_bits(net_bits: float, refund_bits: float) -> tuple[str, str, str]:
    """Return gross bits, refund and net bits as texts with one decimal, such that gross - refund = net in the digits shown.

    Args:
        net_bits: net bits.
        refund_bits: refund in bits.

    Returns:
        Texts of gross bits, refund and net bits.
    """
    net, refund = round(net_bits, 1), round(refund_bits, 1)
    return f"{net + refund:,.1f}", f"{refund:,.1f}", f"{net:,.1f}"


def shown_error(name: str, value: float) -> str:
    """Return an error as a text: a percentage for classes, a plain number otherwise.

    Args:
        name: name of the error, ``error`` for the share of wrong classes.
        value: the error.

    Returns:
        The text.

    >>> shown_error("error", 0.031), shown_error("rmse", 0.12346)
    ('3.1 %', '0.1235 (rmse)')
    """
    return f"{100 * value:.1f} %" if name == "error" else f"{value:.4g} ({name})"


def _row(name: str, weights: str, net_bits: float, refund_bits: float, per_weight: str, method: str) -> Row:
    return (name, weights, *shown_bits(net_bits, refund_bits), per_weight, method)


def _kinds(ledger: "Ledger") -> Counter[str]:
    """Count the learned numbers of each kind, which is the part of a charge's name before the name of its weight tensor."""
    kinds: Counter[str] = Counter()
    for charge in ledger.charges:
        kinds[charge.name.partition("[")[0]] += charge.numbers
    return kinds


def render(ledger: "Ledger") -> str:
    """Return the ledger as aligned plain text: a line per weight tensor, the totals, remarks and one sentence."""
    head: Row = ("weights of", "count", "gross bits", "refund", "net bits", "bits/weight", "method")
    body = []
    for e in ledger.entries:
        method = f"{e.method} +- {e.stderr:.1f}" if e.stderr else e.method
        body.append(_row(e.name, f"{e.weights:,}", e.net_bits, e.refund_bits, f"{e.bits_per_weight:.3f}", method))
    data = f"{ledger.samples} draw{'s' if ledger.samples != 1 else ''}, +- {ledger.data_bits_stderr:.1f}"
    hyper_count = sum(charge.numbers for charge in ledger.charges)
    hyper = ", ".join(f"{count} x {kind}" for kind, count in _kinds(ledger).items())
    rates = f"{ledger.bits_per_example:.3f} bits per example"
    rates += "" if ledger.symbols is None else f", {ledger.bits_per_symbol:.3f} per symbol"
    examples = f"{ledger.examples:,} examples" + ("" if ledger.symbols is None else f", {ledger.symbols:,} symbols")
    foot = [
        _row("all weights", f"{ledger.weights:,}", ledger.net_weight_bits, ledger.refund_bits,
             f"{ledger.bits_per_weight:.3f}", f"grid step {ledger.grid_step:g}"),
        _row("hyper-parameters", f"{hyper_count:,}", ledger.hyperparameter_bits, 0.0, "", hyper),
        _row(f"data ({ledger.described})", "", ledger.data_bits, 0.0, "", data),
        _row("total", "", ledger.net_bits, ledger.refund_bits, "", rates),
        _row("uniform code", "", ledger.uniform_bits, 0.0, "", f"{examples}, no model"),
    ]  # fmt: skip
    if ledger.marginal_bits is not None:
        foot.append(_row("marginal code", "", ledger.marginal_bits, 0.0, "", f"{examples}, no inputs"))
    widths = [max(len(row[column]) for row in [head, *body, *foot]) for column in range(7)]

    def line(row: Row) -> str:
        cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 6)), row[6]]
        return "  ".join(cells).rstrip()

    rule = "-" * max(len(line(row)) for row in [head, *body, *foot])
    lines = [line(head), rule, *map(line, body), rule, *map(line, foot)]
    lines += [f"not charged: {what}" for what in ledger.not_charged]
    lines += [f"note: {note}" for note in ledger.notes]
    return "\n".join([*lines, "", ledger.sentence(), *ledger.warnings])


def show(ledger: "Ledger") -> None:
    """Print the ledger: to a pipe or a file exactly :func:`render`, to a terminal the same text, its totals bold.

    Lines are never cut or folded to the terminal's width; characters that its encoding lacks are escaped. ``NO_COLOR`` and a
    terminal that cannot (``TERM=dumb``) leave the text plain.
    """
    encoding = sys.stdout.encoding or "utf-8"
    text = render(ledger).encode(encoding, "backslashreplace").decode(encoding)
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        print(text)
        return
    from rich.console import Console
    from rich.text import Text

    # the command line's stdout escapes control characters, those of colours too: the text is escaped here, and goes past it
    escaped = getattr(sys.stdout, "printable", str)
    console = Console(highlight=False, file=getattr(sys.stdout, "terminal", sys.stdout))
    lines = escaped(text).split("\n")
    for number, line in enumerate(lines):
        console.print(Text(line, style=_style(line, number, len(lines) - len(ledger.warnings))), soft_wrap=True)


def _style(line: str, number: int, count: int) -> str:
    """Return the terminal style of a line; lines from number ``count`` on are warnings."""
    if number >= count:
        return "bold red"
    if number in (0, count - 1) or line.startswith(("total ", "all weights ")):
        return "bold"
    return "dim" if line.startswith(("---", "not charged: ", "note: ")) else ""
