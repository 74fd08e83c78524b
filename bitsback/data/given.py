"""Data that were handed over in Python: their settings say what they were, not where they are."""

from typing import Literal

from pydantic import Field

from bitsback.data.dataset import Dataset, DataSettings
from bitsback.errors import DataError


class GivenDataSettings(DataSettings):
    """Data that a training in Python was given; whoever opens the run gives them again: load_run(RUN, dataset=...)."""

    kind: Literal["given"] = "given"
    name: str = Field("in memory", description="what the data set was called")
    examples: int = Field(0, ge=0, description="how many training examples there were")

    def load(self) -> Dataset:
        raise DataError(
            f"the data '{self.name}' ({self.examples:,} examples) were handed over in Python, and the configuration does not "
            "say where they are; open the run with bitsback.load_run(RUN, network=..., dataset=...)"
        )
