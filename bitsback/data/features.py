"""Fixed maps of the inputs, made from inputs alone.

A code of the labels *given the inputs* may use any function of the inputs for free: the receiver holds them, and computes the
same map before the first bit arrives. No label is ever looked at.
"""

from typing import Annotated, Literal, Union

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import tqdm

from bitsback.data.deskew import DeskewSettings
from bitsback.data.diffusion_map import fixed_signs, sparse_walk_modes
from bitsback.data.feature_map import SHOWN_AFTER_SECONDS, FeatureSettings, Map
from bitsback.data.gradients import GradientHistogramSettings
from bitsback.data.graph import DenseGraph, SparseGraph
from bitsback.errors import DataError

MOST_INPUTS_IN_A_GRAPH = 6000


class PrincipalComponents(FeatureSettings):
    """Coordinates along the directions of largest variance of the training inputs (Pearson 1901).

    >>> PrincipalComponents(features=2).fit(torch.randn(50, 8))(torch.randn(3, 8)).shape
    torch.Size([3, 2])
    """

    kind: Literal["principal_components"] = "principal_components"
    features: PositiveInt = Field(20, description="how many directions")

    def fit(self, inputs: Tensor) -> Map:
        flat = inputs.flatten(1).double()
        if self.features > min(flat.shape):
            raise DataError(f"data.features: {self.features} components of {tuple(flat.shape)} inputs; ask for fewer")
        mean = flat.mean(0)
        directions = fixed_signs(torch.linalg.eigh((flat - mean).T @ (flat - mean)).eigenvectors.flip(1)[:, : self.features])
        return lambda x: ((x.flatten(1).double() - mean) @ directions).to(x.dtype)


class RandomWalkModes(FeatureSettings):
    """Coordinates in the slowest modes of a random walk over the training inputs (diffusion maps, Coifman & Lafon 2006).

    The walk steps from x to y with probability proportional to exp(-sharpness |x - y|^2 / (r(x) r(y))), where r is the
    distance to a point's ``neighbours``-th neighbour (Zelnik-Manor & Perona 2004). It lingers inside clusters, so its slow
    modes tell clusters apart without having seen a label. The first mode is constant and serves as a bias. An input that
    is not in the graph gets the average of the modes around it (Nystroem).

    >>> modes = RandomWalkModes(features=3).fit(torch.randn(60, 4))
    >>> modes(torch.randn(5, 4)).shape
    torch.Size([5, 3])
    """

    kind: Literal["random_walk_modes"] = "random_walk_modes"
    features: PositiveInt = Field(13, description="how many modes, the constant one included")
    neighbours: PositiveInt = Field(7, description="the neighbour whose distance is a point's reach")
    sharpness: PositiveFloat = Field(8.0, description="how fast the probability of a step falls with distance")
    edges: PositiveInt | None = Field(
        None, description="steps go to so many nearest neighbours only: for graphs of more than 6,000 inputs; default: to all"
    )

    def graph(self, inputs: Tensor) -> DenseGraph | SparseGraph:
        """Return the graph on which the walk goes; raises DataError for too few inputs, and for too many without ``edges``."""
        count = len(inputs)
        if self.edges is not None:
            if not max(self.features, self.edges, self.neighbours) + 1 < count or self.neighbours > self.edges:
                raise DataError(
                    f"data.features: random_walk_modes of {self.features} modes, {self.edges} edges and {self.neighbours} "
                    f"neighbours needs more than {max(self.features, self.edges) + 1} training inputs, and no more neighbours "
                    f"than edges; got {count} inputs"
                )
            return SparseGraph(inputs, neighbours=self.neighbours, sharpness=self.sharpness, edges=self.edges)
        if not max(self.features, self.neighbours) < count <= MOST_INPUTS_IN_A_GRAPH:
            raise DataError(
                f"data.features: random_walk_modes needs more than {max(self.features, self.neighbours)} and at most "
                f"{MOST_INPUTS_IN_A_GRAPH} training inputs, got {count}; for more, set data.features.edges=10"
            )
        return DenseGraph(inputs, neighbours=self.neighbours, sharpness=self.sharpness)

    def fit(self, inputs: Tensor) -> Map:
        graph = self.graph(inputs)
        if isinstance(graph, SparseGraph):
            return sparse_walk_modes(graph, self.features)
        degree = graph.weights.sum(1).sqrt()
        rates, modes = torch.linalg.eigh(graph.weights / (degree[:, None] * degree))
        rates, modes = rates.flip(0)[: self.features], fixed_signs(modes.flip(1)[:, : self.features])
        table = modes / degree[:, None] * degree.norm() / rates
        return lambda x: graph.around(x, table).to(x.dtype)


class Chain(FeatureSettings):
    """Several maps, one after the other, each made from what the ones before it give.

    >>> maps = (PrincipalComponents(features=4), RandomWalkModes(features=2, neighbours=3))
    >>> Chain(maps=maps).fit(torch.randn(50, 8))(torch.randn(3, 8)).shape
    torch.Size([3, 2])
    """

    kind: Literal["chain"] = "chain"
    maps: tuple["AnyFeatures", ...] = Field(min_length=1, description="feature maps, the first one first")

    @property
    def is_fitted(self) -> bool:
        return any(one.is_fitted for one in self.maps)

    def fit(self, inputs: Tensor) -> Map:
        fitted: list[Map] = []
        for one in tqdm(self.maps, desc="features", leave=False, delay=SHOWN_AFTER_SECONDS):
            fitted.append(one.fit(inputs))
            inputs = fitted[-1](inputs) if inputs.numel() else inputs

        def chain(x: Tensor) -> Tensor:
            for one in fitted:
                x = one(x)
            return x

        return chain


AnyFeatures = Annotated[
    Union[PrincipalComponents, RandomWalkModes, DeskewSettings, GradientHistogramSettings, Chain], Field(discriminator="kind")  # noqa: UP007
]
