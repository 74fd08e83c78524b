"""Priors p(w) over weight tensors: proper distributions, and so codes of the weights."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.priors._earlier_run import CheckpointPrior as CheckpointPrior
    from bitsback.priors._group import GroupGaussianPrior as GroupGaussianPrior
    from bitsback.priors._heavy_tails import CauchyPrior as CauchyPrior
    from bitsback.priors._heavy_tails import LogisticPrior as LogisticPrior
    from bitsback.priors._heavy_tails import StudentTPrior as StudentTPrior
    from bitsback.priors._horseshoe import HorseshoePrior as HorseshoePrior
    from bitsback.priors._laplace import LaplacePrior as LaplacePrior
    from bitsback.priors._mixtures import AdaptiveMixturePrior as AdaptiveMixturePrior
    from bitsback.priors._mixtures import MixturePrior as MixturePrior
    from bitsback.priors._mixtures import ScaleMixturePrior as ScaleMixturePrior
    from bitsback.priors._mixtures import SpikeAndSlabPrior as SpikeAndSlabPrior
    from bitsback.priors._named import settings_of_distribution as settings_of_distribution
    from bitsback.priors._pyro import PyroPrior as PyroPrior
    from bitsback.priors.base import Prior as Prior
    from bitsback.priors.base import WeightInfo as WeightInfo
    from bitsback.priors.gaussian import GaussianPrior as GaussianPrior
    from bitsback.priors.settings import AnyPriorSettings as AnyPriorSettings
    from bitsback.priors.settings import PriorSettings as PriorSettings
    from bitsback.priors.settings import registry as registry

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Prior", "WeightInfo"],
        "_earlier_run": ["CheckpointPrior"],
        "gaussian": ["GaussianPrior"],
        "_group": ["GroupGaussianPrior"],
        "_heavy_tails": ["CauchyPrior", "LogisticPrior", "StudentTPrior"],
        "_horseshoe": ["HorseshoePrior"],
        "_laplace": ["LaplacePrior"],
        "_mixtures": ["AdaptiveMixturePrior", "MixturePrior", "ScaleMixturePrior", "SpikeAndSlabPrior"],
        "_named": ["settings_of_distribution"],
        "_pyro": ["PyroPrior"],
        "settings": ["AnyPriorSettings", "PriorSettings", "registry"],
    },
)
