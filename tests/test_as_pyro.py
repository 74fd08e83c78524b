"""A model of this package as a Pyro program: its -ELBO is our net bits, and Pyro's tools take it."""

import math
import warnings

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import bitsback
from bitsback.errors import DataError, LedgerError
from bitsback.interop.pyro import as_pyro, ledger_of
from bitsback.kl import kl
from bitsback.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    TokensLikelihood,
)

LOG2 = math.log(2)
DRAWS = 100
PRIORS = {
    "gaussian": {"scale": 0.5, "learn": "closed_form"},
    "laplace": {"scale": 0.4, "learn": "none"},
    "student_t": {"scale": 0.4},
    "horseshoe": {"scale": 0.3},
    "scale_mixture": {},
    "pyro": {"distribution": "SoftLaplace", "arguments": {"loc": 0.1, "scale": 0.5}},
    "group_gaussian": {"scale": 0.5},
}


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()


def setting(prior="gaussian", dtype=torch.float64, **more):
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    model = bitsback.bayesianize(network, {"kind": prior, **PRIORS[prior], **more})
    x = torch.randn(40, 4, dtype=dtype)
    return model, x, x[:, :3].argmax(1)


@pytest.mark.parametrize("prior", PRIORS)
def test_minus_elbo_is_net_bits(prior):
    model, x, y = setting(prior)
    likelihood = CategoricalLikelihood(3)
    ledger = bitsback.take_ledger(model, likelihood, (x, y), samples=300)
    program, guide = as_pyro(model, likelihood)
    one = poutine.block(program, hide=["targets"])
    with torch.no_grad():
        without_data = TraceMeanField_ELBO().loss(one, guide, x, y) / LOG2
        losses = torch.tensor([TraceMeanField_ELBO().loss(program, guide, x, y) / LOG2 for _ in range(DRAWS)])
    charged = ledger.net_weight_bits + ledger.hyperparameter_bits
    assert without_data == pytest.approx(charged, rel=1e-5)  # the KL, for every prior without an event of its own
    spread = 6 * (losses.std() / math.sqrt(DRAWS) + ledger.data_bits_stderr)
    assert float(losses.mean()) == pytest.approx(ledger.net_bits, abs=float(spread))
    assert [name for name, site in poutine.trace(guide).get_trace().nodes.items() if site["type"] == "sample"] == [
        weight.name for weight in model.weights
    ]


@pytest.mark.parametrize("prior", PRIORS)
def test_weights_and_targets_are_drawn_from_the_prior(prior):
    model, x, _ = setting(prior)
    program, _ = as_pyro(model, CategoricalLikelihood(3))
    drawn = Predictive(program, num_samples=50)(x)
    assert drawn["0.weight"].shape == (50, 1, 6, 4)
    assert drawn["targets"].shape == (50, 40)
    wanted = model.weights[0].prior().sample((5000,)).abs().median()
    assert 0.75 < float(drawn["0.weight"].abs().median() / wanted) < 1.33


def test_the_loss_and_its_gradient_are_those_of_quadrature():
    model, x, y = setting("horseshoe")
    program, guide = as_pyro(model, CategoricalLikelihood(3))
    one = poutine.block(program, hide=["targets", "charges"])
    TraceMeanField_ELBO().loss_and_grads(one, guide, x, y)
    for weight in model.weights:
        for parameter in weight.posterior.parameters():
            parameter.requires_grad_(True)
        cost = kl(weight.posterior, weight.prior)
        by_mean, by_log_std = torch.autograd.grad(cost.nats, [weight.posterior.mean, weight.posterior.log_std])
        unconstrained = pyro.get_param_store()._params
        torch.testing.assert_close(unconstrained[f"{weight.name}.mean"].grad, by_mean)
        torch.testing.assert_close(unconstrained[f"{weight.name}.std"].grad, by_log_std)  # Pyro keeps the log of a std
        for parameter in weight.posterior.parameters():
            parameter.requires_grad_(False)


def test_the_ledger_of_the_program_is_the_models():
    model, x, y = setting("laplace")
    likelihood = CategoricalLikelihood(3)
    ledger = bitsback.take_ledger(model, likelihood, (x, y), samples=50)
    program, guide = as_pyro(model, likelihood)
    found = ledger_of(program, guide, x, y, samples=200, grid_step=ledger.grid_step)
    for one, other in zip(ledger.entries, found.entries, strict=True):
        assert one.name == other.name
        assert other.net_bits == pytest.approx(one.net_bits, rel=1e-5)
        assert other.refund_bits == pytest.approx(one.refund_bits, rel=1e-5)
    assert (found.uniform_bits, found.marginal_bits, found.examples) == (ledger.uniform_bits, ledger.marginal_bits, 40)
    spread = 6 * (ledger.data_bits_stderr + found.data_bits_stderr)
    assert found.data_bits == pytest.approx(ledger.data_bits, abs=spread)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_trains_it_in_batches_and_the_model_takes_it_back(loss):
    model, x, y = setting()
    likelihood = CategoricalLikelihood(3)
    before = bitsback.take_ledger(model, likelihood, (x, y), samples=50)
    kept = [parameter.detach().clone() for parameter in model.network.parameters()]
    program, guide = as_pyro(model, likelihood, examples=40)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.02}), loss())
    for step in range(300):
        rows = slice(10 * (step % 4), 10 * (step % 4) + 10)
        svi.step(x[rows], y[rows])
    assert all(torch.equal(a, b) for a, b in zip(kept, model.network.parameters(), strict=True))
    after = bitsback.take_ledger(guide.write_back(), likelihood, (x, y), samples=50)
    assert after.net_bits < before.net_bits - 20
    for weight in model.weights:
        mean, std = guide.moments(weight)
        torch.testing.assert_close(weight.posterior.mean.data, mean.data)
        torch.testing.assert_close(weight.posterior.std(), std.data)
    assert all(prior.log_scale.grad is None for prior in model.priors)


def test_a_batch_counts_for_the_whole_set():
    model, x, y = setting()
    whole, _ = as_pyro(model, CategoricalLikelihood(3))
    part, guide = as_pyro(model, CategoricalLikelihood(3), examples=40)
    drawn = poutine.trace(guide).get_trace()
    nats = []
    for program, rows in ((whole, slice(None)), (part, slice(0, 10)), (part, slice(10, 40))):
        trace = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(x[rows], y[rows])
        trace.compute_log_prob()
        nats.append(float(trace.nodes["targets"]["log_prob_sum"]))
    assert nats[1] / 4 + nats[2] * 3 / 4 == pytest.approx(nats[0], rel=1e-9)
    with pytest.raises(DataError, match="a batch has 40 examples, and the training set 10"):
        as_pyro(model, CategoricalLikelihood(3), examples=10)[0](x, y)


LIKELIHOODS = {
    "categorical": (CategoricalLikelihood(3), 3, torch.arange(40) % 3),
    "bernoulli": (BernoulliLikelihood(), 1, (torch.arange(40) % 2).double()),
    "poisson": (PoissonLikelihood(), 1, (torch.arange(40) % 5).double()),
    "negative_binomial": (NegativeBinomialLikelihood(), 1, (torch.arange(40) % 5).double()),
    "gaussian": (GaussianLikelihood(), 2, torch.linspace(0, 10, 80).double().reshape(40, 2).round(decimals=1)),
}


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_every_likelihood_gives_its_bits_and_draws(kind):
    likelihood, width, y = LIKELIHOODS[kind]
    likelihood = likelihood.double()
    likelihood.fit(y)
    model = bitsback.bayesianize(nn.Linear(4, width).double())
    x = torch.randn(40, 4).double()
    program, guide = as_pyro(model, likelihood)
    trace = poutine.trace(poutine.replay(program, trace=poutine.trace(guide).get_trace())).get_trace(x, y)
    trace.compute_log_prob()
    values = {weight.name: trace.nodes[weight.name]["value"] for weight in model.weights}
    bits = likelihood.bits(torch.func.functional_call(model.network, values, x), y)
    torch.testing.assert_close(-trace.nodes["targets"]["log_prob"], bits * LOG2)
    drawn = Predictive(program, guide=guide, num_samples=400)(x)
    assert drawn["targets"].shape == (400, *y.shape)
    assert drawn["weight"].shape == (400, 1, width, 4)  # Pyro keeps an axis for the plate
    mean = model.predict(x, samples=400, likelihood=likelihood).mean
    if kind != "categorical":
        spread = drawn["targets"].double().std(0) / 20
        assert bool(((drawn["targets"].double().mean(0) - mean.reshape(y.shape)).abs() < 8 * spread + 0.3).all())
    else:
        shares = torch.stack([(drawn["targets"] == k).double().mean(0) for k in range(3)], 1)
        assert float((shares - mean).abs().max()) < 0.15
    program(x, drawn["targets"][0])  # what is drawn can be observed


def test_two_programs_need_two_prefixes_and_weights_without_posterior_are_charged():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = bitsback.bayesianize(network, {"kind": "gaussian", "learn": "none"}, include=["0"])
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    ledger = bitsback.take_ledger(model, CategoricalLikelihood(3), (x, y), samples=2)
    program, guide = as_pyro(model, CategoricalLikelihood(3), prefix="one.")
    as_pyro(setting(dtype=torch.float32)[0], CategoricalLikelihood(3), prefix="two.")
    one = poutine.block(program, hide=["one.targets"])
    assert TraceMeanField_ELBO().loss(one, guide, x, y) / LOG2 == pytest.approx(ledger.net_weight_bits, rel=1e-5)
    assert sum(entry.net_bits for entry in ledger.entries if entry.method == "float32") == 32 * 21
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_second_program_of_the_same_prefix_warns_that_it_overwrites_the_first():
    pyro.clear_param_store()
    model, other = (bitsback.bayesianize(nn.Linear(4, 3), {"kind": "gaussian", "learn": "none"}) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_pyro(model, CategoricalLikelihood(3), prefix="one.")
        as_pyro(other, CategoricalLikelihood(3), prefix="two.")
    with pytest.warns(UserWarning, match=r"already has 'one.weight.mean' .*own prefix="):
        as_pyro(other, CategoricalLikelihood(3), prefix="one.")
    assert torch.equal(pyro.param("one.weight.mean"), other.weights[0].posterior.mean)


def test_what_is_refused():
    point = bitsback.bayesianize(nn.Linear(4, 3), {"kind": "gaussian", "learn": "none"}, posterior="point")
    with pytest.raises(LedgerError, match="'weight' is a point estimate"):
        as_pyro(point, CategoricalLikelihood(3))
    with pytest.raises(LedgerError, match="give a BayesianModel"):
        as_pyro(nn.Linear(4, 3), CategoricalLikelihood(3))
    model, x, y = setting(dtype=torch.float32)
    program, _ = as_pyro(model, TokensLikelihood(3))
    with pytest.raises(DataError, match="cannot be drawn"):
        program(x)
    program, _guide = as_pyro(model, CategoricalLikelihood(3))
    with pytest.raises(DataError, match="one draw of its weights at a time"), pyro.plate("particles", 3, dim=-2):
        program(x, y)
