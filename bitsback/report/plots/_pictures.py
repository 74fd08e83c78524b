"""Figures of filters and examples, and the calibration curve."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bitsback.errors import RunError
from bitsback.report.plots.style import COLOURS, array_of, new_axes, plain_ticks, styled

__all__ = ["calibration", "examples", "filters"]

MOST_FILTERS = 64
MOST_CELLS = 200
MOST_CHANNELS = 16
BINS = 10


def filters(values: Any, ax: Axes | None = None, *, title: str = "", symmetric: bool = True) -> Axes:
    """Draw weights as pictures beside each other, with a colour bar.

    Args:
        values: (n, h, w), one picture each; (n, channels, h, w), a row for each, channels side by side; or a matrix
            (out, in), one picture of its first 200 rows and columns. Of many, the first are drawn, and the title says so.
        ax: Axes to draw on; default: a new figure.
        title: name of the values.
        symmetric: blue below zero, red above; otherwise from the lowest to the highest value.

    Returns:
        The Axes.

    Raises:
        RunError: the shape is another, or there are no values.

    >>> import numpy as np
    >>> filters(np.zeros((4, 3, 3)), title="mean").get_title()
    'mean'
    """
    array = array_of(values).astype(float)
    if array.ndim not in (2, 3, 4) or not array.size:
        raise RunError(f"pictures have shape (n, h, w), (n, channels, h, w) or (out, in); got {array.shape}")
    board, first = _board(array)
    limit = float(np.nanmax(np.abs(board))) or 1.0
    look: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if symmetric else {"cmap": "viridis"}
    with styled():
        ax = ax or new_axes((4.6, float(np.clip(4.2 * board.shape[0] / board.shape[1], 1.6, 5.0))))
        shown = ax.imshow(board, interpolation="nearest", **look)
        ax.set_axis_off()
        ax.set_title(", ".join(part for part in (title, first) if part))
        bar = ax.figure.colorbar(shown, ax=ax, shrink=0.8, aspect=18, pad=0.02)
        bar.outline.set_visible(False)
        plain_ticks(bar.ax.yaxis)
    return ax


def examples(
    images: Any, bits: Any, labels: Any, ax: Axes | None = None, *, predicted: Any | None = None, columns: int = 8
) -> Axes:
    """Draw pictures with their labels and the bits of these.

    Args:
        images: (n, h, w), in [0, 1].
        bits: (n,), bits of each label.
        labels: (n,), true classes.
        ax: Axes to draw on; default: a new figure.
        predicted: (n,), predicted classes.
        columns: pictures in a row.

    Returns:
        The Axes.

    Raises:
        RunError: there are no pictures, or the shapes differ.
    """
    pictures, bits, labels = array_of(images).astype(float), array_of(bits), array_of(labels)
    predicted = None if predicted is None else array_of(predicted)
    if pictures.ndim != 3 or not len(pictures):
        raise RunError(f"pictures have shape (n, h, w); got {pictures.shape}")
    for name, given in (("bits", bits), ("labels", labels), ("predicted", predicted)):
        if given is not None and given.shape != (len(pictures),):
            raise RunError(f"{len(pictures)} pictures need as many {name}; got shape {given.shape}")
    columns = min(columns, len(pictures))
    rows, (height, width) = -(-len(pictures) // columns), pictures.shape[1:]
    step_x, step_y = 1.25, 1.25 * height / width + 0.55
    with styled():
        ax = ax or new_axes((4.6, 0.2 + 4.6 * rows * step_y / (columns * step_x)))
        for index, picture in enumerate(pictures):
            x, y = (index % columns) * step_x, -(index // columns) * step_y
            ax.imshow(
                1 - picture, cmap="gray", vmin=0, vmax=1, extent=(x, x + 1, y - height / width, y), interpolation="nearest"
            )
            said = "" if predicted is None else f", said {predicted[index]}"
            cost = f"{bits[index]:,.0f}" if bits[index] >= 100 else f"{bits[index]:#.3g}"
            ax.text(x + 0.5, y - height / width - 0.06, f"{cost} bits", ha="center", va="top", fontsize=7)
            ax.text(
                x + 0.5,
                y - height / width - 0.28,
                f"{labels[index]}{said}",
                ha="center",
                va="top",
                fontsize=7,
                color=COLOURS["muted"],
            )
        ax.set(xlim=(-0.15, columns * step_x), ylim=(-rows * step_y + 0.05, 0.1), aspect="equal")
        ax.set_axis_off()
    return ax


def calibration(probabilities: Any, labels: Any, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of the most probable class against its predicted probability, in ten bins.

    Args:
        probabilities: (n, classes), averaged over draws of the weights.
        labels: (n,), true classes.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: the shapes differ.
    """
    table, truth = array_of(probabilities).astype(float), array_of(labels)
    if table.ndim != 2 or truth.shape != table.shape[:1] or not len(truth):
        raise RunError(f"give probabilities (n, classes) and labels (n,); got {table.shape} and {truth.shape}")
    sure, right = table.max(1), table.argmax(1) == truth
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    used = np.unique(bins)
    said, hit, count = (
        np.array([f(bins == b) for b in used]) for f in (lambda m: sure[m].mean(), lambda m: right[m].mean(), np.sum)
    )
    error = float((count * np.abs(said - hit)).sum() / len(truth))
    with styled():
        ax = ax or new_axes((4.0, 3.4))
        ax.plot([0, 1], [0, 1], "--", color=COLOURS["muted"], linewidth=1)
        ax.scatter(said, hit, s=14 + 220 * count / len(truth), color=COLOURS["net"], alpha=0.8, zorder=3)
        for x, y, n in zip(said, hit, count, strict=True):
            ax.annotate(
                f"{n:,}",
                (x, y),
                (5, -11),
                textcoords="offset points",
                fontsize=7.5,
                color=COLOURS["muted"],
                annotation_clip=False,
            )
        ax.annotate(f"calibration error {error:.1%}", (0.97, 0.05), xycoords="axes fraction", ha="right")
        ax.set(xlabel="how sure", ylabel="how often right", xlim=(0, 1.08), ylim=(0, 1.05))
    return ax


def _board(array: np.ndarray) -> tuple[np.ndarray, str]:
    """Arrange pictures in one array; the text names those drawn if some are left out."""
    if array.ndim == 2:
        return array[:MOST_CELLS, :MOST_CELLS], ""
    if array.ndim == 3 or array.shape[1] == 1:
        pictures = array.reshape(-1, *array.shape[-2:])[:MOST_FILTERS]
        return _montage(pictures, _columns(len(pictures))), _first(len(pictures), len(array), "")
    channels = min(array.shape[1], MOST_CHANNELS)
    rows = array[: MOST_FILTERS // channels, :channels]
    said = [_first(len(rows), len(array), " filters"), _first(channels, array.shape[1], " channels")]
    return _montage(rows.reshape(-1, *array.shape[-2:]), channels), ", ".join(part for part in said if part)


def _first(shown: int, count: int, what: str) -> str:
    return "" if shown == count else f"the first {shown}{what}"


def _columns(count: int) -> int:
    return int(np.ceil(np.sqrt(count * 1.6))) if count > 5 else count


def _montage(pictures: np.ndarray, columns: int) -> np.ndarray:
    height, width = pictures.shape[1:]
    rows = -(-len(pictures) // columns)
    gap = 1
    board = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for index, picture in enumerate(pictures):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        board[y : y + height, x : x + width] = picture
    return board
