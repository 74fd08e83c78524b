"""The grid on which real targets were recorded: prices in cents, ages in years, sensor readings in 1/1024."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitsback.errors import DataError

__all__ = ["STEP_BITS", "Resolution", "resolution"]

STEP_BITS = 8.0
"""Bits of a step that was found: one for the base, ten or two, and seven for the exponent, -64 to 63."""

EXPONENTS = range(63, -65, -1)
"""Exponents of the steps that are considered."""
SMALLEST_TOLERANCE, LARGEST_TOLERANCE = 1e-9, 0.05
"""Bounds of the distance, in steps, between a rounded decimal fraction and a whole multiple of the step."""


@dataclass(frozen=True)
class Resolution:
    """Grid step of targets, and the reason for it.

    Attributes:
        step: width of the grid, a power of ten or two.
        said: the reason, for notes of the ledger.
    """

    step: float
    said: str


def resolution(targets: Tensor, *, narrowest: float, precision: float = 2.0**-52) -> Resolution:
    """Find the coarsest power of ten or two of which all targets are whole multiples.

    Args:
        targets: (n, ...), float64, finite.
        narrowest: finest step, in stds of the targets (of the column with the smallest std); if no coarser step fits, the
            smallest power of two that is not finer is used, and the targets are rounded to it.
        precision: relative rounding error with which the targets were stored.

    Returns:
        The step; 1 for targets that are all zero.

    Raises:
        DataError: if the step would lie outside 2^-64 .. 2^63, or squares of the targets overflow.

    >>> resolution(torch.tensor([0.25, 1.5]).double(), narrowest=2.0**-16).step
    0.25
    >>> resolution(torch.tensor([150.0, 2000.0]).double(), narrowest=2.0**-16).step
    10.0
    """
    y = targets.double().flatten().unique()
    largest = float(y.abs().max())
    if largest == 0.0:
        return Resolution(1.0, "as they are all zero")
    stds = targets.double().reshape(len(targets), -1).std(0, correction=0)
    if not bool(torch.isfinite(stds).all()):
        raise DataError(f"the targets reach {largest:.3g}, and their squares overflow; give them in a larger unit")
    std = float(stds[stds > 0].min()) if bool((stds > 0).any()) else largest  # of the column with the smallest std
    floor = std * narrowest
    for step in _powers(largest, floor):
        multiple = y / step
        tolerance = min(4 * precision * largest / step + SMALLEST_TOLERANCE, LARGEST_TOLERANCE)
        if bool(((multiple - multiple.round()).abs() <= tolerance).all()):
            return Resolution(step, "the coarsest power of ten or two that fits them")
    exponent = math.ceil(math.log2(floor))
    if exponent not in EXPONENTS:
        raise DataError(
            f"the targets have a std of {std:.3g}, beyond the grids that are looked for; set likelihood.target_step"
        )
    step = 2.0**exponent
    return Resolution(
        step, f"as no coarser power of ten or two fits them: the finest is 2^{math.log2(narrowest):.0f} of their std"
    )


def _powers(largest: float, floor: float) -> Iterator[float]:
    """List powers of ten and of two from twice ``largest`` down to ``floor``."""
    powers = {10.0**k for k in EXPONENTS} | {2.0**k for k in EXPONENTS}
    return iter(sorted((power for power in powers if floor <= power <= 2 * largest), reverse=True))
