"""Settings of the priors; importing them does not import torch."""

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, PositiveFloat, model_validator

from bitsback.factories import FactoryName, made_by
from bitsback.registry import FilePath, GradientLearn, Learn, Registry, Settings

if TYPE_CHECKING:
    from bitsback.priors._earlier_run import CheckpointPrior
    from bitsback.priors._group import GroupGaussianPrior
    from bitsback.priors._heavy_tails import CauchyPrior, LogisticPrior, StudentTPrior
    from bitsback.priors._horseshoe import HorseshoePrior
    from bitsback.priors._laplace import LaplacePrior
    from bitsback.priors._mixtures import AdaptiveMixturePrior, ScaleMixturePrior, SpikeAndSlabPrior
    from bitsback.priors._pyro import PyroPrior
    from bitsback.priors.base import Prior, WeightInfo
    from bitsback.priors.gaussian import GaussianPrior

__all__ = [
    "OWN",
    "AdaptiveMixturePriorSettings",
    "AnyPriorSettings",
    "CauchyPriorSettings",
    "CheckpointPriorSettings",
    "GaussianPriorSettings",
    "GroupGaussianPriorSettings",
    "HorseshoePriorSettings",
    "LaplacePriorSettings",
    "LogisticPriorSettings",
    "MixtureSettings",
    "OwnPriorSettings",
    "PriorSettings",
    "Probabilities",
    "PyroPriorSettings",
    "ScaleMixturePriorSettings",
    "ScaleSettings",
    "SpikeAndSlabPriorSettings",
    "StudentTPriorSettings",
    "registry",
]

registry: Registry[type["PriorSettings"]] = Registry("prior")


class PriorSettings(Settings):
    """Settings common to all priors: how numbers are learned, and which weights share them."""

    kind: str
    learn: Learn = Field(
        "gradient", description="none: numbers are fixed; otherwise they are learned, rounded to a grid and charged"
    )
    per: Literal["tensor", "layer", "model"] = Field("tensor", description="which weights share one set of numbers")

    @abstractmethod
    def build(self, weight: "WeightInfo") -> "Prior":
        """Build the prior of one weight tensor, or of the group of tensors that begins with it."""


class ScaleSettings(PriorSettings):
    """Settings of a prior with a location and a scale."""

    scale: PositiveFloat = Field(0.3, description="scale of the prior, at the start when it is learned")
    mean: float = Field(0.0, description="location of the prior, the same for every weight; never learned")
    relative_to: Literal["absolute", "fan_in"] = Field(
        "absolute", description="absolute: scale as given; fan_in: scale times 1/sqrt(fan_in)"
    )

    def start_scale(self, weight: "WeightInfo") -> float:
        """Return the initial scale, in units of the weights."""
        return self.scale / math.sqrt(weight.fan_in) if self.relative_to == "fan_in" else self.scale


@registry.register("gaussian")
class GaussianPriorSettings(ScaleSettings):
    """Gaussian N(mean, scale^2); its code length is an L2 penalty."""

    kind: Literal["gaussian"] = "gaussian"
    learn: Learn = "closed_form"

    def build(self, weight: "WeightInfo") -> "GaussianPrior":
        """Build the Gaussian prior of one weight tensor."""
        from bitsback.priors.gaussian import GaussianPrior

        return GaussianPrior(self.start_scale(weight), mean=self.mean, learn=self.learn)


@registry.register("laplace")
class LaplacePriorSettings(ScaleSettings):
    """Laplace(mean, scale); its code length is an L1 penalty."""

    kind: Literal["laplace"] = "laplace"
    learn: GradientLearn = "gradient"

    def build(self, weight: "WeightInfo") -> "LaplacePrior":
        """Build the Laplace prior of one weight tensor."""
        from bitsback.priors._laplace import LaplacePrior

        return LaplacePrior(self.start_scale(weight), mean=self.mean, learn=self.learn)


@registry.register("student_t")
class StudentTPriorSettings(ScaleSettings):
    """Student's t, with tails that decay as |w|^-(df + 1)."""

    kind: Literal["student_t"] = "student_t"
    learn: GradientLearn = "gradient"
    df: PositiveFloat = Field(3.0, description="degrees of freedom, fixed")

    def build(self, weight: "WeightInfo") -> "StudentTPrior":
        """Build the Student t prior of one weight tensor."""
        from bitsback.priors._heavy_tails import StudentTPrior

        return StudentTPrior(self.start_scale(weight), df=self.df, mean=self.mean, learn=self.learn)


@registry.register("cauchy")
class CauchyPriorSettings(ScaleSettings):
    """Cauchy, with tails that decay as 1/w^2; it has no mean and no variance, but is a proper density."""

    kind: Literal["cauchy"] = "cauchy"
    learn: GradientLearn = "gradient"

    def build(self, weight: "WeightInfo") -> "CauchyPrior":
        """Build the Cauchy prior of one weight tensor."""
        from bitsback.priors._heavy_tails import CauchyPrior

        return CauchyPrior(self.start_scale(weight), mean=self.mean, learn=self.learn)


@registry.register("logistic")
class LogisticPriorSettings(ScaleSettings):
    """Logistic, with tails between those of Gaussian and Laplace."""

    kind: Literal["logistic"] = "logistic"
    learn: GradientLearn = "gradient"

    def build(self, weight: "WeightInfo") -> "LogisticPrior":
        """Build the logistic prior of one weight tensor."""
        from bitsback.priors._heavy_tails import LogisticPrior

        return LogisticPrior(self.start_scale(weight), mean=self.mean, learn=self.learn)


@registry.register("horseshoe")
class HorseshoePriorSettings(ScaleSettings):
    """Exact marginal of the horseshoe, with a pole at its centre and heavy tails."""

    kind: Literal["horseshoe"] = "horseshoe"
    learn: GradientLearn = "gradient"

    def build(self, weight: "WeightInfo") -> "HorseshoePrior":
        """Build the horseshoe prior of one weight tensor."""
        from bitsback.priors._horseshoe import HorseshoePrior

        return HorseshoePrior(self.start_scale(weight), mean=self.mean, learn=self.learn)


@registry.register("group_gaussian")
class GroupGaussianPriorSettings(ScaleSettings):
    """Gaussian with one scale for every output or every input unit; each scale is learned and charged."""

    kind: Literal["group_gaussian"] = "group_gaussian"
    learn: Learn = "closed_form"
    per: Literal["tensor"] = Field("tensor", description="always tensor: the groups are slices of one tensor")
    group: Literal["output", "input"] = Field("input", description="which units have a scale of their own")

    def build(self, weight: "WeightInfo") -> "GroupGaussianPrior":
        """Build the grouped Gaussian prior of one weight tensor."""
        from bitsback.priors._group import GroupGaussianPrior

        axis = weight.output_axis if self.group == "output" else weight.input_axis
        scale = self.start_scale(weight)
        return GroupGaussianPrior(weight.shape, axis, scale, mean=self.mean, learn=self.learn)


Probabilities = Annotated[tuple[PositiveFloat, ...], Field(min_length=2)]


class MixtureSettings(PriorSettings):
    """Settings of a mixture prior: lists of scales and weights."""

    learn: GradientLearn = "gradient"
    scales: Probabilities = Field((0.05, 0.6), description="scale of each component")
    weights: Probabilities = Field((0.75, 0.25), description="weight of each component; they sum to one")

    @model_validator(mode="after")
    def _check(self) -> "MixtureSettings":
        if len(self.scales) != len(self.weights):
            raise ValueError(f"as many weights as scales are needed, got {len(self.weights)} and {len(self.scales)}")
        if not math.isclose(sum(self.weights), 1.0, abs_tol=1e-6):
            raise ValueError(f"the weights must sum to one, got {sum(self.weights):g}")
        return self


@registry.register("scale_mixture")
class ScaleMixturePriorSettings(MixtureSettings):
    """Mixture of two or more zero-mean Gaussians: most weights near zero, a few large."""

    kind: Literal["scale_mixture"] = "scale_mixture"

    def build(self, weight: "WeightInfo") -> "ScaleMixturePrior":
        """Build the scale mixture of one weight tensor."""
        from bitsback.priors._mixtures import ScaleMixturePrior

        return ScaleMixturePrior(list(self.scales), list(self.weights), learn=self.learn)


@registry.register("adaptive_mixture")
class AdaptiveMixturePriorSettings(PriorSettings):
    """Mixture of K Gaussians whose means, scales and weights are learned."""

    kind: Literal["adaptive_mixture"] = "adaptive_mixture"
    learn: GradientLearn = "gradient"
    components: int = Field(3, ge=2, le=64, description="number of Gaussians, spread evenly at the start")
    scale: PositiveFloat = Field(0.3, description="the means start between -scale and +scale")

    def build(self, weight: "WeightInfo") -> "AdaptiveMixturePrior":
        """Build the adaptive mixture of one weight tensor."""
        from bitsback.priors._mixtures import AdaptiveMixturePrior

        count = self.components
        means = [self.scale * (2 * k / (count - 1) - 1) for k in range(count)]
        scales = [self.scale / 2] * count
        return AdaptiveMixturePrior(scales, [1 / count] * count, means, learn=self.learn, learn_means=True)


@registry.register("spike_and_slab")
class SpikeAndSlabPriorSettings(PriorSettings):
    """Mixture of a narrow Gaussian for weights near zero and a wide one for the others."""

    kind: Literal["spike_and_slab"] = "spike_and_slab"
    learn: GradientLearn = "gradient"
    spike_scale: PositiveFloat = Field(0.02, description="scale of the narrow Gaussian")
    slab_scale: PositiveFloat = Field(0.6, description="scale of the wide Gaussian")
    slab_weight: float = Field(0.25, gt=0, lt=1, description="share of weights in the slab")

    @model_validator(mode="after")
    def _check(self) -> "SpikeAndSlabPriorSettings":
        if self.spike_scale >= self.slab_scale:
            raise ValueError(f"spike_scale {self.spike_scale:g} must be below slab_scale {self.slab_scale:g}")
        return self

    def build(self, weight: "WeightInfo") -> "SpikeAndSlabPrior":
        """Build the spike-and-slab prior of one weight tensor."""
        from bitsback.priors._mixtures import SpikeAndSlabPrior

        scales, weights = [self.spike_scale, self.slab_scale], [1 - self.slab_weight, self.slab_weight]
        return SpikeAndSlabPrior(scales, weights, learn=self.learn)


@registry.register("pyro")
class PyroPriorSettings(PriorSettings):
    """Distribution of pyro.distributions, given by name and arguments."""

    kind: Literal["pyro"] = "pyro"
    learn: GradientLearn = "gradient"
    distribution: str = Field(description="a class name in pyro.distributions")
    arguments: dict[str, Any] = Field(default_factory=dict, description="arguments of the distribution: numbers or lists")
    scale: PositiveFloat = Field(1.0, description="factor of the random variable, at the start when it is learned")
    learned: tuple[str, ...] = Field((), description="arguments that are learned by gradient from these values, and charged")

    def build(self, weight: "WeightInfo") -> "PyroPrior":
        """Build the Pyro prior of one weight tensor."""
        from bitsback.priors._pyro import PyroPrior

        return PyroPrior(self.distribution, self.arguments, scale=self.scale, learn=self.learn, learned=self.learned)


@registry.register("checkpoint")
class CheckpointPriorSettings(PriorSettings):
    """Gaussian around the posterior means of an earlier run, N(mean, scale^2)."""

    kind: Literal["checkpoint"] = "checkpoint"
    learn: Learn = "closed_form"
    per: Literal["tensor"] = Field("tensor", description="always tensor: each tensor has its own earlier mean")
    run: FilePath = Field(description="directory of an earlier run of the same network")
    scale: PositiveFloat = Field(0.1, description="std around the earlier means, at the start when it is learned")

    def build(self, weight: "WeightInfo") -> "CheckpointPrior":
        """Read the means of the earlier run and build the prior of one weight tensor."""
        from bitsback.priors._earlier_run import CheckpointPrior, earlier_mean

        mean = earlier_mean(self.run, weight)
        return CheckpointPrior(mean, self.scale, source=str(self.run), learn=self.learn)


OWN = "factory"


class OwnPriorSettings(PriorSettings):
    """User-defined prior: a function of the weight (name, shape, fan-in) that returns a Prior."""

    kind: Literal["factory"] = "factory"
    learn: Literal["none"] = Field("none", description="always none: the function decides what is learned")
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the function")

    def build(self, weight: "WeightInfo") -> "Prior":
        """Call the function with the weight and return its prior."""
        from bitsback.priors.base import Prior

        found: Prior = made_by(self.factory, "prior.factory", Prior, "a Prior", weight, **self.arguments)
        return found


if TYPE_CHECKING:
    AnyPriorSettings = PriorSettings
else:
    AnyPriorSettings = Annotated[
        Union[
            (
                *registry.members(),
                OwnPriorSettings,
            )
        ],
        Field(discriminator="kind"),
    ]
"""Settings of any registered prior, discriminated by ``kind``."""
