"""Code length of a point estimate on a grid, under the integer table of its prior."""

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
"""Largest index of a grid point; beyond 2^53, float64 cannot tell neighbouring grid points apart."""


@torch.no_grad()
def point_bits(prior: Prior, name: str, weights: Tensor, step: float) -> Floats:
    """Return the code length in bits of every weight on the multiples of ``step``, elementwise.

    Each is -log2 of the mass that the prior's integer table assigns to the bucket of width ``step`` around the weight, with
    buckets counted from the multiple nearest to the prior's location; :func:`bitsback.coding.lattice.under_prior` spends
    exactly these bits. The masses of a table sum to one for every density, so this is a code also where density times step is
    not a mass: near a pole, and for components narrower than the step. There the table differs from the integral over the
    bucket (the density is evaluated at four points, which may miss a narrow component: zeros then cost more than necessary).

    A weight beyond the table costs 28 bits, as the rarest entry, plus -log2(density times step): a density that decreases in
    its tail is below its mean over the bucket, so that all such weights add less than 2^-28 to the sum of masses. If the grid
    is too fine for a table, the finest table is used for the upper bits of an index and the lower bits are stored as they are.

    Args:
        prior: prior of the weights.
        name: name of the weight tensor, for messages.
        weights: weights, multiples of ``step`` up to rounding.
        step: grid step, above zero.

    Returns:
        Bits, float64, of the shape of ``weights`` broadcast with the prior's scale.

    Raises:
        PriorError: for a prior that is not elementwise, or whose density has no finite mass on the grid.

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
