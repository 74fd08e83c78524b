"""q(w): what is known about each weight after the data."""

from bitsback.posteriors.base import Posterior
from bitsback.posteriors.mean_field import GaussianPosterior, GaussianPosteriorSettings
from bitsback.posteriors.point import PointPosterior, PointPosteriorSettings

PosteriorSettings = GaussianPosteriorSettings | PointPosteriorSettings

__all__ = [
    "GaussianPosterior",
    "GaussianPosteriorSettings",
    "PointPosterior",
    "PointPosteriorSettings",
    "Posterior",
    "PosteriorSettings",
]
