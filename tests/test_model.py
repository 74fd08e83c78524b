"""Models: priors by pattern, the ledger taken, the width curve, independent recomputations."""

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import nn

import bitsback
from bitsback.data import Examples
from bitsback.errors import LayerError, LedgerError, PriorError
from bitsback.likelihoods import CategoricalLikelihood, GaussianLikelihood
from bitsback.model import State, bayesianize, evaluate, take_ledger, width_curve
from bitsback.model.draws import draws_at_once
from bitsback.posteriors import GaussianPosteriorSettings, PointPosteriorSettings
from bitsback.training import TrainingSettings, train
from bitsback.training.settings import OptimizerSettings

N, D, C = 60, 5, 3
FIXED = {"kind": "gaussian", "learn": "none"}


@pytest.fixture
def examples():
    inputs = torch.randn(N, D)
    return Examples(inputs, (inputs[:, :C] + 0.3 * torch.randn(N, C)).argmax(1))


def network():
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C))


def test_gross_refund_net_by_hand(examples):
    """One Gaussian weight: KL, entropy and cross-entropy from their textbook formulas, in bits."""
    model = bayesianize(nn.Linear(D, C, bias=False), {"kind": "gaussian", "scale": 0.5, "learn": "none"})
    ledger = take_ledger(model, CategoricalLikelihood(C), examples, samples=2, grid_step=2.0**-10)
    q = model.weights[0].posterior
    m, s = q.mean.detach().double().numpy(), q.std().detach().double().numpy()
    gross = (np.log(0.5 * np.sqrt(2 * np.pi)) + (m**2 + s**2) / (2 * 0.25)).sum() / math.log(2) + 10 * m.size
    refund = (np.log(s * np.sqrt(2 * np.pi * np.e))).sum() / math.log(2) + 10 * m.size
    assert ledger.gross_weight_bits == pytest.approx(gross, rel=1e-6)
    assert ledger.refund_bits == pytest.approx(refund, rel=1e-6)
    assert ledger.net_weight_bits == pytest.approx(gross - refund, rel=1e-5)


def test_a_finer_grid_costs_gross_bits_and_returns_them(examples):
    """Halving the step adds one bit per weight to gross and to refund, none to net."""
    model = bayesianize(network(), "laplace")
    coarse, fine = (
        take_ledger(model, CategoricalLikelihood(C), examples, samples=2, grid_step=step) for step in (2.0**-8, 2.0**-9)
    )
    assert fine.gross_weight_bits - coarse.gross_weight_bits == pytest.approx(coarse.weights, abs=1e-6)
    assert fine.refund_bits - coarse.refund_bits == pytest.approx(coarse.weights, abs=1e-6)
    assert fine.net_bits == pytest.approx(coarse.net_bits, rel=1e-12)


def test_data_bits_are_the_mean_over_whole_network_draws(examples):
    model, likelihood = bayesianize(network()), CategoricalLikelihood(C)
    found = evaluate(model, likelihood, examples, samples=3, seed=5, batch_size=17)
    draws = [State("draw", 5, number) for number in (-1, -2, -3)]
    with torch.no_grad(), model.keeping():
        for state, bits in zip(draws, found.draws_bits, strict=True):
            model.hold(state)
            assert float(likelihood.bits(model(examples.inputs), examples.targets).sum()) == pytest.approx(bits, rel=1e-5)
    spread = np.std(found.draws_bits, ddof=1) / math.sqrt(3)
    assert found.data_bits_stderr == pytest.approx(spread)


def test_evaluating_leaves_generator_and_mode_alone(examples):
    model = bayesianize(network())
    before = torch.get_rng_state()
    evaluate(model, CategoricalLikelihood(C), examples, samples=2)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_deterministic_weights_are_charged_and_frozen_ones_named(examples):
    model = bayesianize(network(), include=["2"])
    ledger = take_ledger(model, CategoricalLikelihood(C), examples, samples=1)
    charged = {entry.name: entry for entry in ledger.entries}["0.weight"]
    assert (charged.method, charged.net_bits, charged.refund_bits) == ("float32", 32.0 * D * 4, 0.0)
    model.network[0].weight.requires_grad_(False)
    ledger = take_ledger(model, CategoricalLikelihood(C), examples, samples=1)
    assert "0.weight" not in {entry.name for entry in ledger.entries}
    assert any(line.startswith("0.weight (20 frozen weights)") for line in ledger.not_charged)


def test_batch_norm_statistics_are_rounded_and_charged(examples):
    net = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, C))
    model = bayesianize(net)
    model(examples.inputs)
    ledger = take_ledger(model, CategoricalLikelihood(C), examples, samples=1)
    charges = {charge.name: charge.bits for charge in ledger.charges}
    assert charges["1.running_mean"] == charges["1.running_var"] == 4 * 16.0
    assert torch.equal(net[1].running_mean, net[1].running_mean.bfloat16().float())


def test_learned_scales_are_on_their_grid_before_the_ledger(examples):
    model = bayesianize(network(), {"kind": "laplace", "learn": "gradient", "scale": 0.1234})
    take_ledger(model, CategoricalLikelihood(C), examples, samples=1)
    for weight in model.weights:
        level = float(weight.prior.log_scale.detach()) * 32
        assert level == pytest.approx(round(level), abs=1e-5)


@pytest.mark.parametrize(("per", "count"), [("tensor", 4), ("layer", 2), ("model", 1)])
def test_scales_are_shared_as_told(per, count):
    model = bayesianize(network(), {"kind": "gaussian", "per": per})
    assert len({id(weight.prior) for weight in model.weights}) == count
    assert sum(charge.bits for charge in model.charges()) == 10.0 * count


def test_overrides_by_pattern():
    model = bayesianize(network(), "gaussian", overrides={"*.bias": {"kind": "laplace", "per": "model"}, "2.*": "cauchy"})
    kinds = {weight.name: weight.prior.kind for weight in model.weights}
    assert kinds == {"0.weight": "gaussian", "0.bias": "laplace", "2.weight": "cauchy", "2.bias": "laplace"}
    with pytest.raises(LayerError, match="matches no weight"):
        bayesianize(network(), overrides={"nothing.*": "laplace"})


def test_a_pyro_prior_without_mass_one_is_refused():
    class Half(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) - 0.5

    pyro.distributions.Half = Half
    pyro.distributions.__all__.append("Half")
    try:
        with pytest.raises(PriorError, match=r"has mass 0\.6065"):
            bayesianize(network(), {"kind": "pyro", "distribution": "Half", "arguments": {"loc": 0.0, "scale": 1.0}})
    finally:
        pyro.distributions.__all__.remove("Half")
        del pyro.distributions.Half


def test_a_point_estimate_has_no_refund_and_says_why(examples):
    model = bayesianize(network(), {"kind": "gaussian", "learn": "none"}, posterior=PointPosteriorSettings(grid_step=2.0**-6))
    ledger = take_ledger(model, CategoricalLikelihood(C), examples)
    assert ledger.refund_bits == 0.0
    assert ledger.gross_bits == ledger.net_bits
    assert ledger.samples == 1
    assert ledger.grid_step == 2.0**-6
    assert "no refund" in ledger.notes[0]
    for weight in model.weights:
        w = weight.posterior.mean.detach().double()
        assert torch.equal(w, (w * 64).round() / 64)
        prior, half = stats.norm(0, float(weight.prior.typical_scale())), 2.0**-7
        wanted = -np.log2(prior.cdf(w.numpy() + half) - prior.cdf(w.numpy() - half)).sum()
        entry = {entry.name: entry for entry in ledger.entries}[weight.name]
        assert entry.gross_bits == pytest.approx(wanted, rel=1e-5)


def test_a_coarse_grid_is_a_coarse_code_and_one_that_leaves_nothing_is_refused(examples):
    narrow = {"kind": "gaussian", "scale": 0.1, "learn": "none"}
    model = bayesianize(network(), narrow, posterior=PointPosteriorSettings(grid_step=0.2))
    level = np.rint(torch.cat([q.mean.detach().flatten() for q in model.posteriors()]).double().numpy() / 0.2)
    masses = stats.norm.cdf(2 * level + 1) - stats.norm.cdf(2 * level - 1)
    found = take_ledger(model, CategoricalLikelihood(C), examples).gross_weight_bits
    assert found == pytest.approx(-np.log2(masses).sum(), rel=1e-3)
    model = bayesianize(network(), narrow, posterior=PointPosteriorSettings(grid_step=1.7))
    with pytest.raises(LedgerError, match=r"grid step 1\.7 is too coarse .*set posterior\.grid_step to 0\.012 or less"):
        take_ledger(model, CategoricalLikelihood(C), examples)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, e: take_ledger(m, CategoricalLikelihood(C), e, samples=0), "samples >= 1"),
        (lambda m, e: take_ledger(m, CategoricalLikelihood(C), e, grid_step=0.0), "above zero"),
        (lambda m, e: take_ledger(m.network, CategoricalLikelihood(C), e), "give a BayesianModel"),
    ],
)
def test_what_a_ledger_cannot_be_taken_of_is_refused(call, message, examples):
    with pytest.raises(LedgerError, match=message):
        call(bayesianize(network()), examples)


def test_a_prior_that_was_never_fitted_is_named(examples):
    model = bayesianize(network(), {"kind": "gaussian", "scale": 30.0})
    ledger = take_ledger(model, CategoricalLikelihood(C), examples, samples=1)
    assert "call model.update_priors()" in ledger.notes[0]
    model.update_priors()
    assert take_ledger(model, CategoricalLikelihood(C), examples, samples=1).notes == ()


def test_an_optimiser_holds_every_parameter_and_every_width_once():
    model = bayesianize(network(), "laplace", exclude=["2.bias"])
    groups = bitsback.optim.Adam(model, 0.1, log_std_lr=0.2, examples=N).param_groups
    assert {group["role"]: group["lr"] for group in groups} == {"weight": 0.1, "plain": 0.1, "log_std": 0.2}
    held = {group["role"]: [id(p) for p in group["params"]] for group in groups}
    assert held["weight"] == [id(p) for name, p in model.network.named_parameters() if name != "2.bias"]
    assert held["plain"] == [id(model.network[2].bias), *map(id, model.priors.parameters())]
    assert held["log_std"] == [id(q.log_std) for q in model.posteriors()]


def test_the_default_grid_is_a_power_of_two_below_the_smallest_std():
    model = bayesianize(network(), posterior=GaussianPosteriorSettings(std=0.3, relative_to="absolute"))
    assert model.grid_step() == 0.25
    model.weights[0].posterior.set_std(0.125)
    assert model.grid_step() == 0.0625


def test_the_width_curve_leaves_the_model_as_it_was(examples):
    model = bayesianize(network(), "student_t")
    before = copy.deepcopy(model.state_dict())
    curve = width_curve(model, CategoricalLikelihood(C), examples, samples=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(curve) == [2.0**k for k in range(-4, 5)]
    refunds = [ledger.refund_bits for ledger in curve.values()]
    steps = np.diff(refunds)
    assert np.allclose(steps, curve[1.0].weights)  # twice as wide gives one more bit per weight back
    with pytest.raises(LedgerError, match="no width"):
        width_curve(bayesianize(network(), FIXED, posterior=PointPosteriorSettings()), CategoricalLikelihood(C), examples)
    copied = copy.deepcopy(model)
    with model.sample():
        held, wanted = copy.deepcopy(model), model(examples.inputs)
    assert torch.equal(held(examples.inputs), wanted)  # a copy holds what it was copied with
    assert torch.equal(copied(examples.inputs), model(examples.inputs))
    assert not torch.equal(copied(examples.inputs), wanted)
    with pytest.raises(LedgerError, match="above zero"):
        width_curve(model, CategoricalLikelihood(C), examples, factors=[0.0])


def test_the_loss_is_minus_the_elbo_of_the_same_model_in_pyro(examples):
    """TraceMeanField_ELBO of a hand-written Pyro model: the KL exactly, the whole within Monte Carlo error."""
    model = bayesianize(nn.Linear(D, C), {"kind": "laplace", "scale": 0.4, "learn": "none"})
    likelihood = CategoricalLikelihood(C)
    guide_values = {w.name: (w.posterior.mean.detach(), w.posterior.std().detach()) for w in model.weights}

    def pyro_model(x, y, data=True):
        weight = pyro.sample("weight", dist.Laplace(torch.zeros(C, D), 0.4).to_event(2))
        bias = pyro.sample("bias", dist.Laplace(torch.zeros(C), 0.4).to_event(1))
        if data:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Categorical(logits=x @ weight.T + bias), obs=y)

    def guide(x, y, data=True):
        for name, (mean, std) in guide_values.items():
            pyro.sample(name, dist.Normal(mean, std).to_event(mean.ndim))

    kl_bits = TraceMeanField_ELBO().loss(pyro_model, guide, examples.inputs, examples.targets, data=False) / math.log(2)
    assert float(model.kl_bits().detach()) == pytest.approx(kl_bits, rel=1e-5)
    ledger = take_ledger(model, likelihood, examples, samples=400)
    draws = [TraceMeanField_ELBO().loss(pyro_model, guide, examples.inputs, examples.targets) / math.log(2) for _ in range(400)]
    error = math.hypot(ledger.data_bits_stderr, np.std(draws) / 20)
    assert ledger.net_bits - ledger.hyperparameter_bits == pytest.approx(np.mean(draws), abs=5 * error)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_training_a_point_is_l2_or_l1_training(kind, examples):
    """A step is one of torch's SGD on cross-entropy plus the L2 (L1) penalty."""
    model = bayesianize(nn.Linear(D, C), {"kind": kind, "scale": 0.5, "learn": "none"}, posterior=PointPosteriorSettings())
    w, b = (q.mean.detach().clone().requires_grad_() for q in model.posteriors())
    optimizer = bitsback.optim.Variational(model, torch.optim.SGD, lr=1.0, examples=N)
    nn.functional.cross_entropy(model(examples.inputs), examples.targets).backward()
    optimizer.step()
    penalty = (p.square().sum() / (2 * 0.25) if kind == "gaussian" else p.abs().sum() / 0.5 for p in (w, b))
    (nn.functional.cross_entropy(examples.inputs @ w.T + b, examples.targets) + sum(penalty) / N).backward()
    for p, q in zip((w, b), model.posteriors(), strict=True):
        assert torch.allclose(p.detach() - q.mean, p.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(model.network.weight, model.weights[0].posterior.mean)


def test_a_std_may_be_set_without_moving_the_mean(examples):
    """What the weight holds was drawn with the old std: no edit of it."""
    model = bayesianize(network())
    means = [q.mean.clone() for q in model.posteriors()]
    for change in (lambda q: q.scale_std(2.0), lambda q: q.set_std(0.3)):
        for q in model.posteriors():
            change(q)
        take_ledger(model, CategoricalLikelihood(C), examples, samples=1)
        assert all(torch.equal(q.mean, mean) for q, mean in zip(model.posteriors(), means, strict=True))
        assert torch.allclose(model.network[0].weight, model.value(model.weights[0]))
    model.weights[0].posterior.scale_std(2.0)
    nn.init.constant_(model.network[0].weight, 0.5)
    with pytest.raises(LayerError, match=r"'0.weight' and its log_std were both written"):
        model.draw()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_knows_what_was_written_to_the_weights_before(copied):
    model = bayesianize(network())
    with torch.no_grad():
        model.network[0].weight[0, 0] = 5.0
        model.weights[1].posterior.mean.fill_(3.0)
        model.weights[2].posterior.log_std.sub_(9.0)
    other = copied(model)
    for one in (other, model):
        one.draw()
        assert one.weights[0].posterior.mean[0, 0] == 5.0
        assert one.weights[1].posterior.mean.tolist() == [3.0] * 4
        assert torch.equal(one.network[2].weight, one.value(one.weights[2]))
    for one, same in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, same)


def test_what_is_written_to_a_posterior_through_data_stands(examples):
    model = bayesianize(network())
    first, last = model.weights[0].posterior, model.weights[-1].posterior
    wanted, width = torch.randn(first.mean.shape), last.std() * 3
    first.mean.data.copy_(wanted)
    first.mean.data[0, 0] = 5.0
    last.log_std.data += math.log(3)
    take_ledger(model, CategoricalLikelihood(C), examples, samples=1)
    assert first.mean[0, 0] == 5.0
    assert torch.equal(first.mean.flatten()[1:], wanted.flatten()[1:])
    assert torch.allclose(last.std(), width)
    for weight in model.weights:
        assert torch.equal(weight.parameter, model.value(weight))


def test_the_trained_width_sits_at_the_bottom_of_the_curve():
    """A posterior with a closed form: linear regression with known noise, one weight."""
    x = torch.linspace(-1, 1, 50)[:, None]
    data = bitsback.Dataset("line", Examples(x, 0.7 * x[:, 0] + 0.1 * torch.randn(50)), None)
    likelihood = GaussianLikelihood(0.1, noise="fixed", target_step=0.01)
    model = bayesianize(nn.Linear(1, 1, bias=False), {"kind": "gaussian", "scale": 1.0, "learn": "none"})
    settings = TrainingSettings(epochs=400, batch_size=50, optimizer=OptimizerSettings(lr=0.05))
    train(model, likelihood, data, training=settings, progress=False)
    precision = 1 + float(x.square().sum()) / 0.01
    mean = float((x[:, 0] * data.train.targets).sum()) / 0.01 / precision
    q = model.weights[0].posterior
    assert q.std().item() == pytest.approx(precision**-0.5, rel=0.1)
    assert q.mean.item() == pytest.approx(mean, abs=0.2 * precision**-0.5)
    curve = width_curve(model, likelihood, data.train, samples=200)
    assert min(curve, key=lambda factor: curve[factor].net_bits) == 1.0


@pytest.mark.parametrize("samples", [1, 7, 23])
def test_draws_taken_together_are_the_draws_taken_one_by_one(monkeypatch, samples):
    model = bayesianize(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))).double()
    examples = Examples(torch.randn(30, 4), torch.arange(30) % 3)
    together = evaluate(model, CategoricalLikelihood(3), examples, samples=samples, seed=5, batch_size=8)
    monkeypatch.setattr("bitsback.model.draws.TOGETHER", 1)
    one_by_one = evaluate(model, CategoricalLikelihood(3), examples, samples=samples, seed=5, batch_size=8)
    assert together.draws_bits == pytest.approx(one_by_one.draws_bits, rel=1e-12)
    assert together.error == one_by_one.error


def test_only_dense_networks_are_drawn_together():
    class Own(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + float(x.sum())

    assert draws_at_once(bayesianize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))) > 1
    assert draws_at_once(bayesianize(torch.nn.Sequential(Own(4, 2)))) == 1
    assert draws_at_once(bayesianize(torch.nn.GRU(3, 2))) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_copy_finds_no_edits_but_those_that_were_made(copied):
    model = bayesianize(network())
    model.draw()
    again = copied(model)
    means = [q.mean.clone() for q in again.posteriors()]
    again.honour_edits(everywhere=True)
    assert all(torch.equal(q.mean, mean) for q, mean in zip(again.posteriors(), means, strict=True))
    nn.init.constant_(model.network[0].weight, 0.5)
    model.weights[1].posterior.set_std(3.0)
    for one in (copied(model), model):
        one(torch.zeros(1, 5))
        assert (one.weights[0].posterior.mean == 0.5).all()
        assert torch.allclose(one.weights[1].parameter, one.value(one.weights[1]))
