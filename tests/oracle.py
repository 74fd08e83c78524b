"""The oracle: steps on means and log stds by autograd through mean + std * noise, in float64, with torch's own optimisers.

It reads from a model only where it begins and the noise of its draws. The data cost sees the weights through
``torch.func.functional_call``; the KL comes in closed form, by exact quadrature, or, where training takes -log p at the draw, by
autograd of that.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from bitsback.kl import Panels, kl
from bitsback.model import State
from bitsback.posteriors import GaussianPosterior

N = 40
"""Examples that the small trainings speak of."""

RATES = {"lr": 1e-2, "log_std_lr": 3e-2}


def mlp():
    """A small network."""
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def batches(count=3, rows=12, inputs=5, classes=3):
    """Inputs and labels for it."""
    return [(torch.randn(rows, inputs), torch.randint(classes, (rows,))) for _ in range(count)]


def classify(call, x, y):
    """The mean data cost in nats."""
    return F.cross_entropy(call(x), y)


def doubled(batch):
    """A batch with its real numbers in float64."""
    return [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in batch]


class Oracle:
    """The same training as a model's, beside it.

    Args:
        model: as it is before the first step; its noise is the oracle's.
        network: the plain network, as it was given to ``bayesianize``.
        kind: of torch's optimisers.
        lr, log_std_lr, examples, beta, prior_rate: as the optimisers of bitsback have them.
        dtype: of the network's forward; means, log stds and what is added to them are float64 in any case.
        rates: from a weight's name to the learning rates of its mean and its log std; default: the same for all.
        of_log_std: other arguments for the log stds.
        arguments: of ``kind``.
    """

    def __init__(
        self, model, network, *, examples, lr=1e-2, log_std_lr=None, kind=torch.optim.Adam, beta=1.0, prior_rate=1.0,
        dtype=torch.float64, max_grad_norm=None, rates=None, of_log_std=(), **arguments,
    ):  # fmt: skip
        of_log_std = dict(of_log_std)
        self.model, self.examples, self.beta, self.prior_rate, self.dtype = model, examples, beta, prior_rate, dtype
        self.network = copy.deepcopy(network).to(dtype)
        self.means, self.log_stds = {}, {}
        for weight in model.weights:
            q = weight.posterior
            self.means[weight.name] = q.mean.detach().double().clone().requires_grad_(weight.is_trained)
            if isinstance(q, GaussianPosterior):
                self.log_stds[weight.name] = q.log_std.detach().double().clone().requires_grad_(weight.is_trained)
        pairs = model.weights_by_prior()
        self.priors = [(copy.deepcopy(prior).double(), [w.name for w in weights]) for prior, weights in pairs]
        inside = set(self.means)
        self.plain = {name: p for name, p in self.network.named_parameters() if name not in inside and p.requires_grad}
        self.learned = [p for prior, _ in self.priors for p in prior.parameters()]
        log_std_lr = lr if log_std_lr is None else log_std_lr
        rates = rates or (lambda name: (lr, log_std_lr))
        groups = [{"params": [p], "lr": rates(name)[0]} for name, p in [*self.means.items(), *self.plain.items()]]
        groups += [{"params": [p], "lr": rates(name)[1], **of_log_std} for name, p in self.log_stds.items()]
        groups += [{"params": [p], "lr": lr} for p in self.learned]
        self.optimizer = kind(groups, lr=lr, **arguments)
        self.max_grad_norm, self.grad_norm = max_grad_norm, None

    def weights(self, state):
        """Every weight as a draw says, differentiable in mean and log std."""
        found, pool = {}, self.model.noise_of(state)
        for weight in self.model.weights:
            mean, log_std = self.means[weight.name], self.log_stds.get(weight.name)
            if log_std is None or state.holds == "mean":
                found[weight.name] = mean
                continue
            noise = self.model.noise(weight, state, pool).double() * state.sign
            if weight.constant_row is not None:
                noise[weight.constant_row] = 0
            found[weight.name] = mean + log_std.exp() * noise
        return found

    def under(self, state):
        """The network under a draw, a function of its inputs."""
        weights = {name: w.to(self.dtype) for name, w in self.weights(state).items()}
        return lambda *args, **kwargs: functional_call(self.network, weights, args, kwargs)

    def state(self, number, sign=1):
        """A training draw of the model."""
        return State("draw", self.model.seed, number, sign)

    def kl_nats(self, state):
        """KL(q || p) over all trained weights; where training takes it at the draw, something of the same gradient."""
        return sum(self._kl_of(prior, name, state) for prior, names in self.priors for name in names if self._moves(name))

    def _moves(self, name):
        return self.means[name].requires_grad

    def _kl_of(self, prior, name, state):
        mean, log_std = self.means[name], self.log_stds.get(name)
        if log_std is None:
            return -prior().log_prob(mean).sum()
        if not self.looks_at_draw(prior):
            q = GaussianPosterior(mean.detach(), log_std.detach().exp())
            del q.mean, q.log_std
            q.mean, q.log_std = mean, log_std
            return kl(q, prior, panels=Panels.exact()).nats
        w = self.weights(state)[name]
        fixed = copy.deepcopy(prior).requires_grad_(False)
        at_draw = -fixed().log_prob(w).sum()
        if prior.mirrored:
            at_draw = (at_draw - fixed().log_prob(2 * mean - w).sum()) / 2
        learned = -prior().log_prob(w.detach()).sum()  # the numbers of the prior, from the draw alone
        return at_draw + learned - log_std.sum()

    @staticmethod
    def looks_at_draw(prior):
        """Whether training takes the slope of -log p at the draw, and not the exact gradient."""
        return prior.needs_draw and prior.kind not in ("gaussian", "group_gaussian", "checkpoint", "laplace", "horseshoe")

    def step(self, *costs):
        """One step on the sum of mean costs in nats, each given as (state, cost) with the cost a function of the network."""
        self._follow()
        self.optimizer.zero_grad()
        loss = sum(cost(self.under(state)) for state, cost in costs)
        (loss + self.beta / self.examples * self.kl_nats(costs[-1][0])).backward()
        if self.max_grad_norm is not None:
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self.moved(), self.max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def moved(self):
        """Everything that a step moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def _follow(self):
        for prior, names in self.priors:
            if prior.learns_in_closed_form and self.prior_rate and any(map(self._moves, names)):
                moments = [(self.means[name], self.log_stds[name].exp()) for name in names]
                prior.update(moments, self.prior_rate)


def errors(model, oracle):
    """The largest distance of means, stds (relative to them), parameters without posterior and numbers of priors from the oracle's."""
    found = {"mean": 0.0, "std": 0.0, "plain": 0.0, "prior": 0.0}
    for weight in model.weights:
        q = weight.posterior
        found["mean"] = max(found["mean"], _distance(q.mean, oracle.means[weight.name]))
        if weight.name in oracle.log_stds:
            found["std"] = max(found["std"], _distance(q.log_std, oracle.log_stds[weight.name]))
    for name, parameter in model.deterministic():
        if name in oracle.plain:
            found["plain"] = max(found["plain"], _distance(parameter, oracle.plain[name]))
    for prior, (wanted, _) in zip(model.priors, oracle.priors, strict=True):
        for one, other in zip(prior.state_dict().values(), wanted.state_dict().values(), strict=True):
            found["prior"] = max(found["prior"], _distance(one, other))
    return found


def assert_close(model, oracle, atol=1e-5):
    """Check that means and stds are the oracle's, and all else that is moved."""
    found = errors(model, oracle)
    assert max(found.values()) <= atol, found


def _distance(found, wanted):
    return float((found.detach().double() - wanted.detach().double()).abs().max())
