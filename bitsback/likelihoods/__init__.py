"""Likelihoods p(D given w): the code lengths of the targets given the network's outputs."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.likelihoods._counts import NegativeBinomialLikelihood as NegativeBinomialLikelihood
    from bitsback.likelihoods._counts import PoissonLikelihood as PoissonLikelihood
    from bitsback.likelihoods._real import GaussianLikelihood as GaussianLikelihood
    from bitsback.likelihoods._uncertainty import Mixture as Mixture
    from bitsback.likelihoods.base import Likelihood as Likelihood
    from bitsback.likelihoods.classes import BernoulliLikelihood as BernoulliLikelihood
    from bitsback.likelihoods.classes import CategoricalLikelihood as CategoricalLikelihood
    from bitsback.likelihoods.classes import TokensLikelihood as TokensLikelihood
    from bitsback.likelihoods.settings import AnyLikelihoodSettings as AnyLikelihoodSettings
    from bitsback.likelihoods.settings import LikelihoodSettings as LikelihoodSettings
    from bitsback.likelihoods.settings import registry as registry

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Likelihood"],
        "classes": ["BernoulliLikelihood", "CategoricalLikelihood", "TokensLikelihood"],
        "_counts": ["NegativeBinomialLikelihood", "PoissonLikelihood"],
        "_real": ["GaussianLikelihood"],
        "_uncertainty": ["Mixture"],
        "settings": ["AnyLikelihoodSettings", "LikelihoodSettings", "registry"],
    },
)
