"""``bitsback plot``: one figure of a run as a file."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.cli.ledger import RunArgument

__all__ = ["plot"]


def plot(
    run: RunArgument,
    figure: Annotated[str, typer.Argument(help="Name of a figure, such as width; see above.", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help=".svg, .png or .pdf; default: FIGURE.svg.")] = None,
) -> None:
    """Write one figure of a run to a file.

    Figures: training, ledger, width, grid, bells, priors, means, signal_to_noise, bits_per_weight, bits_and_prior,
    first_mean, first_std, first_bits, calibration, examples.

    Example: bitsback plot runs/digits width -o width.svg
    """
    from bitsback.atomic_io import check_new_file
    from bitsback.report import figure as drawn
    from bitsback.report import observe, plots

    path = out or Path(f"{figure}.svg")
    check_new_file(path)
    plots.check_suffix(path)
    plots.save(drawn(observe(run, progress=True), figure), path)
    print(f"The figure is in {path}")
