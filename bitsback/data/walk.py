"""Slow modes of a random walk to nearest neighbours, for graphs of many thousands of inputs."""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.data.feature_map import SHOWN_AFTER_SECONDS, Map
from bitsback.errors import DataError

ROWS_AT_ONCE = 1024
TOLERANCE = 1e-5
SPARSE_FLOOR = 1e-12


def sparse_walk_modes(points: Tensor, features: int, *, neighbours: int, sharpness: float, edges: int) -> Map:
    """The modes of :class:`~bitsback.data.features.RandomWalkModes`, on the symmetric graph of nearest neighbours.

    Args:
        points: (n, k), all in the graph; a point itself is not its neighbour.
        features: how many modes.
        neighbours: the neighbour whose distance is a point's reach, at most ``edges``.
        sharpness: how fast the probability of a step falls with distance.
        edges: neighbours that a point may step to.

    Raises:
        DataError: for too few points, and without scipy, which the extra ``graph`` brings.
    """
    try:
        from scipy import sparse
        from scipy.sparse.linalg import eigsh
    except ImportError as fault:
        raise DataError(
            "data.features: random_walk_modes with edges needs scipy; install it with `pip install bitsback[graph]`"
        ) from fault
    count = len(points)
    if not max(features, edges, neighbours) + 1 < count or neighbours > edges:
        raise DataError(
            f"data.features: random_walk_modes of {features} modes, {edges} edges and {neighbours} neighbours needs more than "
            f"{max(features, edges) + 1} training inputs, and no more neighbours than edges; got {count} inputs"
        )
    points = points.float()
    distance, near = nearest(points, points, edges + 1)
    distance, near = distance[:, 1:], near[:, 1:]  # the first is the point itself
    reach = distance[:, neighbours - 1].clamp_min(SPARSE_FLOOR)

    def affinity(distance: Tensor, near: Tensor, own: Tensor) -> Tensor:
        return torch.exp(-sharpness * distance.square() / (own[:, None] * reach[near]))

    rows = torch.arange(count).repeat_interleave(edges)
    values = affinity(distance, near, reach).flatten().double().numpy()
    graph = sparse.csr_matrix((values, (rows.numpy(), near.flatten().numpy())), (count, count))
    graph = graph.maximum(graph.T)
    degree = torch.from_numpy(graph @ np.ones(count)).clamp_min(SPARSE_FLOOR)
    weight = sparse.diags(degree.numpy() ** -0.5)
    start = degree.sqrt().numpy()  # the first mode, and a start that is the same every time
    rates, modes = eigsh(weight @ graph @ weight, k=features, which="LA", v0=start, tol=TOLERANCE)
    slow = rates.argsort()[::-1]
    found = fixed_signs(torch.from_numpy(modes[:, slow].copy()))
    table = found / degree.sqrt()[:, None] * degree.sqrt().norm()
    per_step = table / torch.from_numpy(rates[slow].copy())

    def walk(x: Tensor) -> Tensor:
        flat = x.flatten(1).float()
        if torch.equal(flat, points):
            return table.to(x.dtype)
        distance, near = nearest(flat, points, edges + 1)
        known = distance[:, 0] <= SPARSE_FLOOR  # a point of the graph has its own coordinates
        own = distance[:, neighbours - 1].clamp_min(SPARSE_FLOOR)
        step = affinity(distance[:, :edges], near[:, :edges], own).double()
        around = torch.einsum("ne,nef->nf", step / step.sum(1, keepdim=True), per_step[near[:, :edges]])
        return torch.where(known[:, None], table[near[:, 0]], around).to(x.dtype)

    return walk


def nearest(queries: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances (n, count), nearest first, and indices of the nearest points.

    >>> nearest(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0]]), 1)
    (tensor([[1.]]), tensor([[1]]))
    """
    distances, indices = [], []
    for part in tqdm(queries.split(ROWS_AT_ONCE), desc="neighbours", leave=False, delay=SHOWN_AFTER_SECONDS):
        near = torch.cdist(part, points).topk(count, largest=False).indices
        exact, order = (part[:, None] - points[near]).norm(dim=2).sort(stable=True)  # cdist subtracts squares
        distances.append(exact)
        indices.append(near.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def fixed_signs(vectors: Tensor) -> Tensor:
    """Eigenvectors with their largest entry positive, so that every machine has the same ones."""
    return vectors * vectors[vectors.abs().argmax(0), torch.arange(vectors.shape[1])].sign()
