"""What every map of the inputs can do."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from bitsback.registry import Settings

Map = Callable[[Tensor], Tensor]
ROWS_AT_ONCE = 2048
SHOWN_AFTER_SECONDS = 2.0


class FeatureSettings(Settings):
    """Settings of a feature map."""

    kind: str

    @property
    def is_fitted(self) -> bool:
        """Whether the map depends on the training inputs."""
        return True

    @abstractmethod
    def fit(self, inputs: Tensor) -> Map:
        """The map from inputs (n, ...) to features (n, k), made from the training inputs."""


class PerInputSettings(FeatureSettings):
    """Settings of a map that treats every input by itself: nothing is fitted."""

    @property
    def is_fitted(self) -> bool:
        return False

    def fit(self, inputs: Tensor) -> Map:
        return lambda x: torch.cat([self.map(part) for part in x.split(ROWS_AT_ONCE)])

    @abstractmethod
    def map(self, images: Tensor) -> Tensor:
        """The features of some inputs (n, ...)."""
