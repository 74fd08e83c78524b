"""q(w): what is known about each weight after the data."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.posteriors.base import Posterior as Posterior
    from bitsback.posteriors.mean_field import GaussianPosterior as GaussianPosterior
    from bitsback.posteriors.point import PointPosterior as PointPosterior
    from bitsback.posteriors.settings import GaussianPosteriorSettings as GaussianPosteriorSettings
    from bitsback.posteriors.settings import PointPosteriorSettings as PointPosteriorSettings
    from bitsback.posteriors.settings import PosteriorSettings as PosteriorSettings

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Posterior"],
        "mean_field": ["GaussianPosterior"],
        "point": ["PointPosterior"],
        "settings": ["GaussianPosteriorSettings", "PointPosteriorSettings", "PosteriorSettings"],
    },
)
