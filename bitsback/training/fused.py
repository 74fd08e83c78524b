"""The weights of one training step, fast: a few passes over each tensor do what autograd would do in dozens.

The plain step (:class:`bitsback.training.weights.PlainWeights`) is the reference; ``training.fused=false`` goes back to it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from bitsback.errors import ConfigError
from bitsback.model import BayesianModel, Weight
from bitsback.posterior import GaussianPosterior, Loan, holding, lending
from bitsback.training.gaussian_cost import GaussianCost, has_one_scale
from bitsback.training.noise import NoisePool, OutputNoise
from bitsback.training.parts import Drawn, Lent, is_dense
from bitsback.training.settings import TrainingSettings
from bitsback.training.weights import PlainWeights, StepWeights


def step_weights(model: BayesianModel, settings: TrainingSettings) -> StepWeights:
    """The weights of a training's steps, as its settings ask for.

    Raises:
        ConfigError: for antithetic draws of a model that draws no weights.
    """
    weights = fusible(model)
    if settings.antithetic and not any(model.is_drawn(weight.posterior) for weight in weights):
        raise ConfigError("training.antithetic: no layer draws its weights; leave it out, or set bayesian.estimator=weight")
    if not settings.fused or not weights:
        return PlainWeights(model)
    return FusedWeights(model, settings.draws, settings.antithetic, settings.noise_reuse)


def fusible(model: BayesianModel) -> list[Weight]:
    """Weights whose draws and gradients :class:`FusedWeights` takes over: trained Gaussian posteriors of one dtype."""
    found = [weight for weight in model.weights if _is_trained_gaussian(weight) and is_dense(weight.posterior.mean)]
    return [weight for weight in found if weight.posterior.mean.dtype == found[0].posterior.mean.dtype]


def _is_trained_gaussian(weight: Weight) -> bool:
    q = weight.posterior
    return isinstance(q, GaussianPosterior) and q.mean.requires_grad and q.log_std.requires_grad


class FusedWeights:
    """Draws, cost and gradients of all :func:`fusible` weights; what else there is goes the plain way.

    Args:
        model: at least one of its weights is fusible.
        draws: draws in a step.
        antithetic: every second draw is the mirror image m - s e of the one before.
        reuse: see :class:`NoisePool`.
    """

    def __init__(self, model: BayesianModel, draws: int = 1, antithetic: bool = False, reuse: int = 1) -> None:
        self.model, self.mirror = model, 2 if antithetic else 1
        signs = [-1.0 if number % self.mirror else 1.0 for number in range(draws)]
        weights = fusible(model)
        cheap = {
            id(prior)
            for prior, sharing in model.weights_by_prior()
            if has_one_scale(prior) and all(weight in weights for weight in sharing)
        }
        self.drawn: list[Drawn] = []
        self.lent: list[Lent] = []
        for weight in weights:
            q = weight.posterior
            assert isinstance(q, GaussianPosterior)
            centre = float(weight.prior.mean) if id(weight.prior) in cheap else None
            if model.is_drawn(q):
                self.drawn.append(Drawn(q, centre, signs))
            else:
                self.lent.append(Lent(q, centre))
        self.parts = [*self.drawn, *self.lent]
        by_posterior = {id(weight.posterior): weight for weight in weights}
        self.paid = [part for part in self.parts if part.centre is not None]
        paid = [by_posterior[id(part.q)] for part in self.paid]
        self.gaussian = GaussianCost(paid, [len(part.pieces) for part in self.paid]) if paid else None
        self.others = [weight for weight in model.weights if weight not in paid]
        *self.places, self.size = accumulate((part.q.weights for part in self.drawn), initial=0)
        self.noise = NoisePool(self.size * (draws // self.mirror), reuse, self.parts[0].std)
        self.output_noise = OutputNoise(reuse)

    def restart(self) -> None:
        for part in self.parts:
            part.look()
        self.noise.restart()
        self.output_noise.restart()

    def cost(self, rate: float) -> Tensor:
        with torch.no_grad():
            sums = self._begin()
        bits = [self.gaussian.bits(sums, rate)] if self.gaussian is not None else []
        if self.others:
            self.model.update_priors(rate, self.others)
            bits.append(self.model.kl_bits(self.others))
        return bits[0] if len(bits) == 1 else bits[0] + bits[1]

    def _begin(self) -> list[Tensor]:
        """Draw; returns three sums for each piece of the parts that are paid here."""
        sums: list[Tensor] = []
        if self.drawn:
            noises = [noise for noise in self.noise.next().split(self.size) for _ in range(self.mirror)]
            for part, place in zip(self.drawn, self.places, strict=True):
                sums += part.begin(noises, place)
        self.output_noise.begin()
        for lent in self.lent:
            sums += lent.begin()
        return sums

    @contextmanager
    def group(self, number: int) -> Iterator[None]:
        draws = {id(part.q): part.leaves[number] for part in self.drawn}
        with (
            holding((part.q for part in self.drawn), lambda q: draws[id(q)]),
            lending((part.q, Loan(part.leaves[0], self.output_noise)) for part in self.lent),
        ):
            yield

    @torch.no_grad()
    def add_gradients(self) -> None:
        k, pulls = self.gaussian.pull() if self.gaussian is not None else (0.0, [])
        pull = iter(pulls)
        for part in self.parts:
            if part.centre is None:
                part.finish(0.0, 0.0)
            else:
                part.finish(k, next(pull))
