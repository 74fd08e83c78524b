"""Settings of the posteriors; importing them does not import torch."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat

from bitsback.registry import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from bitsback.posteriors._mean_field import GaussianPosterior
    from bitsback.posteriors._point import PointPosterior

__all__ = ["GaussianPosteriorSettings", "PointPosteriorSettings", "PosteriorSettings"]


class GaussianPosteriorSettings(Settings):
    """Gaussian posterior over each weight; the std set here is the one at the start of training."""

    kind: Literal["gaussian"] = "gaussian"
    std: PositiveFloat = Field(0.1, description="standard deviation at the start, in units of relative_to")
    relative_to: Literal["absolute", "prior", "fan_in"] = Field(
        "fan_in", description="absolute: as is; prior: times the prior's scale; fan_in: times 1/sqrt(fan_in)"
    )

    def build(self, mean: "Tensor", fan_in: int, prior_scale: float) -> "GaussianPosterior":
        """Build the posterior of one weight tensor.

        Args:
            mean: start of the means.
            fan_in: number of inputs of one output unit.
            prior_scale: typical scale of the prior.

        Returns:
            Gaussian posterior.
        """
        from bitsback.posteriors._mean_field import GaussianPosterior

        unit = {"absolute": 1.0, "prior": prior_scale, "fan_in": 1 / math.sqrt(fan_in)}[self.relative_to]
        return GaussianPosterior(mean, self.std * unit)


class PointPosteriorSettings(Settings):
    """Point estimate: trained with the prior's code length as penalty, coded on a grid, without a refund."""

    kind: Literal["point"] = "point"
    grid_step: PositiveFloat | None = Field(
        None, description="grid of the coded weights; default: the largest power of two below an eighth of the prior's scale"
    )

    def build(self, mean: "Tensor", fan_in: int, prior_scale: float) -> "PointPosterior":
        """Build the posterior of one weight tensor.

        Args:
            mean: start of the weights.
            fan_in: not used.
            prior_scale: not used.

        Returns:
            Point posterior.
        """
        from bitsback.posteriors._point import PointPosterior

        return PointPosterior(mean, self.grid_step)


PosteriorSettings = GaussianPosteriorSettings | PointPosteriorSettings
