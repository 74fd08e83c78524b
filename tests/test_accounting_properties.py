"""Properties that any ledger keeps: sums, minus the ELBO, and what must not change it."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from test_priors import MEMBERS
from torch import nn

from bitsback.data import Examples
from bitsback.kl import kl
from bitsback.likelihoods import CategoricalLikelihood, GaussianLikelihood
from bitsback.model import State, bayesianize, evaluate, take_ledger
from bitsback.posteriors import GaussianPosterior
from bitsback.priors import CheckpointPrior, GaussianPrior, GroupGaussianPrior
from bitsback.testing._priors import dense_kl_nats

LN2 = math.log(2)
CLASSES = 3
FIXED = {"kind": "laplace", "scale": 0.4, "learn": "none"}
EXACT = 1e-11
"""Relative, between sums of the same float64 numbers in another order: a few thousand terms, each rounded to 1e-16."""

sizes = st.integers(1, 4)
seeds = st.integers(0, 2**20)


def random_examples(inputs, count=30, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=draw, dtype=torch.float64)
    return Examples(x, torch.randint(CLASSES, (count,), generator=draw))


def dense(inputs, hidden, outputs, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def jittered(model, seed=0):
    """Posterior stds that differ from weight to weight."""
    draw = torch.Generator().manual_seed(seed)
    for posterior in model.posteriors():
        posterior.log_std.data += 0.5 * torch.randn(posterior.log_std.shape, generator=draw).to(posterior.log_std)
    return model


def with_priors(model, prior_of):
    """Exchange the prior of every weight tensor."""
    for weight in model.weights:
        weight.prior = prior_of(weight).to(weight.posterior.mean.dtype)
    model.priors = nn.ModuleList(weight.prior for weight in model.weights)
    return model


def entries(ledger):
    return {entry.name: entry for entry in ledger.entries}


PRIORS = [
    *MEMBERS,
    lambda shape: GroupGaussianPrior(shape, axis=0, scale=0.2, learn="closed_form"),
    lambda shape: CheckpointPrior(torch.linspace(-1, 1, shape.numel()).reshape(shape), 0.2, source="before"),
]


def prior_name(prior):
    return getattr(prior, "kind", None) or prior(torch.Size([2, 2])).kind


def cross_entropy_nats(prior, mean, std):
    """E_q[-log p(w)], summed over the weights, by brute force or from the textbook."""
    if isinstance(prior, GaussianPrior | GroupGaussianPrior | CheckpointPrior):
        centre, scale = np.asarray(prior.mean), np.asarray(prior.typical_scale().detach())
        return float((np.log(scale * np.sqrt(2 * np.pi)) + ((mean - centre) ** 2 + std**2) / (2 * scale**2)).sum())
    pairs = zip(mean.flatten(), std.flatten(), strict=True)
    return math.fsum(dense_kl_nats(prior, m, s) + float(stats.norm(m, s).entropy()) for m, s in pairs)


@pytest.mark.parametrize("prior", PRIORS, ids=prior_name)
@settings(max_examples=2)
@given(inputs=st.integers(1, 2), seed=seeds, exponent=st.integers(0, 20))
def test_gross_and_refund_are_what_they_say_and_their_difference_is_net(prior, inputs, seed, exponent):
    """Each found by itself: cross-entropy on the grid, entropy on the grid, divergence."""
    torch.manual_seed(seed)
    outputs = 2
    model = jittered(bayesianize(nn.Linear(inputs, outputs, bias=False).double(), FIXED), seed)
    with_priors(model, lambda w: copy.deepcopy(prior) if isinstance(prior, nn.Module) else prior(w.posterior.mean.shape))
    likelihood, examples, step = CategoricalLikelihood(outputs), random_examples(inputs, seed=seed), 2.0**-exponent
    examples = Examples(examples.inputs, examples.targets % outputs)
    ledger = take_ledger(model, likelihood, examples, samples=1, grid_step=step)
    for weight in model.weights:
        entry, mean = entries(ledger)[weight.name], weight.posterior.mean.detach().numpy()
        std, count = weight.posterior.std().detach().numpy(), weight.posterior.numel
        cross, entropy = cross_entropy_nats(weight.prior, mean, std), float(stats.norm(0, std).entropy().sum())
        grid_bits = count * exponent
        assert entry.weights == count
        assert entry.gross_bits == pytest.approx(cross / LN2 + grid_bits, rel=1e-6, abs=1e-6)
        assert entry.refund_bits == pytest.approx(entropy / LN2 + grid_bits, rel=1e-9, abs=1e-9)
        assert entry.net_bits == pytest.approx((cross - entropy) / LN2, rel=1e-6, abs=1e-6)
        assert entry.net_bits >= -1e-9
    assert ledger.gross_weight_bits - ledger.refund_bits == pytest.approx(ledger.net_weight_bits, rel=1e-9, abs=1e-9)
    assert ledger.gross_bits - ledger.refund_bits == pytest.approx(ledger.net_bits, rel=1e-9, abs=1e-9)
    sums = ledger.data_bits, *(e.net_bits for e in ledger.entries), *(c.numbers * c.bits_each for c in ledger.charges)
    assert ledger.net_bits == pytest.approx(math.fsum(sums), rel=EXACT)
    assert ledger.weights == sum(q.numel for q in model.posteriors())


@pytest.mark.parametrize("prior", MEMBERS, ids=prior_name)
def test_the_net_does_not_know_the_grid(prior):
    model = with_priors(jittered(bayesianize(dense(3, 2, CLASSES).double(), FIXED)), lambda w: copy.deepcopy(prior))
    ledgers = [
        take_ledger(model, CategoricalLikelihood(CLASSES), random_examples(3, 5), samples=2, grid_step=step)
        for step in (1.0, 3e-5, None)
    ]
    first = ledgers[0]
    for ledger in ledgers[1:]:
        finer = math.log2(first.grid_step / ledger.grid_step)
        for name, entry in entries(ledger).items():
            before = entries(first)[name]
            assert entry.net_bits == pytest.approx(before.net_bits, rel=EXACT)
            assert entry.gross_bits - before.gross_bits == pytest.approx(finer * entry.weights, rel=1e-9)
            assert entry.refund_bits - before.refund_bits == pytest.approx(finer * entry.weights, rel=1e-9)
        assert ledger.net_bits == pytest.approx(first.net_bits, rel=EXACT)


def test_weights_without_a_posterior_pay_what_they_cost_and_get_nothing_back():
    model = bayesianize(dense(3, 4, CLASSES), FIXED, exclude=["2.*"])
    ledger = take_ledger(model, CategoricalLikelihood(CLASSES), random_examples(3), samples=2)
    for name, entry in entries(ledger).items():
        assert entry.gross_bits - entry.refund_bits == pytest.approx(entry.net_bits, rel=1e-9)
        if name.startswith("2."):
            assert (entry.gross_bits, entry.refund_bits) == (32 * entry.weights, 0.0)
    assert ledger.weights == 3 * 4 + 4 + 4 * CLASSES + CLASSES


# ------------------------------------------------------------------------------------------------ minus the ELBO, by Pyro


def prior_in_pyro(kind, shape, scale):
    """The same prior, written by hand."""
    zero = torch.zeros(shape, dtype=torch.float64)
    made = {
        "gaussian": lambda: dist.Normal(zero, scale),
        "laplace": lambda: dist.Laplace(zero, scale),
        "student_t": lambda: dist.StudentT(4.0, zero, scale),
        "scale_mixture": lambda: dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.75, 0.25], dtype=torch.float64).expand(*shape, 2)),
            dist.Normal(torch.zeros(*shape, 2, dtype=torch.float64), torch.tensor([0.1, 1.0], dtype=torch.float64)),
        ),
    }[kind]()
    return made.to_event(len(shape))


BY_HAND = {
    "gaussian": {"kind": "gaussian", "scale": 0.4, "learn": "none"},
    "laplace": {"kind": "laplace", "scale": 0.4, "learn": "none"},
    "student_t": {"kind": "student_t", "scale": 0.4, "df": 4.0, "learn": "none"},
    "scale_mixture": {"kind": "scale_mixture", "scales": [0.1, 1.0], "weights": [0.75, 0.25], "learn": "none"},
}
CLOSED_IN_PYRO = ("gaussian", "laplace")


def linear_forward(values, x):
    return x @ values["weight"].T + values["bias"]


def two_layer_forward(values, x):
    hidden = torch.tanh(x @ values["0.weight"].T + values["0.bias"])
    return hidden @ values["2.weight"].T + values["2.bias"]


class ByHand:
    """Model and guide of a network in Pyro; nothing of the package but the numbers of the posterior."""

    def __init__(self, kind, model, forward, examples, observe):
        self.moments = {w.name: (w.posterior.mean.detach(), w.posterior.std().detach()) for w in model.weights}
        self.kind, self.forward, self.examples, self.observe = kind, forward, examples, observe

    def model(self):
        scale = torch.tensor(0.4, dtype=torch.float64)
        values = {
            name: pyro.sample(name, prior_in_pyro(self.kind, mean.shape, scale)) for name, (mean, _) in self.moments.items()
        }
        with pyro.plate("data", len(self.examples)):
            self.observe(self.forward(values, self.examples.inputs), self.examples.targets)

    def guide(self):
        for name, (mean, std) in self.moments.items():
            pyro.sample(name, dist.Normal(mean, std).to_event(mean.ndim))

    def data_bits(self, values):
        """What the targets cost given weights."""
        trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace()
        trace.compute_log_prob()
        return -sum(float(site["log_prob_sum"]) for name, site in trace.nodes.items() if name in ("y", "grid")) / LN2

    def losses(self, elbo, particles):
        pyro.set_rng_seed(1)
        return np.array([elbo.loss(self.model, self.guide) for _ in range(particles)]) / LN2


def observe_class(outputs, targets):
    pyro.sample("y", dist.Categorical(logits=outputs), obs=targets)


NOISE, STEP = 0.31, 0.02


def observe_real(noise):
    def observe(outputs, targets):
        """A grid of step s has bins of that width: the mass of one is density times s."""
        on_grid = torch.round(targets / STEP) * STEP
        pyro.sample("y", dist.Normal(outputs[:, 0], noise), obs=on_grid)
        pyro.factor("grid", torch.full((len(targets),), math.log(STEP), dtype=torch.float64))

    return observe


def by_hand_pair(network, task, kind):
    """A model with its likelihood and examples, and the same in Pyro."""
    outputs = CLASSES if task == "classes" else 1
    torch.manual_seed(4)
    net, forward = {
        "linear": (nn.Linear(3, outputs), linear_forward),
        "two layers": (dense(3, 4, outputs, 4), two_layer_forward),
    }[network]
    model, examples = jittered(bayesianize(net.double(), BY_HAND[kind])), random_examples(3, 25)
    if task == "classes":
        return model, CategoricalLikelihood(CLASSES), examples, ByHand(kind, model, forward, examples, observe_class)
    likelihood = GaussianLikelihood(NOISE, noise="learned", target_step=STEP).double()
    likelihood.round_to_grid()
    examples = Examples(examples.inputs, examples.inputs.sum(1) + 0.3 * torch.sin(9 * examples.inputs[:, 0]))
    noise = likelihood.log_std.detach().exp()
    assert float(noise) == pytest.approx(NOISE, rel=0.02)
    return model, likelihood, examples, ByHand(kind, model, forward, examples, observe_real(noise))


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("task", ["classes", "real"])
@pytest.mark.parametrize("network", ["linear", "two layers"])
def test_the_total_is_minus_the_elbo_of_a_model_written_in_pyro(network, task, kind):
    model, likelihood, examples, by_hand = by_hand_pair(network, task, kind)
    draws = 12
    ledger = take_ledger(model, likelihood, examples, samples=draws, seed=7)
    assert ledger.hyperparameter_bits == (10.0 if task == "real" else 0.0)
    paid = evaluate(model, likelihood, examples, samples=draws, seed=7)

    # under the same weights, the same data bits
    found = []
    for number in range(-1, -1 - draws, -1):
        noises = [model.noise(weight, State("draw", 7, number)) for weight in model.weights]
        drawn = {w.name: w.posterior.mean + w.posterior.std() * noise for w, noise in zip(model.weights, noises, strict=True)}
        found.append(by_hand.data_bits(drawn))
    assert paid.draws_bits == pytest.approx(found, rel=1e-9)
    assert ledger.data_bits == pytest.approx(np.mean(found), rel=1e-9)
    assert ledger.data_bits_stderr == pytest.approx(stats.sem(found), rel=1e-6)

    # the KL: exactly where Pyro has it in closed form, else within the error of its draws
    elbo = TraceMeanField_ELBO() if kind in CLOSED_IN_PYRO else Trace_ELBO()
    hidden = poutine.block(by_hand.model, hide=["y", "grid"])
    if kind in CLOSED_IN_PYRO:
        assert ledger.net_weight_bits == pytest.approx(elbo.loss(hidden, by_hand.guide) / LN2, rel=1e-5)
    particles = 120
    losses = by_hand.losses(elbo, particles)
    error = math.hypot(stats.sem(losses), ledger.data_bits_stderr)
    total = ledger.net_bits - ledger.hyperparameter_bits
    assert abs(total - losses.mean()) < 4.5 * error, (total, losses.mean(), error)
    assert error < 0.1 * total  # the comparison says something


# ----------------------------------------------------------------------------------------- what equals its prior is free


@settings(max_examples=15)
@given(inputs=sizes, outputs=st.integers(2, 4), scale=st.floats(1e-3, 30.0), mean=st.floats(-3, 3), seed=seeds)
def test_a_posterior_that_is_its_prior_costs_nothing(inputs, outputs, scale, mean, seed):
    """In single precision, as weights are stored; under every prior that is Gaussian, weight by weight."""
    torch.manual_seed(seed)
    shape = torch.Size([outputs, inputs])
    priors = [
        GaussianPrior(scale, mean=mean),
        GroupGaussianPrior(shape, axis=1, scale=scale, mean=mean),
        CheckpointPrior(torch.randn(shape), scale, source="before"),
    ]
    for prior in priors:
        model = bayesianize(nn.Linear(inputs, outputs, bias=False), FIXED)
        with_priors(model, lambda w, prior=prior: prior)
        posterior = model.weights[0].posterior
        posterior.mean.data.copy_(prior.mean.expand(shape))
        posterior.log_std.data.copy_(prior.log_scale.expand(shape))
        examples = random_examples(inputs)
        examples = Examples(examples.inputs, examples.targets % outputs)
        ledger = take_ledger(model, CategoricalLikelihood(outputs), examples, samples=1)
        assert abs(ledger.net_weight_bits) < 1e-9, prior.kind
        assert ledger.gross_weight_bits == pytest.approx(ledger.refund_bits, rel=1e-12, abs=1e-9)
        posterior.log_std.data += 0.01
        moved = take_ledger(model, CategoricalLikelihood(outputs), examples, samples=1)
        assert moved.net_weight_bits == pytest.approx((math.exp(0.02) / 2 - 0.5 - 0.01) / LN2 * shape.numel(), rel=1e-2)


def divergence(prior, mean, std):
    with torch.no_grad():
        q = GaussianPosterior(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64))
        return float(kl(q, prior).nats)


@pytest.mark.parametrize("prior", MEMBERS, ids=prior_name)
def test_the_cheapest_posterior_is_the_one_that_is_most_like_the_prior(prior):
    """No divergence is below zero, and where the least one is found, every step away from it costs more."""
    prior = copy.deepcopy(prior).double()
    width = float(prior.typical_scale().detach())
    centre = float(getattr(prior, "mean", torch.zeros(())).detach().mean())
    start = min(
        ((centre + shift * width, width * 2.0**octave) for shift in (-2.0, -0.5, 0.0, 0.5, 2.0) for octave in range(-8, 5)),
        key=lambda pair: divergence(prior, *pair),
    )
    q = GaussianPosterior(torch.tensor([start[0]], dtype=torch.float64), start[1])
    descent = torch.optim.LBFGS(q.parameters(), lr=0.5, max_iter=60, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        descent.zero_grad()
        nats = kl(q, prior).nats
        nats.backward(inputs=list(q.parameters()))
        return nats

    descent.step(loss)
    mean, std = float(q.mean.detach()), float(q.std().detach())
    least = divergence(prior, mean, std)
    assert -1e-9 <= least <= divergence(prior, *start) + 1e-12
    draw = np.random.default_rng(0)
    for size in (0.05, 0.3, 2.0):
        for shift, stretch in size * draw.choice([-1.0, 1.0], (4, 2)) * draw.uniform(0.5, 1.0, (4, 2)):
            assert divergence(prior, mean + shift * std, std * math.exp(stretch)) > least, (shift, stretch)


# ------------------------------------------------------------------------------------------------- what changes nothing


def same_account(one, other, *, names=True):
    """Weight bits, charges and totals of two ledgers agree."""
    assert one.weights == other.weights
    assert one.net_weight_bits == pytest.approx(other.net_weight_bits, rel=EXACT)
    assert one.refund_bits == pytest.approx(other.refund_bits, rel=EXACT)
    assert one.hyperparameter_bits == other.hyperparameter_bits
    if names:
        for name, entry in entries(one).items():
            assert entry.net_bits == pytest.approx(entries(other)[name].net_bits, rel=EXACT)


class Halves(nn.Module):
    """A linear layer whose outputs are computed in two parts."""

    def __init__(self, whole, cut):
        super().__init__()
        self.parts = nn.ModuleList()
        for rows in (slice(None, cut), slice(cut, None)):
            part = nn.Linear(whole.in_features, len(whole.weight[rows]), dtype=whole.weight.dtype)
            part.weight.data.copy_(whole.weight.data[rows])
            part.bias.data.copy_(whole.bias.data[rows])
            self.parts.append(part)

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], 1)


@pytest.mark.parametrize("prior", [FIXED, {"kind": "horseshoe", "per": "model"}, {"kind": "gaussian", "per": "model"}], ids=str)
@settings(max_examples=6)
@given(inputs=sizes, hidden=st.integers(2, 6), cut=st.integers(1, 5), seed=seeds)
def test_one_tensor_or_two_is_the_same(prior, inputs, hidden, cut, seed):
    cut, examples = min(cut, hidden - 1), random_examples(inputs, seed=seed)
    whole = dense(inputs, hidden, CLASSES, seed).double()
    parts = copy.deepcopy(whole)
    parts[0] = Halves(whole[0], cut)
    models = [bayesianize(network, prior, posterior={"kind": "gaussian", "std": 0.2}) for network in (whole, parts)]
    widths = models[0].weights[0].posterior, models[0].weights[1].posterior
    for posterior in widths:
        posterior.log_std.data += torch.linspace(-1, 1, posterior.numel, dtype=torch.float64).reshape(posterior.mean.shape)
    for number, rows in enumerate((slice(None, cut), slice(cut, None))):
        for weight, posterior in zip(models[1].weights[2 * number : 2 * number + 2], widths, strict=True):
            weight.posterior.log_std.data.copy_(posterior.log_std.data[rows])
    for model in models:
        model.update_priors()
    likelihood = CategoricalLikelihood(CLASSES)
    same_account(*(take_ledger(model, likelihood, examples, samples=1) for model in models), names=False)
    bits = [evaluate(model, likelihood, examples, samples=0).data_bits for model in models]
    assert bits[0] == pytest.approx(bits[1], rel=EXACT)


class Branches(nn.Module):
    """A sum of branches, whatever their order."""

    def __init__(self, branches, order):
        super().__init__()
        self.branches = nn.ModuleDict({name: branches[name] for name in order})

    def forward(self, x):
        return sum(self.branches[name](x) for name in sorted(self.branches))


@settings(max_examples=10)
@given(order=st.permutations(["a", "b", "c"]), seed=seeds)
def test_the_order_of_layers_is_the_same(order, seed):
    torch.manual_seed(seed)
    branches = {"a": nn.Linear(3, CLASSES), "b": dense(3, 2, CLASSES, seed), "c": nn.Linear(3, CLASSES, bias=False)}
    examples, likelihood, ledgers, bits = random_examples(3, seed=seed), CategoricalLikelihood(CLASSES), [], []
    for names in ("abc", order):
        overrides = {"*.b.*": {"kind": "student_t", "per": "layer"}}
        model = bayesianize(Branches(copy.deepcopy(branches), names).double(), "gaussian", overrides=overrides)
        model.update_priors()
        ledgers.append(take_ledger(model, likelihood, examples, samples=1))
        bits.append(evaluate(model, likelihood, examples, samples=0).data_bits)
    same_account(*ledgers)
    assert bits[0] == pytest.approx(bits[1], rel=EXACT)


def shuffled(examples, seed):
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return Examples(examples.inputs[order], examples.targets[order])


@settings(max_examples=10)
@given(inputs=sizes, hidden=sizes, batch=st.integers(1, 40), seed=seeds)
def test_the_order_of_examples_and_their_batches_are_the_same(inputs, hidden, batch, seed):
    """Under the same draws of the weights, which come before any example is looked at."""
    model, examples = jittered(bayesianize(dense(inputs, hidden, CLASSES, seed).double(), FIXED)), random_examples(inputs)
    likelihood = CategoricalLikelihood(CLASSES)
    one = take_ledger(model, likelihood, examples, samples=3, seed=5)
    other = take_ledger(model, likelihood, shuffled(examples, seed), samples=3, seed=5, batch_size=batch)
    same_account(one, other)
    assert one.data_bits == pytest.approx(other.data_bits, rel=EXACT)
    assert one.data_bits_stderr == pytest.approx(other.data_bits_stderr, rel=1e-6)
    assert one.net_bits == pytest.approx(other.net_bits, rel=EXACT)


@pytest.mark.parametrize("prior", [FIXED, "gaussian", {"kind": "group_gaussian", "group": "output"}], ids=str)
@settings(max_examples=5)
@given(inputs=sizes, hidden=sizes, names=st.permutations(range(CLASSES)), seed=seeds)
def test_the_names_of_classes_are_the_same(prior, inputs, hidden, names, seed):
    """Class k is now called names[k], and its row of the last layer goes along."""
    network, examples = dense(inputs, hidden, CLASSES, seed).double(), random_examples(inputs, seed=seed)
    names = torch.tensor(names)
    renamed, likelihood = copy.deepcopy(network), CategoricalLikelihood(CLASSES)
    for tensor, source in ((renamed[2].weight, network[2].weight), (renamed[2].bias, network[2].bias)):
        tensor.data[names] = source.data
    cases, found = ((network, examples.targets), (renamed, names[examples.targets])), []
    for net, targets in cases:
        model = bayesianize(net, prior, overrides={"*.bias": FIXED}, posterior={"kind": "gaussian", "std": 0.3})
        model.update_priors()
        named = Examples(examples.inputs, targets)
        found.append((take_ledger(model, likelihood, named, samples=1), evaluate(model, likelihood, named, samples=0)))
    (one, before), (other, after) = found
    same_account(one, other)
    assert one.uniform_bits == other.uniform_bits
    assert before.data_bits == pytest.approx(after.data_bits, rel=EXACT)
    assert before.error == pytest.approx(after.error, abs=1e-12)


# ------------------------------------------------------------------------------------------------------ what counts twice


@pytest.mark.parametrize("times", [2, 3])
def test_every_example_twice_is_twice_the_data_and_the_same_model(times):
    model, examples = jittered(bayesianize(dense(3, 4, CLASSES).double(), "gaussian")), random_examples(3)
    again = Examples(examples.inputs.repeat(times, 1), examples.targets.repeat(times))
    one, other = (
        take_ledger(model, CategoricalLikelihood(CLASSES), data, samples=4, seed=3, priors_are_held=True)
        for data in (examples, again)
    )
    assert other.data_bits == pytest.approx(times * one.data_bits, rel=EXACT)
    assert other.uniform_bits == pytest.approx(times * one.uniform_bits, rel=EXACT)
    same_account(one, other)
    assert other.net_bits - one.net_bits == pytest.approx((times - 1) * one.data_bits, rel=1e-9)


SHARED = {
    "gaussian": 1, "laplace": 1, "student_t": 1, "cauchy": 1, "logistic": 1, "horseshoe": 1,
    "scale_mixture": 0, "spike_and_slab": 0, "adaptive_mixture": 0,
}  # fmt: skip
"""Learned scales of each kind; 0: of mixtures, however many there are."""


@pytest.mark.parametrize("kind", SHARED)
def test_a_prior_that_weights_share_is_charged_once(kind):
    charged = {}
    for per, network in (("model", nn.Linear(3, CLASSES)), ("model", dense(3, 4, CLASSES)), ("tensor", dense(3, 4, CLASSES))):
        model = bayesianize(network, {"kind": kind, "per": per})
        ledger = take_ledger(model, CategoricalLikelihood(CLASSES), random_examples(3), samples=1, priors_are_held=True)
        charged[per, len(model.weights)] = ledger.hyperparameter_bits
    once = charged["model", 2]
    assert once > 0
    assert charged["model", 4] == once
    assert charged["tensor", 4] == 4 * once
    if SHARED[kind]:
        assert once == 10.0 * SHARED[kind]


class Twice(nn.Module):
    """One weight tensor under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_a_tied_weight_is_charged_once():
    model = bayesianize(Twice(), FIXED)
    examples = Examples(torch.randn(20, 4), torch.arange(20) % 4)
    ledger = take_ledger(model, CategoricalLikelihood(4), examples, samples=1)
    assert ledger.weights == 4 * 4 + 4 + 4
    by_name = {w.name: float(kl(w.posterior, w.prior).bits.detach()) for w in model.weights}
    assert len(by_name) == 3
    assert ledger.net_weight_bits == pytest.approx(sum(by_name.values()), rel=1e-5)
