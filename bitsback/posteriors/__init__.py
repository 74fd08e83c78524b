"""Posteriors q(w) over weight tensors: Gaussian or point estimate."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.posteriors._mean_field import GaussianPosterior as GaussianPosterior
    from bitsback.posteriors._point import PointPosterior as PointPosterior
    from bitsback.posteriors.base import Posterior as Posterior
    from bitsback.posteriors.settings import GaussianPosteriorSettings as GaussianPosteriorSettings
    from bitsback.posteriors.settings import PointPosteriorSettings as PointPosteriorSettings
    from bitsback.posteriors.settings import PosteriorSettings as PosteriorSettings

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Posterior"],
        "_mean_field": ["GaussianPosterior"],
        "_point": ["PointPosterior"],
        "settings": ["GaussianPosteriorSettings", "PointPosteriorSettings", "PosteriorSettings"],
    },
)
