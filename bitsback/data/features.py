"""Fixed maps of the inputs, made from the training inputs alone.

A code of the labels *given the inputs* may use any function of the inputs for free: the receiver holds them, and computes the
same map before the first bit arrives. No label is ever looked at.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from bitsback.errors import DataError
from bitsback.registry import Settings

Map = Callable[[Tensor], Tensor]
MOST_INPUTS_IN_A_GRAPH = 6000
ROWS_AT_ONCE = 2048


class FeatureSettings(Settings):
    """Settings of a feature map."""

    kind: str

    @abstractmethod
    def fit(self, inputs: Tensor) -> Map:
        """The map from inputs (n, ...) to features (n, k), made from the training inputs."""


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
        directions = _fixed_signs(torch.linalg.eigh((flat - mean).T @ (flat - mean)).eigenvectors.flip(1)[:, : self.features])
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

    def fit(self, inputs: Tensor) -> Map:
        points = inputs.flatten(1).double()
        if not max(self.features, self.neighbours) < len(points) <= MOST_INPUTS_IN_A_GRAPH:
            raise DataError(
                f"data.features: random_walk_modes needs more than {max(self.features, self.neighbours)} and at most "
                f"{MOST_INPUTS_IN_A_GRAPH} training inputs, got {len(points)}; set data.limit, or use principal_components"
            )
        reach = torch.cdist(points, points).kthvalue(self.neighbours + 1).values.clamp_min(1e-12)  # + 1: the point itself

        def affinity(x: Tensor) -> Tensor:
            distance = torch.cdist(x.flatten(1).double(), points)
            own = distance.kthvalue(self.neighbours + 1, dim=1, keepdim=True).values.clamp_min(1e-12)
            return torch.exp(-self.sharpness * distance.square() / (own * reach))

        near = affinity(inputs)
        near = (near + near.T) / 2
        degree = near.sum(1).sqrt()
        rates, modes = torch.linalg.eigh(near / (degree[:, None] * degree))
        rates, modes = rates.flip(0)[: self.features], _fixed_signs(modes.flip(1)[:, : self.features])
        table = modes / degree[:, None] * degree.norm() / rates

        def walk(x: Tensor) -> Tensor:
            steps = (affinity(part) for part in x.split(ROWS_AT_ONCE))
            return torch.cat([(step / step.sum(1, keepdim=True)) @ table for step in steps]).to(x.dtype)

        return walk


def _fixed_signs(vectors: Tensor) -> Tensor:
    """Eigenvectors with their largest entry positive, so that every machine has the same ones."""
    return vectors * vectors[vectors.abs().argmax(0), torch.arange(vectors.shape[1])].sign()


AnyFeatures = Annotated[PrincipalComponents | RandomWalkModes, Field(discriminator="kind")]
