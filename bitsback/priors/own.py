"""A prior of one's own, from a function that is named."""

from typing import Any, Literal

from pydantic import Field

from bitsback.factories import FactoryName, made_by
from bitsback.priors.base import Prior, PriorSettings, WeightInfo

OWN = "factory"


class OwnPriorSettings(PriorSettings):
    """A prior of your own: a function that is told the weight (name, shape, fan-in) and returns a Prior."""

    kind: Literal["factory"] = "factory"
    learn: Literal["none"] = Field("none", description="always none: the function decides what is learned")
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the function")

    def build(self, weight: WeightInfo) -> Prior:
        found: Prior = made_by(self.factory, "prior.factory", Prior, "a Prior", weight, **self.arguments)
        return found
