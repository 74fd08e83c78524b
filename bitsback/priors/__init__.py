"""p(w): the code of the weights. Every prior builds a distribution whose mass is one."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.priors.base import Prior as Prior
    from bitsback.priors.base import WeightInfo as WeightInfo
    from bitsback.priors.earlier_run import CheckpointPrior as CheckpointPrior
    from bitsback.priors.gaussian import GaussianPrior as GaussianPrior
    from bitsback.priors.group import GroupGaussianPrior as GroupGaussianPrior
    from bitsback.priors.heavy_tails import CauchyPrior as CauchyPrior
    from bitsback.priors.heavy_tails import LogisticPrior as LogisticPrior
    from bitsback.priors.heavy_tails import StudentTPrior as StudentTPrior
    from bitsback.priors.horseshoe import HorseshoePrior as HorseshoePrior
    from bitsback.priors.laplace import LaplacePrior as LaplacePrior
    from bitsback.priors.mixtures import AdaptiveMixturePrior as AdaptiveMixturePrior
    from bitsback.priors.mixtures import MixturePrior as MixturePrior
    from bitsback.priors.mixtures import ScaleMixturePrior as ScaleMixturePrior
    from bitsback.priors.mixtures import SpikeAndSlabPrior as SpikeAndSlabPrior
    from bitsback.priors.pyro import PyroPrior as PyroPrior
    from bitsback.priors.settings import AnyPriorSettings as AnyPriorSettings
    from bitsback.priors.settings import PriorSettings as PriorSettings
    from bitsback.priors.settings import registry as registry

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Prior", "WeightInfo"],
        "earlier_run": ["CheckpointPrior"],
        "gaussian": ["GaussianPrior"],
        "group": ["GroupGaussianPrior"],
        "heavy_tails": ["CauchyPrior", "LogisticPrior", "StudentTPrior"],
        "horseshoe": ["HorseshoePrior"],
        "laplace": ["LaplacePrior"],
        "mixtures": ["AdaptiveMixturePrior", "MixturePrior", "ScaleMixturePrior", "SpikeAndSlabPrior"],
        "pyro": ["PyroPrior"],
        "settings": ["AnyPriorSettings", "PriorSettings", "registry"],
    },
)
