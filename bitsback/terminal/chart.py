"""Curves of bits over epochs, drawn with characters and labelled at their ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

from bitsback.extras import require
from bitsback.terminal.live_metrics import CURVES

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Scale", "chart", "figures", "short"]

COLOURS = {"gross": 208, "net": 33, "refund": 36, "data": 170}
"""Of 256: they differ in lightness as well as in hue; the labels say the rest."""

LETTERS = {"gross": "g", "net": "n", "refund": "r", "data": "d"}
PLAIN = str.maketrans({"│": "|", "┤": "+", "└": "+", "─": "-"})
DECADES = 6
ROWS_PER_TICK = 3


@dataclass(frozen=True)
class Scale:
    """The vertical axis: logarithmic, unless net bits are not all positive."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, columns: Sequence[Sequence[float]], net: Sequence[float]) -> "Scale":
        """A scale that holds all columns of bits."""
        is_log = all(bits > 0 for bits in net if math.isfinite(bits))
        values = [v for column in columns for v in column if math.isfinite(v) and (v > 0 or not is_log)] or [1.0]
        low, high = min(values), max(values)
        if is_log:
            low, high = max(math.log10(low), math.log10(high) - DECADES), math.log10(high)
        room = 0.02 * (high - low) or max(0.05, 0.01 * abs(high))
        return cls(low - room, high + room, is_log)

    def height(self, bits: float) -> float:
        """Where ``bits`` stand, between :attr:`low` and :attr:`high`; NaN where they cannot."""
        if not self.is_log:
            return bits if math.isfinite(bits) else math.nan
        return max(math.log10(bits), self.low) if 0 < bits < math.inf else math.nan

    def row(self, bits: float, rows: int) -> int:
        """The row of a chart of so many rows, counted from the top."""
        share = (self.height(bits) - self.low) / (self.high - self.low)
        return min(rows - 1, max(0, round((rows - 1) * (1 - share))))

    def ticks(self, rows: int) -> dict[int, str]:
        """Round numbers of bits, by row."""
        most = max(2, rows // ROWS_PER_TICK)
        for digits in ((1, 2, 5), (1, 3), (1,)) if self.is_log else ((),):
            values = self._decades(digits) if self.is_log else self._steps(most)
            if len(values) <= most:
                break
        return {self.row(value, rows): short(value) for value in values}

    def _decades(self, digits: tuple[int, ...]) -> list[float]:
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
        inside = [value for value in values if self.low <= math.log10(value) <= self.high]
        return inside if len(inside) > 1 or digits != (1, 2, 5) else [10**self.low, 10**self.high]

    def _steps(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * digit for digit in (1, 2, 5, 10) if unit * digit >= rough)
        return [step * k for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def short(value: float) -> str:
    """A number in three digits.

    >>> short(200), short(50_000), short(-1234), short(2e6), short(0.5)
    ('200', '50k', '-1.23k', '2M', '0.5')
    """
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def figures(metrics: dict[str, float]) -> tuple[dict[str, str], str]:
    """The current bits by curve in one unit, so that gross - refund = net in the digits shown; and that unit.

    >>> figures({"net_bits": 250.6, "gross_bits": 766.9, "refund_bits": 516.3, "data_bits": 89.7})
    ({'gross': '767', 'net': '251', 'refund': '516', 'data': '90'}, 'bits')
    """
    largest = max((abs(bits) for name in CURVES if math.isfinite(bits := metrics[f"{name}_bits"])), default=0.0)
    size, unit = (1.0, "bits") if largest < 1e6 else (1e3, "kbit") if largest < 1e9 else (1e6, "Mbit")
    scaled = {name: metrics[f"{name}_bits"] / size for name in ("net", "refund", "data")}
    shown = {name: round(bits) if math.isfinite(bits) else bits for name, bits in scaled.items()}
    shown["gross"] = shown["net"] + shown["refund"]
    return {name: f"{shown[name]:,}" for name in CURVES}, unit


def chart(
    points: Sequence[tuple[float, ...]], values: dict[str, str], width: int, height: int, *, plain: bool = False
) -> "list[Text]":
    """The curves in ``height`` lines of ``width`` columns, two of them for the horizontal axis.

    Args:
        points: (epoch, seconds, the bits of :data:`~bitsback.terminal.live_metrics.CURVES`), at least one.
        values: what stands beside the names at the curves' ends.
        width, height: in characters.
        plain: ASCII alone, a letter for each curve.
    """
    from rich.text import Text

    epochs = [point[0] for point in points]
    require("watch", "a chart in the terminal")
    drawn = {name: [point[2 + number] for point in points] for number, name in enumerate(CURVES)}
    drawn = {name: bits for name, bits in drawn.items() if name == "net" or any(bits)}
    scale = Scale.of(list(drawn.values()), drawn["net"])
    rows = height - 2
    ticks = scale.ticks(rows)
    numbers = max(map(len, values.values()))
    labels = {name: f"{name:<6} {values[name]:>{numbers}}" if width >= 60 else name for name in drawn}
    margin = max(map(len, ticks.values())) + 1
    columns = max(2, width - margin - 2 - max(map(len, labels.values())) - 1)
    ends = _spread({name: scale.row(bits[-1], rows) for name, bits in drawn.items() if math.isfinite(bits[-1])}, rows)
    lines = []
    for row, picture in enumerate(_picture(*_means(epochs, drawn, columns), scale, columns, rows, plain)):
        edge = f"{ticks.get(row, ''):>{margin}} {'┤' if row in ticks else '│'}"
        name = ends.get(row)
        label = Text(labels[name], style=_style(name)) if name else Text()
        lines.append(Text.assemble(edge.translate(PLAIN) if plain else edge, picture, " ", label))
    axis = " " * (margin + 1) + "└" + "─" * columns
    first, last = f"{epochs[0]:,.0f}", f"{epochs[-1]:,.0f}"
    below = " " * (margin + 2) + (first + "epoch".center(columns - len(first) - len(last)) + last if len(epochs) > 1 else last)
    return [*lines, Text(axis.translate(PLAIN) if plain else axis), Text(below)]


def _means(epochs: list[float], drawn: dict[str, list[float]], columns: int) -> tuple[list[float], dict[str, list[float]]]:
    """The points of a column as one, their mean; the first and the last stay themselves."""
    share = max(1, len(epochs) // columns)
    if share == 1:
        return epochs, drawn
    cuts = [0, *range(1, len(epochs) - 1, share), len(epochs) - 1, len(epochs)]

    def means(values: list[float]) -> list[float]:
        return [fmean(values[start:end]) for start, end in pairwise(cuts) if end > start]

    return means(epochs), {name: means(bits) for name, bits in drawn.items()}


def _style(name: str) -> str:
    return f"color({COLOURS[name]})" + (" bold" if name == "net" else "")


def _picture(
    epochs: list[float], drawn: dict[str, list[float]], scale: Scale, columns: int, rows: int, plain: bool
) -> "list[Text]":
    """The canvas alone, a line of ``columns`` characters per row."""
    import plotext
    from rich.text import Text

    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(columns, rows)
    figure.axes(False)
    for axis, low, high in (("x", epochs[0], max(epochs[-1], epochs[0] + 1)), ("y", scale.low, scale.high)):
        figure.ruler(axis).frequency(0)
        figure.ruler(axis).lim(low, high)
    for name in sorted(drawn, key=("data", "refund", "gross", "net").index):  # the net lies on top
        pairs = [(x, scale.height(bits)) for x, bits in zip(epochs, drawn[name], strict=True)]
        pairs = [(x, y) for x, y in pairs if math.isfinite(y)]
        marker = plotext.marker(LETTERS[name] if plain else "braille", plotext.pixel(foreground=COLOURS[name]))
        if pairs:
            signal = figure.signal([x for x, _ in pairs], [y for _, y in pairs], marker=marker)
            figure.draw(signal.lines(True).density("full"))
    lines = figure.build().string(colorless=plain).split("\n")[:rows]
    return [Text.from_ansi(line) for line in lines]


def _spread(rows: dict[str, int], count: int) -> dict[int, str]:
    """Names by row, moved apart where they would stand on one another, from the top downwards and back."""
    names = sorted(rows, key=lambda name: (rows[name], CURVES.index(name)))[:count]
    positions: list[int] = []
    for name in names:
        positions.append(max(rows[name], positions[-1] + 1 if positions else 0))
    for index in reversed(range(len(positions))):
        below = positions[index + 1] if index + 1 < len(positions) else count
        positions[index] = min(positions[index], below - 1)
    return dict(zip(positions, names, strict=True))
