"""Style of all figures: colours with fixed meanings, and a size that suits a phone."""

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
"""Width and height in inches; about the width of a screen of 360 pixels."""
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
"""Colours by meaning, distinguishable by the colour-blind (after Okabe & Ito); figures also use dashes and labels."""
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
    """Use the style of bitsback's figures, and restore matplotlib's settings afterwards."""
    if not _off_screen.get():
        _find_backend()
    with mpl.rc_context(LOOK):  # type: ignore[arg-type]  # its keys are literals
        yield


@cache
def _find_backend() -> None:
    """Let pyplot choose its backend before the style is set; else the settings it makes in a notebook would be undone."""
    from matplotlib import pyplot

    if not pyplot.get_fignums():
        pyplot.switch_backend(pyplot.get_backend())


def new_axes(size: tuple[float, float] = SIZE) -> Axes:
    """Return Axes of a new figure of ``size`` inches; a pyplot figure, which a notebook shows, unless :func:`off_screen`."""
    if _off_screen.get():
        return Figure(figsize=size, layout="constrained").add_subplot()
    from matplotlib import pyplot

    return pyplot.figure(figsize=size, layout="constrained").add_subplot()


@contextmanager
def off_screen() -> Iterator[None]:
    """Create figures without pyplot: no window, and nothing to close."""
    before = _off_screen.set(True)
    try:
        yield
    finally:
        _off_screen.reset(before)


def array_of(values: Any) -> np.ndarray:
    """Return a tensor of any device, or anything that NumPy accepts, as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def short(value: float, _place: object = None) -> str:
    """Format a number for an axis: at most four digits, or thousands separated.

    Args:
        value: the number.
        _place: position of the tick, which matplotlib passes; not used.

    Returns:
        Text.

    >>> short(1234.5), short(0.125), short(2.5e6)
    ('1,234', '0.125', '2.5M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def plain_ticks(axis: Any) -> None:
    """Format ticks with :func:`short`, without minor ticks; on a logarithmic axis of few decades, tick 1, 2 and 5 of each.

    A horizontal axis gets fewer ticks, because labels beside each other need more room.
    """
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        room = 300 if axis.axis_name == "y" else 30
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < room * low else (1,)))
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_locator(NullLocator())


def octave(value: float) -> str:
    """Format a power of two, such as 1/4 or 2⁻¹²; another number as :func:`short` does.

    Returns:
        Text.

    >>> octave(0.25), octave(8.0), octave(2**-12), octave(0.3)
    ('1/4', '8', '2⁻¹²', '0.3')
    """
    exponent = math.log2(value)
    if not exponent.is_integer():
        return short(value)
    if exponent < -8 or exponent > 12:
        return "2" + f"{exponent:.0f}".translate(RAISED)
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
