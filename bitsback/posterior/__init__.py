"""q(w): what is known about each weight after the data."""

from bitsback.posterior.base import Posterior
from bitsback.posterior.gaussian import GaussianPosterior, GaussianPosteriorSettings
from bitsback.posterior.point import PointPosterior, PointPosteriorSettings

PosteriorSettings = GaussianPosteriorSettings | PointPosteriorSettings

__all__ = [
    "GaussianPosterior",
    "GaussianPosteriorSettings",
    "PointPosterior",
    "PointPosteriorSettings",
    "Posterior",
    "PosteriorSettings",
]
