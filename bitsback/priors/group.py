"""Automatic relevance determination: a learned Gaussian scale for every unit."""

from typing import Literal

import torch
from pydantic import Field

from bitsback.learned import Learn
from bitsback.priors.base import ScaleSettings, WeightInfo, registry
from bitsback.priors.gaussian import NormalPrior


class GroupGaussianPrior(NormalPrior):
    """N(mean, scale_g^2) with one scale for every slice g of the tensor along ``axis`` (MacKay 1992; Neal 1996).

    Args:
        shape: shape of the weight tensor.
        axis: the axis whose slices have a scale each; a tensor without that axis has a single scale.

    >>> GroupGaussianPrior(torch.Size([10, 64]), axis=1, scale=0.3)().batch_shape
    torch.Size([1, 64])
    """

    kind = "group_gaussian"

    def __init__(self, shape: torch.Size, axis: int, scale: float = 0.3, *, mean: float = 0.0, learn: Learn = "none") -> None:
        grouped = len(shape) >= 2
        scales = [size if grouped and position == axis else 1 for position, size in enumerate(shape)]
        super().__init__(mean, torch.full(scales, float(scale)), learn)


@registry.register("group_gaussian")
class GroupGaussianPriorSettings(ScaleSettings):
    """A Gaussian scale for every output or every input unit; each scale is learned and charged."""

    kind: Literal["group_gaussian"] = "group_gaussian"
    learn: Learn = "closed_form"
    per: Literal["tensor"] = Field("tensor", description="always tensor: the groups are slices of one tensor")
    group: Literal["output", "input"] = Field("input", description="which units have a scale of their own")

    def build(self, weight: WeightInfo) -> GroupGaussianPrior:
        axis = weight.output_axis if self.group == "output" else weight.input_axis
        scale = self.start_scale(weight)
        return GroupGaussianPrior(weight.shape, axis, scale, mean=self.mean, learn=self.learn)
