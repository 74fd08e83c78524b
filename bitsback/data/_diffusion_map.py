"""Slowest modes of a random walk on a sparse nearest-neighbour graph, for many thousands of inputs."""

import numpy as np
import torch
from torch import Tensor

from bitsback.data._feature_map import Map
from bitsback.data.graph import SHORTEST, SparseGraph, scipy_sparse

__all__ = ["fixed_signs", "sparse_walk_modes"]

TOLERANCE = 1e-5
"""Relative accuracy of the eigenvalues."""


def sparse_walk_modes(graph: SparseGraph, features: int) -> Map:
    """Fit :class:`~bitsback.data.settings.RandomWalkModes` on the symmetric graph of nearest neighbours.

    Args:
        graph: of the training inputs.
        features: number of modes, fewer than inputs.

    Returns:
        map from inputs (n, ...) to coordinates (n, features).
    """
    sparse = scipy_sparse()
    from scipy.sparse.linalg import eigsh

    weights = graph.weights
    degree = torch.from_numpy(weights @ np.ones(weights.shape[0])).clamp_min(SHORTEST)
    weight = sparse.diags(degree.numpy() ** -0.5)
    start = degree.sqrt().numpy()  # the first mode; a fixed start makes the result repeatable
    rates, modes = eigsh(weight @ weights @ weight, k=features, which="LA", v0=start, tol=TOLERANCE)
    slow = rates.argsort()[::-1]
    found = fixed_signs(torch.from_numpy(modes[:, slow].copy()))
    table = found / degree.sqrt()[:, None] * degree.sqrt().norm()
    per_step = table / torch.from_numpy(rates[slow].copy())
    return lambda x: graph.around(x, per_step, known=table).to(x.dtype)  # points of the graph keep their own coordinates


def fixed_signs(vectors: Tensor) -> Tensor:
    """Flip eigenvectors (columns) so that their largest entry is positive: signs then agree between machines."""
    return vectors * vectors[vectors.abs().argmax(0), torch.arange(vectors.shape[1])].sign()
