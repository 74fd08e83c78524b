"""Where examples come from: the digits in the package, IDX files (MNIST), NPZ files, Friedman's regression."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from bitsback.data import digits, friedman, given, idx, npz  # noqa: F401
from bitsback.data.dataset import Dataset, DataSettings, Examples, Preprocessing, registry

if TYPE_CHECKING:
    AnyDataSettings = DataSettings
else:
    AnyDataSettings = Annotated[Union[tuple(registry.members())], Field(discriminator="kind")]  # noqa: UP007
"""The settings of any registered data source, told apart by ``kind``."""

__all__ = ["AnyDataSettings", "DataSettings", "Dataset", "Examples", "Preprocessing", "registry"]
