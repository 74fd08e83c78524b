"""One ledger for every contestant's posterior."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.nets import CLASSES
from benchmarks.trainer import Moments
from bitsback.data import Examples
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import BayesianModel, bayesianize, evaluate, take_ledger

SAMPLES = 3
GLANCE_EXAMPLES = 5000
MARGIN = 1.05
"""A glance is one draw on few examples; it may be this far off before a ledger is not worth its time."""


@dataclass(frozen=True)
class Audit:
    """Net bits; ``exact`` when they are a ledger's, otherwise they are a glance's and no threshold is near."""

    net_bits: float
    exact: bool


class Auditor:
    """Copies (mean, std) of every weight into a model of ours, fits the scale of its Gaussian prior per tensor, and counts.

    Args:
        network: the plain network.
        examples: the training examples.
    """

    def __init__(self, network: nn.Module, examples: Examples) -> None:
        self.network, self.examples, self.likelihood = network, examples, CategoricalLikelihood(CLASSES)
        few = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:GLANCE_EXAMPLES]
        self.few = Examples(examples.inputs[few], examples.targets[few])

    @torch.no_grad()
    def model_of(self, moments: Moments) -> BayesianModel:
        """A model of ours with this posterior."""
        model = bayesianize(copy.deepcopy(self.network), {"kind": "gaussian", "scale": 0.3, "learn": "closed_form"})
        if {weight.name for weight in model.weights} != set(moments):
            raise SystemExit(f"the posterior of {sorted(moments)} is not that of {[weight.name for weight in model.weights]}")
        for weight in model.weights:
            mean, std = moments[weight.name]
            weight.posterior.mean.copy_(mean)
            weight.posterior.set_std(_positive(std))
        model.update_priors()
        return model

    def audit(self, moments: Moments, wanted_bits: float) -> Audit:
        """Net bits: a ledger's when they may be as low as ``wanted_bits``."""
        if not all(bool(torch.isfinite(part).all()) for both in moments.values() for part in both):
            return Audit(float("inf"), exact=True)
        model = self.model_of(moments)
        glance = evaluate(model, self.likelihood, self.few, samples=1).data_bits * len(self.examples) / len(self.few)
        net_bits = float(model.kl_bits().detach()) + glance
        if net_bits > MARGIN * wanted_bits:
            return Audit(net_bits, exact=False)
        return Audit(take_ledger(model, self.likelihood, self.examples, samples=SAMPLES).net_bits, exact=True)

    def error_of_means(self, moments: Moments) -> float:
        """Share of the training examples that the posterior means get wrong: low when the posterior was read rightly."""
        return evaluate(self.model_of(moments), self.likelihood, self.examples, samples=0).error


def _positive(std: Tensor) -> Tensor:
    """A std that has shrunk to zero in float32, at the smallest that can be coded."""
    return std.clamp_min(1e-12)
