"""The look of every figure: colours with fixed roles, and sizes that a phone shows one to one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

__all__ = ["COLOURS", "LINES", "SIZE", "array_of", "new_axes", "octave", "off_screen", "plain_ticks", "short", "styled"]

SIZE = (4.6, 3.0)
"""Inches; a screen 360 pixels wide shows it almost one to one."""
COLOURS = {
    "ink": "#1c2330",
    "muted": "#566072",
    "line": "#cfd5de",
    "paper": "#ffffff",
    "net": "#0072b2",
    "gross": "#d98e00",
    "refund": "#f3cf85",
    "data": "#00805e",
    "hyper": "#a8548a",
    "prior": "#6b7280",
    "posterior": "#0072b3",
}
"""What each colour stands for; told apart by everyone (after Okabe & Ito), and never the only sign."""
LOOK: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.5,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "hatch.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "figure.facecolor": COLOURS["paper"],
}
_off_screen = ContextVar("off_screen", default=False)
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LINES = ("-", "--", ":", "-.")


@contextmanager
def styled() -> Iterator[None]:
    """The house style inside, and whatever was before outside."""
    if not _off_screen.get():
        _find_backend()
    with mpl.rc_context(LOOK):  # type: ignore[arg-type]  # its keys are literals
        yield


@cache
def _find_backend() -> None:
    """Let pyplot find its backend now: found inside our style, what it sets in a notebook would be undone behind us."""
    from matplotlib import pyplot

    if not pyplot.get_fignums():
        pyplot.switch_backend(pyplot.get_backend())


def new_axes(size: tuple[float, float] = SIZE) -> Axes:
    """Axes of a new figure; known to pyplot, so that a notebook shows it, unless :func:`off_screen`."""
    if _off_screen.get():
        return Figure(figsize=size, layout="constrained").add_subplot()
    from matplotlib import pyplot

    return pyplot.figure(figsize=size, layout="constrained").add_subplot()


@contextmanager
def off_screen() -> Iterator[None]:
    """Inside, new figures are nobody's but the caller's: no window, nothing to close."""
    before = _off_screen.set(True)
    try:
        yield
    finally:
        _off_screen.reset(before)


def array_of(values: Any) -> np.ndarray:
    """A tensor of any device, with or without gradient, or anything that NumPy takes, as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def short(value: float, _place: object = None) -> str:
    """A number for an axis: at most four digits, thousands separated.

    >>> short(1234.5), short(0.125), short(2.5e6)
    ('1,234', '0.125', '2.5M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def plain_ticks(axis: Any) -> None:
    """Numbers as :func:`short` says them, no minor ticks; on a logarithmic axis of few decades, 1, 2 and 5 of each.

    Numbers beside each other need more room than numbers above each other.
    """
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        room = 300 if axis.axis_name == "y" else 30
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < room * low else (1,)))
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_locator(NullLocator())


def octave(value: float) -> str:
    """A power of two as a person writes it; another number as :func:`short` says it.

    >>> octave(0.25), octave(8.0), octave(2**-12), octave(0.3)
    ('1/4', '8', '2⁻¹²', '0.3')
    """
    exponent = math.log2(value)
    if not exponent.is_integer():
        return short(value)
    if exponent < -8 or exponent > 12:
        return "2" + f"{exponent:.0f}".translate(RAISED)
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
