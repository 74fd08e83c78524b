"""The figures, drawn twice, for light and for dark pages; their numbers are those of the pages and of benchmarks/scale.json."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from made import Made
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
BLUE, ORANGE, GREEN, PURPLE, YELLOW, TEXT, GRID = range(7)
INKS = {
    "light": ("#0072b2", "#d55e00", "#007a5a", "#8a3f75", "#a07400", "#333333", "#d0d0d0"),
    "dark": ("#5cb3e8", "#f58d4a", "#3fc79a", "#d9a0cb", "#f3cf85", "#d6d6d6", "#4a4a4a"),
}
SALT = {"svg.hashsalt": "bitsback", "font.size": 10}


def numbers(line: str) -> list[float]:
    """The numbers of one line of a console table."""
    return [float(each.replace(",", "")) for each in re.findall(r"(?<![\^\w.])-?[\d,]+(?:\.\d+)?", line)]


def rows_on(page: str, start: str) -> list[list[float]]:
    """Return the rows of a page's console table below the command that begins with ``start``."""
    text = (DOCS / page).read_text(encoding="utf-8")
    block = text.partition(f"$ {start}")[2].partition("```")[0]
    rows = [line for line in block.splitlines()[1:] if re.match(r"x [\d.]+|2\^-\d+", line)]
    return [numbers(line.replace("2^-", "")) for line in rows]


def draw(width: float, height: float, panels: int, paint: Callable[[list[Axes], tuple[str, ...]], None], ink: str) -> bytes:
    """One figure as SVG, with nothing behind it."""
    colours = INKS[ink]
    text, grid = colours[TEXT], colours[GRID]
    frame = {"text.color": text, "axes.labelcolor": text, "xtick.color": text, "ytick.color": text, "axes.edgecolor": grid}
    quiet = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": grid, "grid.linewidth": 0.5}
    with mpl.rc_context({**SALT, **frame, **quiet, "axes.facecolor": "none", "axes.axisbelow": True, "legend.frameon": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(list(figure.subplots(1, panels, squeeze=False)[0]), colours)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def penalties(axes: list[Axes], ink: tuple[str, ...]) -> None:
    """What a weight costs under a Gaussian and under a Laplace, on a grid of 1/16."""
    w, step = np.linspace(-3, 3, 401), 1 / 16
    gaussian = (w**2 / 2 + math.log(math.sqrt(2 * math.pi) / step)) / math.log(2)
    laplace = (np.abs(w) + math.log(2 / step)) / math.log(2)
    density, cost = axes
    for name, bits, colour in (("Gaussian", gaussian, ink[BLUE]), ("Laplace", laplace, ink[ORANGE])):
        density.plot(w, 2**-bits / step, color=colour, lw=2, ls="-" if name == "Gaussian" else "--", label=name)
        cost.plot(w, bits, color=colour, lw=2, ls="-" if name == "Gaussian" else "--", label=name)
    density.set(title="prior density p(w)", xlabel="weight w", ylim=(0, None))
    cost.set(title="its cost: \u2212log\u2082 (p(w) \u00b7 step), bits", xlabel="weight w", ylim=(0, None))
    cost.text(0, 9, "Gaussian: L2", color=ink[BLUE], ha="center")
    cost.text(0, 3.4, "Laplace: L1", color=ink[ORANGE], ha="center")
    density.legend(loc="upper left")


def widths(axes: list[Axes], ink: tuple[str, ...]) -> None:
    """Draw the width curve of the quick start."""
    rows = rows_on("quickstart.md", "bitsback widen")
    factors = [row[0] for row in rows]
    (axis,) = axes
    lines = (("net bits, all", 5, ink[BLUE], "-"), ("data bits", 4, ink[GREEN], "--"), ("net weight bits", 3, ink[PURPLE], ":"))
    for name, column, colour, style in lines:
        axis.plot(factors, [row[column] for row in rows], color=colour, ls=style, lw=2, marker="o", ms=4, label=name)
    best = min(rows, key=lambda row: row[5])
    axis.annotate(f"as trained: {best[5]:.0f} bits", (best[0], best[5]), (best[0], best[5] * 7), ha="center",
                  arrowprops={"arrowstyle": "-", "color": ink[TEXT]})  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="every std, in units of the trained one", ylabel="bits")
    axis.set_xticks(factors, [f"{factor:g}" if factor >= 1 else f"1/{1 / factor:.0f}" for factor in factors])
    axis.minorticks_off()
    axis.set_yticks([100, 1000, 10000, 100000], ["100", "1,000", "10,000", "100,000"])
    axis.legend(loc="upper left")


def grids(axes: list[Axes], ink: tuple[str, ...]) -> None:
    """Draw the table of grids of the page on formats: gross and refund grow together, net stands still."""
    rows = rows_on("formats.md", "bitsback send configs/digits.yaml --payload letter.txt --step")
    (axis,) = axes
    places = [row[0] for row in rows]
    lines = {"gross": [row[1] for row in rows], "refund": [row[2] for row in rows], "net": [row[1] - row[2] for row in rows]}
    looks = ((ink[ORANGE], "--", "bottom"), (ink[YELLOW], ":", "top"), (ink[BLUE], "-", "center"))
    for (name, values), (colour, style, side) in zip(lines.items(), looks, strict=True):
        axis.plot(places, values, color=colour, ls=style, lw=2, marker="o", ms=4)
        axis.text(places[-1] + 0.4, values[-1], f"{name} {values[-1]:,.0f}", color=colour, va=side)
    axis.set(xlabel="n, where the step of the grid is 1 / 2\u207f", ylabel="bits of 130 weights", ylim=(0, 3200))
    axis.set_yticks([0, 1000, 2000, 3000], ["0", "1,000", "2,000", "3,000"])
    axis.set_xlim(min(places) - 0.5, max(places) + 3.5)
    axis.set_xticks(places, [f"{place:.0f}" for place in places])


def scale(axes: list[Axes], ink: tuple[str, ...]) -> None:
    """Seconds against weights and against examples, from benchmarks/scale.json."""
    found = json.loads((DOCS / "benchmarks" / "scale.json").read_text(encoding="utf-8"))
    lines = (
        (axes[0], "weights", (("pack", ink[GREEN], ":"), ("ledger", ink[ORANGE], "--"), ("step", ink[BLUE], "-"))),
        (axes[1], "examples", (("epoch", ink[PURPLE], "-"), ("ledger", ink[ORANGE], "--"))),
    )
    for axis, against, kinds in lines:
        rows = found[against]["rows"]
        for name, colour, style in kinds:
            seconds = [row[f"{name}_seconds"]["median"] for row in rows]
            axis.plot([row[against] for row in rows], seconds, color=colour, ls=style, lw=2, marker="o", ms=3.5, label=name)
        axis.set(xscale="log", yscale="log", xlabel=against, ylabel="processor seconds")
        axis.legend(loc="upper left")
        axis.minorticks_off()


FIGURES: dict[str, tuple[float, float, int, Callable[[list[Axes], tuple[str, ...]], None]]] = {
    "penalties": (7.4, 2.9, 2, penalties),
    "widths": (7.4, 3.4, 1, widths),
    "grids": (7.4, 3.2, 1, grids),
    "scale": (7.4, 3.2, 2, scale),
}


def make(made: Made) -> None:
    """Write figures/NAME-light.svg and figures/NAME-dark.svg."""
    for name, (width, height, panels, paint) in FIGURES.items():
        for ink in INKS:
            made.write(f"figures/{name}-{ink}.svg", draw(width, height, panels, paint, ink))
