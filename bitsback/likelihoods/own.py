"""A likelihood of one's own, from a function that is named."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from bitsback.errors import ConfigError
from bitsback.factories import FactoryName, made_by
from bitsback.likelihoods.base import Likelihood, LikelihoodSettings


class OwnLikelihoodSettings(LikelihoodSettings):
    """A likelihood of your own: a function that is told how many classes the data have, or None, and returns a Likelihood."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the function")

    def build(self, classes: int | None, targets: Tensor | None = None) -> Likelihood:
        found: Likelihood = made_by(self.factory, "likelihood.factory", Likelihood, "a Likelihood", classes, **self.arguments)
        if targets is not None:
            found.fit(targets)
        return found


class GivenLikelihoodSettings(LikelihoodSettings):
    """A likelihood that a training in Python was given, of a class that is none of bitsback's."""

    kind: Literal["given"] = "given"
    of: str = Field("Likelihood", description="class of the likelihood")

    def build(self, classes: int | None, targets: Tensor | None = None) -> Likelihood:
        raise ConfigError(
            f"the likelihood, a {self.of}, was handed over in Python, and the configuration does not say how it is made; name "
            "a function that returns it: likelihood: {kind: factory, factory: package.module:function}"
        )
