"""Natural gradients: against the closed form, against Adam on the rest, through checkpoints."""

import copy

import pytest
import torch
from bitsback.training.ivon import IVON
from torch import nn

from bitsback.data import Dataset, Examples
from bitsback.errors import ConfigError
from bitsback.likelihoods import GaussianLikelihood
from bitsback.model import bayesianize
from bitsback.posterior import GaussianPosterior, PointPosteriorSettings
from bitsback.priors.gaussian import GaussianPriorSettings
from bitsback.training import TrainingSettings, train
from bitsback.training.optimise import make_optimizer
from bitsback.training.settings import OptimizerSettings
from bitsback.units import nats_to_bits


def test_a_quadratic_is_solved_in_natural_units():
    """F = h (m - c)^2 / 2 + h s^2 / 2 - log s: the best is m = c, s = 1 / sqrt(h), whatever h."""
    for curvature in (0.01, 1.0, 1e6):
        q = GaussianPosterior(torch.full((2,), 1.0, dtype=torch.float64), std=3 / curvature**0.5)
        optimizer = IVON([q], examples=1, lr=0.5, log_std_lr=0.3, betas=(0.5, 0.999))
        for _ in range(400):
            optimizer.zero_grad()
            data = 0.5 * curvature * ((q.mean - 2).square() + (2 * q.log_std).exp()).sum()
            nats_to_bits(data - q.log_std.sum()).backward()
            optimizer.step()
        assert torch.allclose(q.mean, torch.full_like(q.mean, 2.0), atol=1e-6)
        assert torch.allclose(q.std(), torch.full_like(q.mean, curvature**-0.5), rtol=1e-6)


def test_stds_move_by_the_published_rule():
    """1 / s^2 <- (1 + r G + (r G)^2 / 2) / s^2 with G = s^2 H - 1 and IVON's H = g e / s, plus the prior's 1 / p^2."""
    torch.manual_seed(0)
    q = GaussianPosterior(torch.randn(5, dtype=torch.float64), std=0.3)
    noise, prior_scale, rate = torch.randn(5, dtype=torch.float64), 0.7, 0.05
    before = q.std().detach().clone()
    optimizer = IVON([q], examples=1, log_std_lr=rate)
    w = q.mean + q.std() * noise
    kl = (0.5 * (q.mean.square() + (2 * q.log_std).exp()) / prior_scale**2 - q.log_std).sum()
    nats_to_bits(w.exp().sum() + kl).backward()
    optimizer.step()
    hessian = (w.exp() * noise / before + 1 / prior_scale**2).detach()
    move = rate * (before.square() * hessian - 1)
    wanted = (1 + move + move.square() / 2) / before.square()
    assert torch.allclose(q.std() ** -2, wanted)


def test_means_move_by_averaged_natural_gradients_and_no_further_than_asked():
    q = GaussianPosterior(torch.zeros(2, dtype=torch.float64), std=torch.tensor([0.1, 10.0]))
    optimizer = IVON([q], examples=7, lr=0.5, betas=(0.5, 0.999), most_stds=2.0)
    for _ in range(2):
        optimizer.zero_grad()
        nats_to_bits(q.mean.sum() / 7 + 0 * q.log_std.sum()).backward()
        optimizer.step()
    assert q.mean[0].item() == pytest.approx(-2 * 0.5 * 0.01)
    assert q.mean[1].item() == pytest.approx(-2 * 2.0 * 10.0)


def test_what_is_not_a_posterior_goes_by_adam():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = bayesianize(network, GaussianPriorSettings(learn="gradient"), exclude=["1"])
    plain = copy.deepcopy(model)
    optimizer = IVON([model], examples=10, rest_lr=0.02)
    rest = [p for name, p in plain.named_parameters() if "posteriors" not in name]
    adam = torch.optim.Adam(rest, lr=0.02)
    for one, step in ((model, optimizer), (plain, adam)):
        for number, parameter in enumerate(one.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
        step.step()
    named = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, named[name]) == ("posteriors" not in name), name
        assert parameter.grad is not None


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
        make_optimizer([point], OptimizerSettings(name="IVON"), 10)
    with pytest.raises(ConfigError, match="IVON refuses its arguments"):
        make_optimizer([bayesianize(nn.Linear(2, 2))], OptimizerSettings(name="IVON", arguments={"nope": 1}), 10)
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
