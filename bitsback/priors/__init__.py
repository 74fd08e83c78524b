"""p(w): the code of the weights. Every prior builds a distribution whose mass is one."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from bitsback.priors import earlier_run, gaussian, group, heavy_tails, horseshoe, laplace, mixtures, pyro  # noqa: F401
from bitsback.priors.base import Prior, PriorSettings, WeightInfo, registry
from bitsback.priors.earlier_run import CheckpointPrior
from bitsback.priors.gaussian import GaussianPrior
from bitsback.priors.group import GroupGaussianPrior
from bitsback.priors.heavy_tails import CauchyPrior, LogisticPrior, StudentTPrior
from bitsback.priors.horseshoe import HorseshoePrior
from bitsback.priors.laplace import LaplacePrior
from bitsback.priors.mixtures import AdaptiveMixturePrior, MixturePrior, ScaleMixturePrior, SpikeAndSlabPrior
from bitsback.priors.own import OwnPriorSettings
from bitsback.priors.pyro import PyroPrior

if TYPE_CHECKING:
    AnyPriorSettings = PriorSettings
else:
    AnyPriorSettings = Annotated[Union[(*registry.members(), OwnPriorSettings)], Field(discriminator="kind")]
"""The settings of any registered prior, told apart by ``kind``."""

__all__ = [
    "AdaptiveMixturePrior",
    "AnyPriorSettings",
    "CauchyPrior",
    "CheckpointPrior",
    "GaussianPrior",
    "GroupGaussianPrior",
    "HorseshoePrior",
    "LaplacePrior",
    "LogisticPrior",
    "MixturePrior",
    "Prior",
    "PriorSettings",
    "PyroPrior",
    "ScaleMixturePrior",
    "SpikeAndSlabPrior",
    "StudentTPrior",
    "WeightInfo",
    "registry",
]
