"""A data source of one's own, from a function that is named."""

from typing import Any, Literal

from pydantic import Field

from bitsback.data.dataset import Dataset, DataSettings
from bitsback.factories import FactoryName, made_by


class OwnDataSettings(DataSettings):
    """Data of your own: a function that returns a Dataset, whose inputs are scaled and limited as those of other sources."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")

    def load(self) -> Dataset:
        made: Dataset = made_by(self.factory, "data.factory", Dataset, "a Dataset", **self.arguments)
        return self.finish(made.name, made.train, made.test, classes=made.classes)
