"""Where examples come from: the digits in the package, IDX files (MNIST), NPZ files, Friedman's regression."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from bitsback.data import digits, friedman, idx, npz  # noqa: F401
from bitsback.data.dataset import Dataset, DataSettings, Examples, Preprocessing, registry
from bitsback.data.given import GivenDataSettings
from bitsback.data.own import OwnDataSettings

if TYPE_CHECKING:
    AnyDataSettings = DataSettings
else:
    AnyDataSettings = Annotated[Union[(*registry.members(), OwnDataSettings, GivenDataSettings)], Field(discriminator="kind")]
"""The settings of any registered data source, told apart by ``kind``."""

__all__ = ["AnyDataSettings", "DataSettings", "Dataset", "Examples", "Preprocessing", "registry"]
