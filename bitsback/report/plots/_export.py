"""Output of figures: files, and SVG whose colours a page can set."""

import io
import itertools
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitsback.atomic_io import write_bytes
from bitsback.errors import RunError
from bitsback.report.plots.style import COLOURS

__all__ = ["check_suffix", "save", "svg"]

SUFFIXES = (".svg", ".png", ".pdf")
DPI = 200
_numbers = itertools.count()


def svg(drawn: Axes | Figure, *, themed: bool = False) -> str:
    """Return a figure as one ``<svg>`` element, with text as text and ids that are unique within a page.

    Args:
        drawn: Axes or a figure.
        themed: write colours as CSS variables (``var(--net, #0072b2)``), on a transparent background.

    Returns:
        SVG.
    """
    figure = _figure(drawn)
    salt = f"bitsback-{next(_numbers)}"
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        stream = io.StringIO()
        figure.savefig(
            stream, format="svg", transparent=themed, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), text)  # labels keep theirs
    text = re.sub(
        r'\b(id="|#)(figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|PathCollection|FillBetweenPolyCollection|legend|QuadMesh|LineCollection)_(\d+)',
        rf"\1{salt}-\2-\3",
        text,
    )
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    if themed:
        for name, colour in COLOURS.items():
            text = text.replace(colour, f"var(--{name}, {colour.upper()})")
    return re.sub(r"\n\s*", "\n", text)


def save(drawn: Axes | Figure, path: str | Path) -> Path:
    """Write a figure atomically as SVG, PNG (200 dpi) or PDF, by the suffix.

    Args:
        drawn: Axes or a figure.
        path: file to write.

    Returns:
        The path.

    Raises:
        RunError: the suffix is another, or the file cannot be written.
    """
    target = check_suffix(Path(path))
    if target.suffix == ".svg":
        sized = re.sub(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', r'width="\1pt" height="\2pt" \g<0>', svg(drawn), count=1)
        write_bytes(target, ('<?xml version="1.0" encoding="utf-8"?>\n' + sized).encode())
        return target
    stream = io.BytesIO()
    _figure(drawn).savefig(
        stream, format=target.suffix[1:], dpi=DPI, metadata={"CreationDate": None} if target.suffix == ".pdf" else None
    )
    write_bytes(target, stream.getvalue())
    return target


def check_suffix(path: Path) -> Path:
    """Return ``path``; raises RunError unless its suffix is .svg, .png or .pdf."""
    if path.suffix not in SUFFIXES:
        raise RunError(f"a figure is written as {', '.join(SUFFIXES)}; got '{path.name}'")
    return path


def _figure(drawn: Axes | Figure) -> Figure:
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    if figure is None:
        raise RunError("these Axes belong to no figure")
    return figure
