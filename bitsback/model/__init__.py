"""Bayesian models: named weights with posterior and prior, whole-network draws, and the ledger of a model."""

from bitsback.model._build import bayesianize
from bitsback.model._layer_posteriors import LayerPosteriors
from bitsback.model._posterior_file import posterior_tensors
from bitsback.model._width import WIDTH_FACTORS, widened, width_curve
from bitsback.model.accounting import Evaluation, evaluate, take_ledger
from bitsback.model.model import BayesianModel
from bitsback.model.prediction import Prediction
from bitsback.model.weight import State, Weight

__all__ = [
    "WIDTH_FACTORS",
    "BayesianModel",
    "Evaluation",
    "LayerPosteriors",
    "Prediction",
    "State",
    "Weight",
    "bayesianize",
    "evaluate",
    "posterior_tensors",
    "take_ledger",
    "widened",
    "width_curve",
]
