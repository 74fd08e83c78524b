"""p(D given w): what the data cost once the weights are known."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from bitsback.likelihoods import classes, counts, real  # noqa: F401
from bitsback.likelihoods.base import Likelihood, LikelihoodSettings, registry
from bitsback.likelihoods.classes import BernoulliLikelihood, CategoricalLikelihood
from bitsback.likelihoods.counts import PoissonLikelihood
from bitsback.likelihoods.own import GivenLikelihoodSettings, OwnLikelihoodSettings
from bitsback.likelihoods.real import GaussianLikelihood

if TYPE_CHECKING:
    AnyLikelihoodSettings = LikelihoodSettings
else:
    AnyLikelihoodSettings = Annotated[
        Union[(*registry.members(), OwnLikelihoodSettings, GivenLikelihoodSettings)], Field(discriminator="kind")
    ]
"""The settings of any registered likelihood, told apart by ``kind``."""

__all__ = [
    "AnyLikelihoodSettings",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "LikelihoodSettings",
    "PoissonLikelihood",
    "registry",
]
