"""Data of the interactive figures of a report, as plain JSON values."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.kl import kl_each
from bitsback.ledger import Ledger
from bitsback.model import Weight
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import Prior
from bitsback.report import plots
from bitsback.report._observation import Observation
from bitsback.report._sampled import exact
from bitsback.units import nats_to_bits

__all__ = ["chosen", "explorers", "grid_rows", "totals"]

TOTALS = ("net_bits", "gross_bits", "data_bits", "net_weight_bits", "gross_weight_bits", "refund_bits", "hyperparameter_bits")
SHOWN_WEIGHTS = 9
DENSITY_POINTS = 122  # even, so that no point is at zero, where a prior may have a pole
FINEST_OCTAVES = 16
"""Halvings of the ledger's grid step that the grid slider covers."""


def explorers(seen: Observation) -> dict[str, Any]:
    """Return the data of the width and the grid slider.

    ``widths``: a row for each factor. ``grid``: a row for each halving of the step, from the ledger's own. ``bells``: some
    weights with their posterior, their prior's density on a grid of points, and their own bits at each factor.

    Returns:
        Values for JSON.
    """
    rows = [{"factor": factor, **totals(book)} for factor, book in seen.widths.curve.items()] if seen.widths else []
    return {
        "name": seen.name,
        "ledger": totals(seen.book) | {"uniform_bits": seen.book.uniform_bits, "weights": seen.book.weights},
        "widths": rows,
        "grid": grid_rows(seen) if seen.weights else [],
        "bells": [bell for weight, index in chosen(seen.weights) if (bell := _bell(weight, index, seen)) is not None],
    }


def totals(book: Ledger) -> dict[str, float]:
    """Return the totals of a ledger and its grid step."""
    return {name: getattr(book, name) for name in TOTALS} | {"grid_step": book.grid_step}


def grid_rows(seen: Observation) -> list[dict[str, float]]:
    """Return gross, refund and net weight bits for grid steps halved 0 to 16 times.

    Each halving adds one bit per weight to gross and to refund bits, except for weights without posterior (float32).

    Returns:
        A row for each step.
    """
    book, wide = seen.book, sum(weight.posterior.numel for weight in seen.weights)
    return [
        {
            "grid_step": book.grid_step * 2.0**-octaves,
            "gross_weight_bits": book.gross_weight_bits + wide * octaves,
            "refund_bits": book.refund_bits + wide * octaves,
            "net_weight_bits": book.net_weight_bits,
        }
        for octaves in range(FINEST_OCTAVES + 1)
    ]


def chosen(weights: list[Weight], count: int = SHOWN_WEIGHTS) -> list[tuple[Weight, int]]:
    """Choose weights at evenly spaced ranks of the signal-to-noise ratio |mean| / std.

    Args:
        weights: tensors with Gaussian posteriors.
        count: number of weights to choose.

    Returns:
        Tensor and flat index of each, in order of decreasing ratio.
    """
    if not weights:
        return []
    ratios = [(w.posterior.mean.detach().abs() / _std(w)).flatten().cpu() for w in weights]
    order = torch.cat(ratios).argsort(descending=True, stable=True)
    picked = order[torch.linspace(0, len(order) - 1, min(count, len(order)), dtype=torch.float64).round().long()]
    ends = torch.tensor([len(ratio) for ratio in ratios]).cumsum(0)
    found = []
    for index in picked:
        tensor = int(torch.searchsorted(ends, index, right=True))
        found.append((weights[tensor], int(index - (ends[tensor - 1] if tensor else 0))))
    return found


def _std(weight: Weight) -> Tensor:
    std = weight.posterior.std()
    assert std is not None
    return std.detach()


def _bell(weight: Weight, index: int, seen: Observation) -> dict[str, Any] | None:
    """Return posterior, prior and bits of one weight; None under a prior that does not code weights one by one."""
    assert isinstance(weight.posterior, GaussianPosterior)
    assert seen.widths is not None
    mean, std = float(weight.posterior.mean.detach().flatten()[index]), float(_std(weight).flatten()[index])
    prior, shape = exact(weight.prior), weight.posterior.mean.shape
    reach = max(abs(mean) + 4 * std, 3 * float(prior.typical_scale().detach().min()))
    density = plots.prior_density([weight], np.linspace(-reach, reach, DENSITY_POINTS), index)
    if density is None:
        return None
    rows = []
    for factor, book in seen.widths.curve.items():
        net_bits = _net_bits(weight.posterior, prior, index, factor)
        entropy = float(weight.posterior.entropy().detach().flatten()[index]) + math.log(factor)
        refund_bits = nats_to_bits(entropy) - math.log2(book.grid_step)
        rows.append({"gross_weight_bits": net_bits + refund_bits, "refund_bits": refund_bits, "net_weight_bits": net_bits})
    indices = ", ".join(str(int(axis)) for axis in np.unravel_index(index, tuple(shape)))
    shown = [float(f"{value:.4g}") for value in density.tolist()]
    return {"name": f"{weight.name}[{indices}]", "mean": mean, "std": std, "reach": reach, "bits": rows, "density": shown}


@torch.no_grad()
def _net_bits(posterior: GaussianPosterior, prior: Prior, index: int, factor: float) -> float:
    mean, std = posterior.mean.cpu().double(), posterior.std().cpu().double() * factor
    if prior().batch_shape.numel() == 1:  # one prior for all weights: compute this one alone
        mean, std, index = mean.flatten()[index : index + 1], std.flatten()[index : index + 1], 0
    return nats_to_bits(float(kl_each(GaussianPosterior(mean, std), prior).flatten()[index]))
