"""Training of point estimates, the networks of two-part codes."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from bitsback.config import Config, Experiment
from bitsback.data import Dataset
from bitsback.errors import DataError
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.model import evaluate
from bitsback.posteriors import PointPosteriorSettings
from bitsback.priors import AnyPriorSettings
from bitsback.priors.settings import GaussianPriorSettings, LaplacePriorSettings, ScaleSettings
from bitsback.training.settings import BetaSettings, ElboSettings

__all__ = ["REGULARISATIONS", "PointNetwork", "Regularisation", "check_labels", "point_config", "regularised"]

Regularisation = Literal["L2", "L1", "none"]
REGULARISATIONS: tuple[Regularisation, ...] = ("L2", "L1", "none")

DEFAULT_SCALE, FLAT_SCALE = 0.3, 64.0
FINE_GRID = 2.0**-24
"""Grid step of trained weights: about the precision of float32, so that only the compared codes round them."""


@dataclass(frozen=True)
class PointNetwork:
    """Trained point estimate, with the data bits of the training labels before any rounding."""

    experiment: Experiment
    data_bits: float
    test_error: float | None
    seconds: float

    @property
    def weights(self) -> int:
        """Count of numbers that a receiver needs, statistics and buffers included."""
        model = self.experiment.model
        trained = [(name, p) for name, p in model.deterministic() if p.requires_grad]
        others = [*trained, *model.learned_statistics(), *model.changed_buffers()]
        return sum(q.numel for q in model.posteriors()) + sum(tensor.numel() for _, tensor in others)

    @classmethod
    def train(
        cls, config: Config, *, dataset: Dataset | None = None, network: nn.Module | None = None, progress: bool = True
    ) -> "PointNetwork":
        """Train a point estimate.

        Args:
            config: with posterior.kind=point.
            dataset: used in place of the configuration's data.
            network: used in place of the configuration's network.
            progress: show progress bars.

        Returns:
            The trained network.
        """
        experiment = Experiment.build(config, dataset=dataset, network=network)
        outcome = experiment.train(None, progress=progress)
        data = experiment.dataset
        paid = evaluate(experiment.model, experiment.likelihood, data.train, samples=0).data_bits
        return cls(experiment, paid, outcome.test_error, outcome.training_seconds)


def point_config(config: Config) -> Config:
    """Return the configuration with point posteriors and fixed priors, at beta 1 and without a budget.

    The penalty is then the code length of the weights. Priors are fixed because a point estimate cannot learn the scale of
    its prior: scale and weights would shrink together to zero.

    Returns:
        The changed configuration.
    """
    plain = {"budget_bits": None, "beta": BetaSettings(), "draws": 1, "early_stop": None, "objective": ElboSettings()}
    training = config.training.model_copy(update=plain)
    point = PointPosteriorSettings(grid_step=FINE_GRID)
    held = {name: _held(prior) for name, prior in config.prior_overrides.items()}
    return config.model_copy(
        update={"posterior": point, "prior": _held(config.prior), "prior_overrides": held, "training": training}
    )


def _held(prior: AnyPriorSettings) -> AnyPriorSettings:
    return prior.model_copy(update={"learn": "none"})


def regularised(config: Config, by: Regularisation) -> Config:
    """Return the configuration of a point estimate with one penalty for every weight.

    L2 is a Gaussian prior with the configuration's scale s, L1 a Laplace prior of the same variance (scale s / sqrt 2), and
    none a Gaussian of scale 64, whose penalty is negligible.

    Args:
        config: of the network and its data.
        by: the penalty.

    Returns:
        The changed configuration.
    """
    scale = config.prior.scale if isinstance(config.prior, ScaleSettings) else DEFAULT_SCALE
    priors: dict[Regularisation, AnyPriorSettings] = {
        "L2": GaussianPriorSettings(scale=scale, learn="none"),
        "L1": LaplacePriorSettings(scale=scale / 2**0.5, learn="none"),
        "none": GaussianPriorSettings(scale=FLAT_SCALE, learn="none"),
    }
    return point_config(config.model_copy(update={"prior": priors[by], "prior_overrides": {}}))


def check_labels(experiment: Experiment) -> CategoricalLikelihood:
    """Return the categorical likelihood of an experiment; raises DataError if its targets are not labels."""
    if not isinstance(experiment.likelihood, CategoricalLikelihood):
        raise DataError(
            f"the codes compared here describe labels, one of several classes, and the likelihood "
            f"'{experiment.likelihood.kind}' describes {experiment.likelihood.described}; give data with labels"
        )
    return experiment.likelihood
