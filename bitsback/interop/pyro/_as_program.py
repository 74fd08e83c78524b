"""A Bayesian model as a Pyro program and its guide."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from bitsback.errors import DataError, LedgerError, PriorError
from bitsback.inputs import Inputs, call, chosen, rows
from bitsback.kl import Panels
from bitsback.kl.quadrature import gaussian_expectation
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.given import checked_likelihood
from bitsback.model import BayesianModel, Weight
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import Prior
from bitsback.units import bits_to_nats

__all__ = ["Guide", "Program", "Targets", "as_pyro"]

HALF_LOG_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)
"""Differential entropy of the standard normal distribution, in nats."""


OVERWRITTEN = (
    "Pyro's parameter store already has '{name}' of an earlier program of prefix='{prefix}', whose trained numbers are now "
    "overwritten: both programs share these. Give each its own prefix=, or call pyro.clear_param_store() first if the earlier "
    "one is not needed"
)


def as_pyro(
    model: BayesianModel, likelihood: Likelihood, *, examples: int | None = None, prefix: str = ""
) -> tuple["Program", "Guide"]:
    """Return a Pyro program and its guide with a plain site for each weight, named as the weight is.

    ``SVI``, ``Trace_ELBO``, ``TraceMeanField_ELBO``, ``Predictive`` and :func:`ledger_of` take them. The loss, -ELBO, is the
    ledger's net bits times ln 2: learned numbers of prior and likelihood, which the program holds at their present
    values, and weights without a posterior are in it as a factor. The guide's parameters are Pyro's, ``WEIGHT.mean`` and
    ``WEIGHT.std``; ``guide.write_back()`` writes them into the model.

    Args:
        model: Bayesian model; its network is called with the drawn weights, and not changed.
        likelihood: of the targets, fitted to them if it needs that.
        examples: size of the whole training set, if the program will be called with batches of it; default: each call has all.
        prefix: before the names of sites and parameters, and so of results (``PREFIXtargets``), for several programs in one
            process; a second one of the same prefix overwrites the parameters of the first, with a warning.

    Returns:
        The program, called with inputs and targets (None to draw them), and the guide, called with the same.

    Raises:
        LedgerError: for a point estimate, whose code on a grid is no density.

    >>> from bitsback.likelihoods import CategoricalLikelihood
    >>> from bitsback.model import bayesianize
    >>> from pyro.infer import TraceMeanField_ELBO
    >>> from torch import nn
    >>> bayesian = bayesianize(nn.Linear(4, 3), {"kind": "gaussian", "learn": "none"})
    >>> program, guide = as_pyro(bayesian, CategoricalLikelihood(3))
    >>> TraceMeanField_ELBO().loss(program, guide, torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])) > 0
    True
    """
    if not isinstance(model, BayesianModel):
        raise LedgerError(f"give a BayesianModel, as bitsback.bayesianize makes it; got {type(model).__name__}")
    checked_likelihood(likelihood)
    points = [weight.name for weight in model.weights if not isinstance(weight.posterior, GaussianPosterior)]
    if points:
        raise LedgerError(
            f"'{points[0]}' is a point estimate, which is coded on a grid and has no density for Pyro; train it with "
            "posterior.kind=gaussian"
        )
    model.honour_edits(everywhere=True)
    return Program(model, likelihood, examples, prefix), Guide(model, prefix)


class Program:
    """Pyro program of a model: its weights drawn from their priors, and targets from the likelihood.

    Attributes:
        model: the model.
        likelihood: a copy of its likelihood, whose learned numbers are fixed.
        examples: size of the training set; None: that of the call.
        prefix: before the names of the sites.
        charged_bits: bits of learned numbers and of weights without a posterior.
    """

    def __init__(self, model: BayesianModel, likelihood: Likelihood, examples: int | None, prefix: str) -> None:
        self.model, self.examples, self.prefix = model, examples, prefix
        self.likelihood = copy.deepcopy(likelihood).requires_grad_(False)
        self._priors = {id(prior): copy.deepcopy(prior).requires_grad_(False) for prior, _ in model.weights_by_prior()}
        charges = math.fsum(charge.bits for charge in [*model.charges(), *likelihood.charges()])
        self.charged_bits = charges + model.deterministic_bits()

    def __call__(self, inputs: Inputs, targets: Tensor | None = None) -> Tensor:
        """Draw weights, and targets unless they are given.

        Args:
            inputs: (n, ...), as the network takes them.
            targets: (n, ...), in the numbers of the likelihood; None draws them.

        Returns:
            The targets, (n, ...).

        Raises:
            DataError: when there are more examples than the training set has.
        """
        values = {name: parameter.detach() for name, parameter in self.model.deterministic()}
        for weight in self.model.weights:
            drawn = pyro.sample(self.prefix + weight.name, _prior(weight, self._priors[id(weight.prior)]))
            if drawn.shape != weight.posterior.mean.shape:
                raise DataError(f"'{weight.name}' was drawn in shape {tuple(drawn.shape)}: a network takes one draw of "
                                "its weights at a "
                                "time; leave parallel=True and vectorize_particles=True out")  # fmt: skip
            values[weight.name] = drawn
        if self.charged_bits:
            pyro.factor(f"{self.prefix}charges", torch.tensor(-bits_to_nats(self.charged_bits), device=self.model.device))

        def network(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(self.model.network, values, args, kwargs)

        outputs = chosen(call(network, inputs), self.model.output)
        count = rows(inputs)
        size = count if self.examples is None else self.examples
        if count > size:
            raise DataError(
                f"a batch has {count} examples, and the training set {size}; give examples= the size of the whole set"
            )
        with pyro.plate(f"{self.prefix}data", size, subsample=torch.arange(count, device=outputs.device)):
            found: Tensor = pyro.sample(f"{self.prefix}targets", Targets(self.likelihood, outputs, targets), obs=targets)
        return found


class Guide:
    """Guide of a model's program: an independent Gaussian for each weight, its mean and std parameters of Pyro.

    Attributes:
        model: the model, at whose posteriors the parameters start.
        prefix: before the names of sites and parameters.
    """

    def __init__(self, model: BayesianModel, prefix: str) -> None:
        self.model, self.prefix = model, prefix
        store = pyro.get_param_store()
        names = [self._name(weight, part) for weight in model.weights for part in ("mean", "std")]
        old = [name for name in names if name in store]  # another program's would take the place of these
        if old:
            warnings.warn(OVERWRITTEN.format(name=old[0], prefix=prefix), stacklevel=3)
        for name in old:
            del store[name]
        with torch.no_grad():
            self()

    def _name(self, weight: Weight, part: str) -> str:
        return f"{self.prefix}{weight.name}.{part}"

    def moments(self, weight: Weight) -> tuple[Tensor, Tensor]:
        """Return mean and std of a weight, the parameters that Pyro trains."""
        q = weight.posterior
        assert isinstance(q, GaussianPosterior)
        mean = pyro.param(self._name(weight, "mean"), lambda: q.mean.detach().clone())
        std = pyro.param(self._name(weight, "std"), lambda: q.std().detach().clone(), constraint=constraints.positive)
        return mean, std

    def __call__(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Draw every weight; the arguments are those of the program, and not used."""
        drawn = {}
        for weight in self.model.weights:
            mean, std = self.moments(weight)
            drawn[weight.name] = pyro.sample(self.prefix + weight.name, dist.Normal(mean, std).to_event(mean.ndim))
        return drawn

    @torch.no_grad()
    def write_back(self) -> BayesianModel:
        """Write the trained means and stds into the model's posteriors, and return the model."""
        for weight in self.model.weights:
            mean, std = self.moments(weight)
            assert isinstance(weight.posterior, GaussianPosterior)
            weight.posterior.mean.copy_(mean)
            weight.posterior.set_std(std)
        self.model.start()
        return self.model


def _prior(weight: Weight, prior: Prior) -> Any:
    """Return the prior of a weight tensor as a distribution of Pyro, one event of the weight's shape."""
    p, shape = prior(), weight.posterior.mean.shape
    batch = shape[: len(shape) - len(p.event_shape)]
    if type(p) is torch.distributions.Normal:  # with closed forms of their own
        return dist.Normal(p.loc, p.scale).expand(batch).to_event(len(batch))
    if type(p) is torch.distributions.Laplace:
        return dist.Laplace(p.loc, p.scale).expand(batch).to_event(len(batch))
    return Borrowed(prior, p, batch).to_event(len(batch))


class Borrowed(dist.TorchDistribution):
    """Prior of this package as a distribution of Pyro; its KL from a normal is the ledger's, by quadrature."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, prior: Prior, inner: Distribution, batch: torch.Size) -> None:
        self.prior, self.inner = prior, inner
        super().__init__(batch, inner.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Return all reals."""
        return constraints.independent(constraints.real, len(self.event_shape)) if self.event_shape else constraints.real

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Return whether draws are differentiable."""
        return bool(self.inner.has_rsample)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Borrowed":
        """Return the distribution with another batch shape.

        Args:
            batch_shape: the shape.

        Returns:
            The distribution.
        """
        return Borrowed(self.prior, self.inner, torch.Size(batch_shape))

    def _drawn(self, draw: Callable[[torch.Size], Tensor], sample_shape: Any) -> Tensor:
        """Return draws of the given sample shape, one for each element of the batch."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        if self.inner.batch_shape.numel() != 1:
            raise PriorError(f"a prior of shape {tuple(self.inner.batch_shape)} cannot be drawn here; draw from the guide")
        return draw(shape).reshape(shape + self.event_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws of the given sample shape."""
        return self._drawn(self.inner.sample, sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return differentiable draws of the given sample shape."""
        return self._drawn(self.inner.rsample, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, in the batch shape."""
        return self.inner.log_prob(value).expand(value.shape[: value.ndim - len(self.event_shape)])


@register_kl(torch.distributions.Normal, Borrowed)  # type: ignore[untyped-decorator]
def _kl_by_quadrature(q: torch.distributions.Normal, p: Borrowed) -> Tensor:
    """Return the KL of a normal and a prior, in nats and in their batch shape; differentiable in mean and std."""
    if p.event_shape or p.inner.batch_shape.numel() != 1:
        raise NotImplementedError
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    mean, std = q.loc.expand(shape).flatten(), q.scale.expand(shape).flatten()
    cross = gaussian_expectation(lambda w: -p.inner.log_prob(w), mean, std, p.prior.breakpoints(), Panels.exact())
    return (cross - std.log() - HALF_LOG_2_PI_E).reshape(shape)


class Coded(constraints.Constraint):
    """Support of targets that a likelihood codes: its own check says which numbers it takes."""

    is_discrete = True

    def __init__(self, event_dim: int) -> None:
        self._event_dim = event_dim
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Return the number of axes of a target."""
        return self._event_dim

    def check(self, value: Tensor) -> Tensor:
        """Return True for every target."""
        return torch.ones(value.shape[: value.ndim - self._event_dim], dtype=torch.bool, device=value.device)


class Targets(dist.TorchDistribution):
    """Targets of examples under a likelihood: the probability is that of its code, on a grid for real numbers."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, likelihood: Likelihood, outputs: Tensor, targets: Tensor | None) -> None:
        self.likelihood, self.outputs = likelihood, outputs
        shape = _drawn_from(likelihood, outputs).batch_shape[1:] if targets is None else targets.shape[1:]
        super().__init__(torch.Size([len(outputs)]), torch.Size(shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Return a discrete support: every target has a probability."""
        return Coded(len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Targets":
        """Return itself: there is one distribution for each example.

        Args:
            batch_shape: (n,).

        Returns:
            The distribution.
        """
        assert torch.Size(batch_shape) == self.batch_shape
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of each example's target in nats, (n,)."""
        return -bits_to_nats(self.likelihood.bits(self.outputs, value))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return drawn targets, (..., n, ...), real ones on their grid."""
        drawn = _drawn_from(self.likelihood, self.outputs).sample(torch.Size(sample_shape))
        step = getattr(self.likelihood, "target_step", None)
        return (drawn / step).round() * step if step else drawn


def _drawn_from(likelihood: Likelihood, outputs: Tensor) -> Distribution:
    """Return the distribution of the targets, of their shape; raises DataError for a likelihood that says its code alone."""
    mean = likelihood.predict(outputs)
    if likelihood.kind == "categorical":
        return torch.distributions.Categorical(probs=mean)
    if mean.ndim > 1 and mean.shape[-1] == 1:
        mean = mean.squeeze(-1)
    if likelihood.kind == "bernoulli":
        return torch.distributions.Bernoulli(probs=mean)
    if likelihood.kind == "poisson":
        return torch.distributions.Poisson(mean)
    variance = likelihood.variance(outputs)
    if likelihood.kind == "gaussian" and variance is not None:
        return torch.distributions.Normal(mean, variance.reshape(mean.shape).sqrt())
    if likelihood.kind == "negative_binomial" and variance is not None:
        count = mean.square() / (variance.reshape(mean.shape) - mean)
        return torch.distributions.NegativeBinomial(count, probs=mean / (mean + count))
    raise DataError(f"targets of the likelihood '{likelihood.kind}' cannot be drawn; give the program its targets")
