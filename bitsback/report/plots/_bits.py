"""Figures of bits: over epochs, by layer, width, grid step, prior and code."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bitsback.errors import RunError
from bitsback.ledger import Ledger
from bitsback.report.plots.style import COLOURS, LINES, new_axes, octave, plain_ticks, short, styled

__all__ = ["codes", "grid", "ledger", "priors", "runs", "training", "width"]

MOST_BARS = 16
MOST_POINTS = 400
FOUR = (("net_bits", "net", "net", "-"), ("gross_bits", "gross", "gross", "--"), ("refund_bits", "refund", "gross", ":"),
        ("data_bits", "data", "data", "-"))  # fmt: skip

THREE = (
    ("gross_weight_bits", "gross", "gross", "--"),
    ("refund_bits", "refund", "gross", ":"),
    ("net_weight_bits", "net", "net", "-"),
)


def training(metrics: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw net, gross, refund and data bits over the epochs, on a logarithmic axis.

    Args:
        metrics: lines of a run's metrics.jsonl.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: there are no metrics, or a line lacks the bits.

    >>> bits = {"net_bits": 30.0, "gross_bits": 50.0, "refund_bits": 20.0, "data_bits": 9.0}
    >>> len(training([{"epoch": 1, **bits}, {"epoch": 2, **bits}]).lines)
    4
    """
    rows = _thinned(metrics, [key for key, *_ in FOUR])
    with styled():
        ax = ax or new_axes()
        epochs, ends, alone = [row["epoch"] for row in rows], [], len(rows) == 1
        for key, label, colour, dash in FOUR:
            values = np.maximum([row[key] for row in rows], 1e-3)
            if max(row[key] for row in rows) <= 0:  # the refund of a point estimate
                continue
            width, marker = 2 if key == "net_bits" else 1.1, "o" if alone else ""
            ax.plot(epochs, values, dash, color=COLOURS[colour], linewidth=width, marker=marker, markersize=4)
            ends.append((epochs[-1], values[-1], label, COLOURS[colour]))
        ax.set(yscale="log", xlabel="epoch", ylabel="bits", xlim=(epochs[0] - alone, epochs[-1] + alone))
        plain_ticks(ax.yaxis)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        _label_ends(ax, ends)
    return ax


def runs(histories: Mapping[str, Sequence[Mapping[str, Any]]], ax: Axes | None = None) -> Axes:
    """Draw net bits of several runs over their epochs.

    Args:
        histories: lines of metrics.jsonl by name of the run.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: there are no runs, or one has no metrics.
    """
    if not histories:
        raise RunError("no runs to draw; give the metrics of at least one")
    palette = [COLOURS[name] for name in ("net", "gross", "data", "hyper", "prior", "ink")]
    with styled():
        ax, ends = ax or new_axes(), []
        for index, (name, metrics) in enumerate(histories.items()):
            rows = _thinned(metrics, ["net_bits"])
            values = [max(row["net_bits"], 1e-3) for row in rows]
            colour = palette[index % len(palette)]
            epochs, marker = [row["epoch"] for row in rows], "o" if len(rows) == 1 else ""
            ax.plot(epochs, values, LINES[index % len(LINES)], color=colour, linewidth=1.5, marker=marker, markersize=4)
            ends.append((rows[-1]["epoch"], values[-1], name, colour))
        ax.set(yscale="log", xlabel="epoch", ylabel="net bits")
        plain_ticks(ax.yaxis)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        _label_ends(ax, ends)
    return ax


def _thinned(metrics: Sequence[Mapping[str, Any]], needed: Sequence[str]) -> list[Mapping[str, Any]]:
    if not metrics:
        raise RunError("there are no metrics to draw; give the lines of a run's metrics.jsonl")
    missing = [key for key in ("epoch", *needed) if any(key not in row for row in metrics)]
    if missing:
        raise RunError(f"the metrics have no {', '.join(missing)}; give the lines of a run's metrics.jsonl")
    chosen = np.unique(np.linspace(0, len(metrics) - 1, min(len(metrics), MOST_POINTS)).round().astype(int))
    return [metrics[index] for index in chosen]


def _label_ends(ax: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write names at the right ends of lines, (x, y, name, colour) each, moved apart where they overlap."""
    gap = 0.075
    placed: list[tuple[float, str, str]] = []
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [(float(to_axes.transform((x, y))[1]), name, colour) for x, y, name, colour in ends]
    for height, name, colour in sorted(heights):
        placed.append((max(height, placed[-1][0] + gap if placed else 0.0), name, colour))
    over = max(0.0, placed[-1][0] - 1.0)
    for height, name, colour in placed:
        ax.annotate(name, (1.02, height - over), xycoords="axes fraction", color=colour, va="center", annotation_clip=False)


def _beside(ax: Axes, text: str, x: float, y: float) -> None:
    """Write a text at the end of a bar."""
    ax.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5, annotation_clip=False)


def ledger(book: Ledger, ax: Axes | None = None) -> Axes:
    """Draw a bar for each weight tensor: gross bits, divided into net (solid) and refund (hatched).

    Args:
        book: the ledger; the 15 largest of many tensors are drawn, and the sum of the others.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: the ledger has no weights.
    """
    if not book.entries:
        raise RunError("the ledger has no weights to draw")
    rows = sorted(((e.name, e.net_bits, e.refund_bits) for e in book.entries), key=lambda row: -row[1] - row[2])
    if len(rows) > MOST_BARS:
        rest = rows[MOST_BARS - 1 :]
        rows = [*rows[: MOST_BARS - 1], (f"{len(rest)} others", sum(r[1] for r in rest), sum(r[2] for r in rest))]
    with styled():
        ax = ax or new_axes((4.6, 1.2 + 0.36 * len(rows)))
        positions = np.arange(len(rows))[::-1]
        net, refund = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
        ax.barh(positions, net, color=COLOURS["net"], height=0.62, label="net")
        if refund.any():
            colour = COLOURS["gross"]
            ax.barh(positions, refund, left=net, facecolor="none", edgecolor=colour, hatch="////", height=0.62, label="refund")
        ax.set_yticks(positions, [row[0] for row in rows])
        for position, paid, back in zip(positions, net, refund, strict=True):
            _beside(ax, f"{short(round(paid))} net of {short(round(paid + back))}", paid + max(back, 0.0), position)
        ax.set(xlabel="bits: gross = net + refund", xlim=(0, 1.3 * float(np.max(net + np.maximum(refund, 0)))))
        ax.grid(visible=False, axis="y")
        plain_ticks(ax.xaxis)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return ax


def width(curve: Mapping[float, Ledger], ax: Axes | None = None) -> Axes:
    """Draw net bits, net weight bits and data bits against the posterior std, as a multiple of the trained one.

    Args:
        curve: ledgers by factor, from :func:`bitsback.width_curve`.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: the curve is empty.
    """
    if not curve:
        raise RunError("the width curve is empty; give what bitsback.width_curve returns")
    factors = sorted(curve)
    lines = (
        ("net_bits", "net total", "net", "-"),
        ("data_bits", "data", "data", "--"),
        ("net_weight_bits", "net weights", "hyper", ":"),
    )
    with styled():
        ax, ends = ax or new_axes(), []
        for key, label, colour, dash in lines:
            values = [max(getattr(curve[factor], key), 1e-3) for factor in factors]
            ax.plot(factors, values, dash, color=COLOURS[colour], linewidth=2.2 if key == "net_bits" else 1.4)
            ends.append((factors[-1], values[-1], label, COLOURS[colour]))
        best = min(factors, key=lambda factor: curve[factor].net_bits)
        ax.plot([best], [curve[best].net_bits], "o", color=COLOURS["net"], markersize=6)
        where = "the trained width" if best == 1 else f"{octave(best)} times the trained width"
        ax.set_title(f"lowest: {short(round(curve[best].net_bits))} bits, at {where}", loc="left", color=COLOURS["net"])
        ax.axvline(1.0, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
        ax.set(xscale="log", yscale="log", xlabel="posterior std, times the trained one", ylabel="bits")
        octaves = [factor for factor in factors if float(np.log2(factor)).is_integer()]
        shown = (octaves if len(octaves) > 1 else factors)[:: 2 if len(factors) > 6 else 1]
        ax.set_xticks(shown, [octave(factor) for factor in shown])
        ax.xaxis.minorticks_off()
        plain_ticks(ax.yaxis)
        _label_ends(ax, ends)
    return ax


def grid(book: Ledger, ax: Axes | None = None, finest: float = 2.0**-20) -> Axes:
    """Draw gross, refund and net weight bits against the grid step; each halving adds a bit per weight to gross and refund.

    Args:
        book: a ledger with a refund; bits of weights without posterior do not change.
        ax: Axes to draw on; default: a new figure.
        finest: the smallest step.

    Returns:
        The Axes.
    """
    octaves = np.arange(0, max(1.0, np.log2(book.grid_step / finest)) + 1)
    wide = sum(e.weights for e in book.entries if e.method not in ("point", "float32"))
    steps = book.grid_step * 2.0**-octaves
    with styled():
        ax, ends = ax or new_axes(), []
        for name, label, colour, dash in THREE:
            values = getattr(book, name) + (0 if label == "net" else 1) * wide * octaves
            ax.plot(
                steps, values, dash, color=COLOURS[colour], linewidth=2 if label == "net" else 1.5, marker="o", markersize=2.5
            )
            ends.append((steps[-1], values[-1], label, COLOURS[colour]))
        ax.set(xscale="log", xlabel="step of the grid", ylabel="bits of the weights")
        ax.invert_xaxis()
        ax.set_xticks(steps[::4], [octave(step) for step in steps[::4]])
        ax.xaxis.minorticks_off()
        plain_ticks(ax.yaxis)
        _label_ends(ax, ends)
    return ax


def priors(books: Mapping[str, Ledger], ax: Axes | None = None) -> Axes:
    """Draw a bar for each ledger, divided into data, net weight and hyper-parameter bits; the cheapest on top.

    Args:
        books: ledgers by name of the prior or run.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: there are no ledgers.
    """
    if not books:
        raise RunError("no ledgers to draw; give at least one")
    order = sorted(books, key=lambda name: books[name].net_bits)
    parts = (("data_bits", "data", "data", ""), ("net_weight_bits", "net weights", "net", ""),
             ("hyperparameter_bits", "hyper-parameters", "hyper", "////"))  # fmt: skip
    with styled():
        ax = ax or new_axes((4.6, 1.3 + 0.3 * len(order)))
        positions, left = np.arange(len(order))[::-1], np.zeros(len(order))
        for key, label, colour, hatch in parts:
            values = np.array([getattr(books[name], key) for name in order])
            look: dict[str, Any] = {"facecolor": "none", "hatch": hatch} if hatch else {"facecolor": COLOURS[colour]}
            edge = COLOURS[colour] if hatch else "none"
            ax.barh(positions, values, left=left, height=0.62, label=label, edgecolor=edge, **look)
            left = left + values
        for position, name in zip(positions, order, strict=True):
            _beside(ax, short(round(books[name].net_bits)), left[len(order) - 1 - position], position)
        ax.set_yticks(positions, order)
        ax.set(xlabel="net bits", xlim=(0, 1.15 * float(left.max())))
        ax.grid(visible=False, axis="y")
        plain_ticks(ax.xaxis)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.2, 1), ncols=3, columnspacing=1, handlelength=1.2, borderaxespad=0.2)
    return ax


def codes(rows: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Draw a bar of the bits of each code, the cheapest on top; the axis is logarithmic above a ratio of 30.

    Args:
        rows: bits by name of the code.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: there are no codes.
    """
    if not rows:
        raise RunError("no codes to draw; give at least one")
    order = sorted(rows, key=lambda name: rows[name])
    with styled():
        ax = ax or new_axes((4.6, 0.9 + 0.3 * len(order)))
        positions = np.arange(len(order))[::-1]
        ax.barh(positions, [rows[name] for name in order], color=COLOURS["net"], height=0.62)
        for position, name in zip(positions, order, strict=True):
            _beside(ax, short(round(rows[name])), rows[name], position)
        ax.set_yticks(positions, order)
        far = 0 < 30 * rows[order[0]] < rows[order[-1]]
        ax.set(xlabel="bits", xscale="log" if far else "linear")
        ax.set_xlim(right=rows[order[-1]] * (3 if far else 1.2))
        ax.grid(visible=False, axis="y")
        plain_ticks(ax.xaxis)
    return ax
