"""Point estimates of a configuration: the networks of two-part codes."""

from dataclasses import dataclass
from typing import Literal

from bitsback.config import Config, Experiment
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
"""Where weights are left when training ends: a float32's own precision, so that only the codes compared here round them."""


@dataclass(frozen=True)
class PointNetwork:
    """A trained point estimate with what it costs to describe the labels by it, before any rounding."""

    experiment: Experiment
    data_bits: float
    test_error: float | None
    seconds: float

    @property
    def weights(self) -> int:
        """How many numbers a receiver needs."""
        model = self.experiment.model
        trained = [(name, p) for name, p in model.deterministic() if p.requires_grad]
        others = [*trained, *model.learned_statistics(), *model.changed_buffers()]
        return sum(q.numel for q in model.posteriors()) + sum(tensor.numel() for _, tensor in others)

    @classmethod
    def train(cls, config: Config, *, progress: bool = True) -> "PointNetwork":
        """Train ``config``, whose posterior is a point."""
        experiment = Experiment.build(config)
        outcome = experiment.train(None, progress=progress)
        data = experiment.dataset
        paid = evaluate(experiment.model, experiment.likelihood, data.train, samples=0).data_bits
        return cls(experiment, paid, outcome.test_error, outcome.training_seconds)


def point_config(config: Config) -> Config:
    """The same network as a point estimate: fixed priors, whose code length is the penalty, at beta 1 and without a budget.

    A point estimate cannot learn its prior's scale: the narrower the prior, the smaller the weights, down to nothing.
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
    """The point estimate with one penalty for every weight: L2, L1, or none to speak of.

    L2 is a Gaussian prior with the configuration's scale s, L1 a Laplace prior of the same variance (scale s / sqrt 2), and
    none a Gaussian so wide that its penalty is lost in the data bits.
    """
    scale = config.prior.scale if isinstance(config.prior, ScaleSettings) else DEFAULT_SCALE
    priors: dict[Regularisation, AnyPriorSettings] = {
        "L2": GaussianPriorSettings(scale=scale, learn="none"),
        "L1": LaplacePriorSettings(scale=scale / 2**0.5, learn="none"),
        "none": GaussianPriorSettings(scale=FLAT_SCALE, learn="none"),
    }
    return point_config(config.model_copy(update={"prior": priors[by], "prior_overrides": {}}))


def check_labels(experiment: Experiment) -> CategoricalLikelihood:
    """The likelihood of labels; raises DataError for targets that are none."""
    if not isinstance(experiment.likelihood, CategoricalLikelihood):
        raise DataError(
            f"the codes compared here describe labels, one of several classes, and the likelihood "
            f"'{experiment.likelihood.kind}' describes {experiment.likelihood.described}; give data with labels"
        )
    return experiment.likelihood
