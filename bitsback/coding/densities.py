"""Densities of the priors in arithmetic that is identical on every machine; integer tables are computed from them.

A prior is a standard shape with a location and a scale: w = centre + scale * z.
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
    """Unnormalised density of z, in standard units (centre 0, scale 1).

    Attributes:
        name: identifies the density: equal names mean equal densities.
        density: unnormalised, elementwise.
        reach_octaves: the tables cover |z| < 2^reach_octaves.
        exact: whether every machine computes the same values.
    """

    name: str
    density: Density
    reach_octaves: int
    exact: bool = True

    def octaves(self, step: float) -> int:
        """Return the number of octaves of multiples of ``step`` that cover the reach."""
        return self.reach_octaves - int(np.frexp(step)[1]) + 1


@dataclass(frozen=True)
class LocatedDensity:
    """Prior of one weight tensor: a standard density, with centres and scales (arrays that broadcast to the tensor)."""

    standard: StandardDensity
    centre: Floats
    scale: Floats


def normal(z: Floats) -> Floats:
    """Return the normal density without its constant, elementwise."""
    return exp(-0.5 * z * z)


def horseshoe(z: Floats) -> Floats:
    """Return e^x E1(x) at x = z^2 / 2, elementwise: Abramowitz & Stegun 5.1.11 below x = 2, 5.1.22 above."""
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
    """Return the natural logarithm of the unnormalised density, for scores that only the encoder needs.

    Args:
        shape: the density.
        z: points in standard units, any shape.

    Returns:
        Logarithms in nats, the shape of ``z``; they may differ in the last bit between machines.
    """
    return np.log(np.maximum(shape.density(z.astype(np.float64)), 1e-300))
