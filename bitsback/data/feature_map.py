"""What every map of the inputs can do."""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from bitsback.registry import Settings

Map = Callable[[Tensor], Tensor]
ROWS_AT_ONCE = 2048


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
