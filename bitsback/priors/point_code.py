"""Code length of a point estimate: its grid points under the integer tables of its prior."""

import copy

import numpy as np
import torch
from torch import Tensor

from bitsback.coding.densities import StandardDensity
from bitsback.coding.elementary import Floats
from bitsback.coding.tables import MOST_OCTAVES, TOTAL_BITS, PriorTable
from bitsback.priors import Prior
from bitsback.priors.exact_densities import density_of
from bitsback.units import nats_to_bits

__all__ = ["point_bits"]

LARGEST_INDEX = 2.0**52
"""Beyond it, neighbouring grid points are one and the same float64."""


@torch.no_grad()
def point_bits(prior: Prior, name: str, weights: Tensor, step: float) -> Floats:
    """Return the code length of every weight on the multiples of ``step``, elementwise.

    Each is -log2 of what the prior's integer table gives to the bucket of width ``step`` around the weight, counted from the
    multiple next to the prior's location: exactly what :func:`bitsback.coding.lattice.under_prior` pays. The masses of a
    table sum to one whatever the density is, so this is a code where density times step is none: near a pole, and for
    components narrower than the step. There the table is not the bucket's integral (four points of the density may miss a
    narrow component: zeros then cost more than they would have to), but it is what is spent.

    A weight beyond the table is charged 28 bits, the price of the rarest entry, and then its density times step: a density
    that falls towards its tail is below its mean over the bucket, so that all of these together add less than 2^-28 to the
    sum of masses. A grid too fine for a table takes the finest one, and the lower bits of the points as they are.

    Args:
        prior: of the weights.
        name: of the weight tensor, for messages.
        weights: multiples of ``step``, up to rounding.
        step: of the grid, above zero.

    Raises:
        PriorError: for a prior that does not code weights one by one, or whose density has no finite mass on the grid.

    >>> from bitsback.priors import ScaleMixturePrior
    >>> spiky = ScaleMixturePrior([0.001, 1.0], [0.9, 0.1])
    >>> point_bits(spiky, "w", torch.tensor([0.0, 0.75]), 2.0**-6).round(2).tolist()  # density times step: -2.49 for the first
    [0.94, 8.78]
    """
    prior = copy.deepcopy(prior).cpu().double()  # some accelerators have no float64
    placed = density_of(prior, name)
    whole = np.rint(weights.detach().cpu().double().numpy() / step)
    index, scale = np.broadcast_arrays(whole - np.rint(placed.centre / step), placed.scale)
    bits = np.full(index.shape, np.inf)
    within = np.abs(index) < LARGEST_INDEX  # false for what is not finite
    for each in np.unique(placed.scale).tolist():
        mine = within & (scale == each)
        bits[mine] = _table_bits(placed.standard, step / each, index[mine].astype(np.int64))
    if bool(np.isinf(bits).any()):
        density_bits = -nats_to_bits(prior().log_prob(torch.from_numpy(whole * step))).numpy() - np.log2(step)
        bits = np.where(np.isinf(bits), TOTAL_BITS + np.broadcast_to(density_bits, bits.shape), bits)
    return bits


def _table_bits(shape: StandardDensity, step: float, index: np.ndarray) -> Floats:
    raw = max(0, shape.octaves(step) - MOST_OCTAVES)
    return raw + PriorTable.build(shape, float(np.ldexp(step, raw))).bits(index >> raw)
