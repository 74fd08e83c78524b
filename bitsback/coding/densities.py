"""Densities of the priors, in arithmetic that every machine repeats: the raw material of integer tables.

A prior is a standard shape, moved and stretched: w = centre + scale * z.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitsback.coding.elementary import Floats, exp, log

__all__ = ["EULER_GAMMA", "NORMAL", "Density", "LocatedDensity", "StandardDensity", "horseshoe", "log_density", "normal"]

EULER_GAMMA = 0.57721566490153286061

Density = Callable[[Floats], Floats]


@dataclass(frozen=True)
class StandardDensity:
    """A density up to a constant, in standard units.

    Attributes:
        name: equal names have equal densities.
        density: unnormalised, elementwise.
        reach_octaves: the code covers |z| < 2^reach_octaves.
        exact: whether every machine computes the same values.
    """

    name: str
    density: Density
    reach_octaves: int
    exact: bool = True

    def octaves(self, step: float) -> int:
        """Octaves of multiples of ``step`` that cover the reach."""
        return self.reach_octaves - int(np.frexp(step)[1]) + 1


@dataclass(frozen=True)
class LocatedDensity:
    """The shape of a prior, with the centre and scale of every weight of one tensor (arrays that broadcast to it)."""

    standard: StandardDensity
    centre: Floats
    scale: Floats


def normal(z: Floats) -> Floats:
    """The normal density without its constant."""
    return exp(-0.5 * z * z)


def horseshoe(z: Floats) -> Floats:
    """e^x E1(x) at x = z^2 / 2: Abramowitz & Stegun 5.1.11 below 2, 5.1.22 above."""
    x = np.maximum(0.5 * z * z, 1e-30)
    small = np.minimum(x, 2.0)
    term, total = np.ones_like(x), np.zeros_like(x)
    for k in range(1, 31):
        term = term * (-small / k)
        total = total - term / k
    series = exp(small) * (total - log(small) - EULER_GAMMA)
    large, fraction = np.maximum(x, 2.0), np.zeros_like(x)
    for k in range(70, 0, -1):
        fraction = k / (1.0 + k / (large + fraction))
    return np.where(x < 2.0, series, 1.0 / (large + fraction))


NORMAL = StandardDensity("normal", normal, 4)


def log_density(shape: StandardDensity, z: NDArray[np.floating]) -> Floats:
    """Natural logarithm of the unnormalised density, for scores that only the encoder needs."""
    return np.log(np.maximum(shape.density(z.astype(np.float64)), 1e-300))
