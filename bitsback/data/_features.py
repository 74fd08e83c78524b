"""Fixed feature maps, fitted to inputs alone.

The code of the labels *given the inputs* may use any function of the inputs at no cost: the receiver holds the inputs, and
computes the same map before decoding. Labels are never used.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.data._diffusion_map import fixed_signs, sparse_walk_modes
from bitsback.data._feature_map import SHOWN_AFTER_SECONDS, Map
from bitsback.data.graph import DenseGraph, SparseGraph
from bitsback.errors import DataError

if TYPE_CHECKING:
    from bitsback.data.settings import Chain, PrincipalComponents, RandomWalkModes

__all__ = ["chain_of", "principal_components", "random_walk_modes", "walk_graph"]

MOST_INPUTS_IN_A_GRAPH = 6000
"""Largest number of inputs of a dense graph, whose memory grows with the square."""


def principal_components(inputs: Tensor, settings: "PrincipalComponents") -> Map:
    """Fit principal components.

    Args:
        inputs: (n, ...), training inputs.
        settings: with the number of components.

    Returns:
        map from inputs (n, ...) to coordinates (n, features).

    Raises:
        DataError: for more components than inputs or dimensions.
    """
    flat = inputs.flatten(1).double()
    if settings.features > min(flat.shape):
        raise DataError(f"data.features: {settings.features} components of {tuple(flat.shape)} inputs; ask for fewer")
    mean = flat.mean(0)
    directions = fixed_signs(torch.linalg.eigh((flat - mean).T @ (flat - mean)).eigenvectors.flip(1)[:, : settings.features])
    return lambda x: ((x.flatten(1).double() - mean) @ directions).to(x.dtype)


def walk_graph(inputs: Tensor, settings: "RandomWalkModes") -> DenseGraph | SparseGraph:
    """Build the graph of the random walk.

    Args:
        inputs: (n, ...), training inputs.
        settings: neighbours, sharpness and edges.

    Returns:
        a sparse graph if ``edges`` is set, else a dense one.

    Raises:
        DataError: for too few inputs, and for too many without ``edges``.
    """
    count = len(inputs)
    if settings.edges is not None:
        if not max(settings.features, settings.edges, settings.neighbours) + 1 < count or settings.neighbours > settings.edges:
            raise DataError(
                f"data.features: random_walk_modes of {settings.features} modes, {settings.edges} edges and "
                f"{settings.neighbours} neighbours needs more than {max(settings.features, settings.edges) + 1} training "
                f"inputs, and no more neighbours than edges; got {count} inputs"
            )
        return SparseGraph(inputs, neighbours=settings.neighbours, sharpness=settings.sharpness, edges=settings.edges)
    if not max(settings.features, settings.neighbours) < count <= MOST_INPUTS_IN_A_GRAPH:
        raise DataError(
            f"data.features: random_walk_modes needs more than {max(settings.features, settings.neighbours)} and at most "
            f"{MOST_INPUTS_IN_A_GRAPH} training inputs, got {count}; for more, set data.features.edges=10"
        )
    return DenseGraph(inputs, neighbours=settings.neighbours, sharpness=settings.sharpness)


def random_walk_modes(inputs: Tensor, settings: "RandomWalkModes") -> Map:
    """Fit the slowest modes of the random walk.

    Args:
        inputs: (n, ...), training inputs.
        settings: of the graph, and the number of modes.

    Returns:
        map from inputs (n, ...) to coordinates (n, features).
    """
    graph = walk_graph(inputs, settings)
    if isinstance(graph, SparseGraph):
        return sparse_walk_modes(graph, settings.features)
    degree = graph.weights.sum(1).sqrt()
    rates, modes = torch.linalg.eigh(graph.weights / (degree[:, None] * degree))
    rates, modes = rates.flip(0)[: settings.features], fixed_signs(modes.flip(1)[:, : settings.features])
    # a step of the walk multiplies a mode by its rate; the division makes the average at a point equal to its own coordinate
    table = modes / degree[:, None] * degree.norm() / rates
    return lambda x: graph.around(x, table).to(x.dtype)


def chain_of(inputs: Tensor, settings: "Chain") -> Map:
    """Fit several maps, each to the output of the one before.

    Args:
        inputs: (n, ...), training inputs.
        settings: the maps, in order.

    Returns:
        the composed map.
    """
    fitted: list[Map] = []
    for one in tqdm(settings.maps, desc="features", leave=False, delay=SHOWN_AFTER_SECONDS):
        fitted.append(one.fit(inputs))
        inputs = fitted[-1](inputs) if inputs.numel() else inputs

    def chain(x: Tensor) -> Tensor:
        for one in fitted:
            x = one(x)
        return x

    return chain
