"""Natural gradients: against the closed form, against Adam on the rest, through checkpoints."""

import copy

import pytest
import torch
from torch import nn

from bitsback.data import Dataset, Examples
from bitsback.errors import ConfigError
from bitsback.kl import kl
from bitsback.likelihoods import GaussianLikelihood
from bitsback.model import bayesianize
from bitsback.optim import IVON
from bitsback.posteriors import PointPosteriorSettings
from bitsback.priors.settings import GaussianPriorSettings
from bitsback.training import TrainingSettings, train
from bitsback.training._optimise import make_optimizer
from bitsback.training.settings import OptimizerSettings

WIDE = {"kind": "gaussian", "learn": "none", "scale": 1e9}
"""A prior whose KL is -log s and a constant."""


def held_at_the_mean(weights, prior, std):
    """A model of so many weights whose steps draw no weights, as where a layer's outputs are drawn: gradients are given by hand."""
    model = bayesianize(nn.Linear(weights, 1, bias=False), prior).double()
    (weight,) = model.weights
    weight.noise_on_outputs = True
    weight.posterior.set_std(std)
    model.draw()
    return model, weight, weight.posterior


def test_a_quadratic_is_solved_in_natural_units():
    """F = h (m - c)^2 / 2 + h s^2 / 2 - log s: the best is m = c, s = 1 / sqrt(h), whatever h."""
    for curvature in (0.01, 1.0, 1e6):
        model, weight, q = held_at_the_mean(2, WIDE, 3 / curvature**0.5)
        optimizer = IVON(model, lr=0.5, examples=1, log_std_lr=0.3, betas=(0.5, 0.999))
        for _ in range(400):
            assert torch.equal(weight.parameter, q.mean)
            weight.parameter.grad = curvature * (q.mean - 2)
            q.log_std.grad = curvature * (2 * q.log_std).exp()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.allclose(q.mean, torch.full_like(q.mean, 2.0), atol=1e-6)
        assert torch.allclose(q.std(), torch.full_like(q.mean, curvature**-0.5), rtol=1e-6)


@pytest.mark.parametrize("examples", [1, 50])
@pytest.mark.parametrize("fused", [True, False])
def test_stds_move_by_the_published_rule(fused, examples):
    """1 / s^2 <- (1 + r G + (r G)^2 / 2) / s^2 with G = s^2 H - 1 and IVON's H = g e / s, plus the prior's 1 / p^2."""
    prior_scale, rate = 0.7, 0.05
    model = bayesianize(nn.Linear(5, 1, bias=False), {"kind": "gaussian", "learn": "none", "scale": prior_scale}).double()
    weight, q = model.weights[0], model.weights[0].posterior
    q.set_std(0.3)
    model.draw()
    before, noise, w = q.std().clone(), model.noise(weight, model.state), weight.parameter.detach().clone()
    assert torch.allclose(w, q.mean + 0.3 * noise)
    optimizer = IVON(model, examples=examples, log_std_lr=rate, by_pieces=fused)
    (model.network.weight.exp().sum() / examples).backward()
    optimizer.step()
    hessian = w.exp() * noise / before + 1 / prior_scale**2
    move = rate * (before.square() * hessian - 1)
    wanted = (1 + move + move.square() / 2) / before.square()
    assert torch.allclose(q.std() ** -2, wanted)


def test_means_move_by_averaged_natural_gradients_and_no_further_than_asked():
    model, weight, q = held_at_the_mean(2, WIDE, torch.tensor([0.1, 10.0]))
    start = q.mean.clone()
    optimizer = IVON(model, lr=0.5, examples=7, betas=(0.5, 0.999), log_std_lr=1e-30, most_stds=2.0)
    for _ in range(2):
        weight.parameter.grad = torch.full_like(q.mean, 1 / 7)
        optimizer.step()
    assert (q.mean - start)[0, 0].item() == pytest.approx(-2 * 0.5 * 0.01)
    assert (q.mean - start)[0, 1].item() == pytest.approx(-2 * 2.0 * 10.0)


def test_what_is_not_a_posterior_goes_by_adam():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = bayesianize(network, GaussianPriorSettings(learn="gradient"), exclude=["1"]).double()
    plain, priors = copy.deepcopy(network[1]), copy.deepcopy(model.priors)
    optimizer = IVON(model, examples=10, rest_lr=0.02, betas=(0.8, 0.99))
    adam = torch.optim.Adam([*plain.parameters(), *priors.parameters()], lr=0.02, betas=(0.8, 0.99))
    for step in (1, 2):
        for prior, weight in zip(priors, model.weights, strict=True):
            nats = kl(copy.deepcopy(weight.posterior), prior).nats / 10
            prior.log_scale.grad = torch.autograd.grad(nats, prior.log_scale)[0]
        for number, parameter in enumerate(network.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (number - 2) * step)
        for parameter, own in zip(plain.parameters(), network[1].parameters(), strict=True):
            parameter.grad = own.grad.clone()
        before = [q.mean.clone() for q in model.posteriors()]
        optimizer.step()
        adam.step()
        model.priors.zero_grad()
        assert all(not torch.equal(q.mean, mean) for q, mean in zip(model.posteriors(), before, strict=True))
        for one, other in ((network[1], plain), (model.priors, priors)):
            for found, wanted in zip(one.parameters(), other.parameters(), strict=True):
                assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def run_on_line(optimizer, directory=None, epochs=60, resume=False):
    torch.manual_seed(0)
    inputs = torch.randn(400, 3)
    data = Dataset("line", Examples(inputs, inputs @ torch.tensor([[1.0], [-2.0], [0.5]])), None, 0)
    model = bayesianize(nn.Linear(3, 1))
    settings = TrainingSettings(epochs=epochs, batch_size=40, optimizer=optimizer, checkpoint_seconds=0)
    likelihood = GaussianLikelihood(1.0, target_step=0.01)
    outcome = train(model, likelihood, data, training=settings, directory=directory, resume=resume, progress=False)
    return outcome.ledger.net_bits


def test_training_with_ivon_gets_as_low_as_with_adam():
    assert run_on_line({"name": "IVON"}) < run_on_line({"name": "Adam", "lr": 0.02}) + 20


def test_settings_have_natural_units_of_their_own():
    assert (OptimizerSettings(name="IVON").lr, OptimizerSettings(name="IVON").log_std_lr) == (0.3, 0.03)
    assert OptimizerSettings(name="IVON", lr=0.1).lr == 0.1
    assert OptimizerSettings().lr == 0.01
    point = bayesianize(nn.Linear(2, 2), GaussianPriorSettings(learn="none"), posterior=PointPosteriorSettings())
    with pytest.raises(ConfigError, match="there is none; take Adam"):
        make_optimizer(point, [], OptimizerSettings(name="IVON"), 10)
    with pytest.raises(ConfigError, match="IVON refuses its arguments"):
        make_optimizer(bayesianize(nn.Linear(2, 2)), [], OptimizerSettings(name="IVON", arguments={"nope": 1}), 10)
    with pytest.raises(ValueError, match="IVON needs bits for a loss"):
        TrainingSettings(optimizer={"name": "IVON"}, objective={"kind": "quad"})


def test_a_resumed_training_ends_at_the_same_bits(tmp_path, monkeypatch):
    from bitsback.training.loop import Fit

    whole = run_on_line({"name": "IVON"}, epochs=6)
    real = Fit.run_epoch

    def stop_after_three(fit):
        if fit.epoch == 3:
            raise KeyboardInterrupt
        return real(fit)

    monkeypatch.setattr(Fit, "run_epoch", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        run_on_line({"name": "IVON"}, tmp_path, epochs=6)
    monkeypatch.setattr(Fit, "run_epoch", real)
    assert run_on_line({"name": "IVON"}, tmp_path, epochs=6, resume=True) == whole
