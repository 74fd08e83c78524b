"""Neighbourhood graphs of inputs for random-walk modes. Labels are never used."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.data._feature_map import ROWS_AT_ONCE, SHOWN_AFTER_SECONDS
from bitsback.extras import require

__all__ = ["SHORTEST", "DenseGraph", "Graph", "SparseGraph", "nearest", "scipy_sparse"]

NEIGHBOURS_AT_ONCE = 1024
"""Queries of a nearest-neighbour search that are processed at once."""
SHORTEST = 1e-12
"""Distances below it count as zero."""


class Graph(ABC):
    """Symmetric graph whose edge from x to y has weight exp(-sharpness |x - y|^2 / (r(x) r(y))), r the reach of a point.

    Attributes:
        weights: (n, n), symmetric; a dense tensor, or a scipy matrix.
    """

    weights: Any

    @abstractmethod
    def around(self, inputs: Tensor, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Average values over one step of the walk from inputs, which need not be in the graph (Nystroem).

        Args:
            inputs: (m, ...), of the shape of the graph's inputs.
            values: (n, k), at the graph's points.
            known: (n, k), values returned for inputs that are points of the graph; default: their average too. A dense graph
                ignores it: its points are their own neighbours.

        Returns:
            (m, k), float64.
        """


class DenseGraph(Graph):
    """Graph in which every point is joined to every point, itself included.

    Args:
        inputs: (n, ...), n above ``neighbours``.
        neighbours: index of the neighbour whose distance is a point's reach.
        sharpness: decay of the weights with squared distance.

    >>> graph = DenseGraph(torch.randn(20, 3), neighbours=4, sharpness=8.0)
    >>> graph.weights.shape, graph.around(torch.randn(2, 3), torch.zeros(20, 1, dtype=torch.float64)).tolist()
    (torch.Size([20, 20]), [[0.0], [0.0]])
    """

    weights: Tensor

    def __init__(self, inputs: Tensor, *, neighbours: int, sharpness: float) -> None:
        self._neighbours, self._sharpness = neighbours, sharpness
        points = inputs.flatten(1).double()
        self._points = points
        self._reach = torch.cdist(points, points).kthvalue(neighbours + 1).values.clamp_min(SHORTEST)  # + 1: the point itself
        near = self._affinity(inputs)
        self.weights = (near + near.T) / 2

    def _affinity(self, x: Tensor) -> Tensor:
        distance = torch.cdist(x.flatten(1).double(), self._points)
        own = distance.kthvalue(self._neighbours + 1, dim=1, keepdim=True).values.clamp_min(SHORTEST)
        return torch.exp(-self._sharpness * distance.square() / (own * self._reach))

    def around(self, inputs: Tensor, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Average over all points.

        Args:
            inputs: (m, ...).
            values: (n, k), at the graph's points.
            known: not used.

        Returns:
            (m, k), float64.
        """
        steps = (self._affinity(part) for part in inputs.split(ROWS_AT_ONCE))
        return torch.cat([(step / step.sum(1, keepdim=True)) @ values for step in steps])


class SparseGraph(Graph):
    """Graph in which every point is joined to its nearest neighbours, and to points that it is a neighbour of; never to itself.

    Args:
        inputs: (n, ...), n above ``edges`` + 1.
        neighbours: index of the neighbour whose distance is a point's reach, at most ``edges``.
        sharpness: decay of the weights with squared distance.
        edges: nearest neighbours of a point.

    Raises:
        MissingExtraError: if scipy, which the extra ``graph`` installs, is missing.
    """

    def __init__(self, inputs: Tensor, *, neighbours: int, sharpness: float, edges: int) -> None:
        sparse = scipy_sparse()
        self._neighbours, self._sharpness, self._edges = neighbours, sharpness, edges
        points = inputs.flatten(1).float()
        self._points = points
        distance, near = nearest(points, points, edges + 1)
        distance, near = distance[:, 1:], near[:, 1:]  # the first is the point itself
        self._reach = distance[:, neighbours - 1].clamp_min(SHORTEST)
        values = self._affinity(distance, near, self._reach).flatten().double().numpy()
        rows = torch.arange(len(points)).repeat_interleave(edges).numpy()
        weights = sparse.csr_matrix((values, (rows, near.flatten().numpy())), (len(points), len(points)))
        self.weights = weights.maximum(weights.T)

    def _affinity(self, distance: Tensor, near: Tensor, own: Tensor) -> Tensor:
        return torch.exp(-self._sharpness * distance.square() / (own[:, None] * self._reach[near]))

    def around(self, inputs: Tensor, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Average over the ``edges`` nearest points.

        Args:
            inputs: (m, ...).
            values: (n, k), at the graph's points.
            known: (n, k), values returned for points of the graph, or None.

        Returns:
            (m, k), float64.
        """
        flat = inputs.flatten(1).float()
        if known is not None and torch.equal(flat, self._points):
            return known
        distance, near = nearest(flat, self._points, self._edges + 1)
        own = distance[:, self._neighbours - 1].clamp_min(SHORTEST)
        step = self._affinity(distance[:, : self._edges], near[:, : self._edges], own).double()
        average = torch.einsum("ne,nef->nf", step / step.sum(1, keepdim=True), values[near[:, : self._edges]])
        if known is None:
            return average
        is_point = distance[:, 0] <= SHORTEST
        return torch.where(is_point[:, None], known[near[:, 0]], average)


def scipy_sparse() -> Any:
    """Return the module ``scipy.sparse``; raises MissingExtraError if scipy is not installed."""
    require("graph", "data.features: random_walk_modes with edges")
    from scipy import sparse

    return sparse


def nearest(queries: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest points by Euclidean distance.

    Args:
        queries: (n, d).
        points: (m, d).
        count: neighbours per query, at most m.

    Returns:
        distances (n, count), ascending, and indices (n, count) of the points.

    >>> nearest(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0]]), 1)
    (tensor([[1.]]), tensor([[1]]))
    """
    distances, indices = [], []
    for part in tqdm(queries.split(NEIGHBOURS_AT_ONCE), desc="neighbours", leave=False, delay=SHOWN_AFTER_SECONDS):
        near = torch.cdist(part, points).topk(count, largest=False).indices
        # cdist loses digits of short distances: it subtracts squares
        exact, order = (part[:, None] - points[near]).norm(dim=2).sort(stable=True)
        distances.append(exact)
        indices.append(near.gather(1, order))
    return torch.cat(distances), torch.cat(indices)
