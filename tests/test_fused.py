"""The fused step is the plain step: same cost, same gradients, in float64."""

import copy

import pytest
import torch
from bitsback.layout import interleave, straighten
from bitsback.training.fused import FusedWeights, step_weights
from bitsback.training.noise import NoisePool, OutputNoise
from bitsback.training.weights import PlainWeights
from torch import nn

from bitsback.data import Dataset, Examples
from bitsback.errors import ConfigError
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize
from bitsback.posterior import PointPosteriorSettings, holding
from bitsback.priors.gaussian import GaussianPriorSettings
from bitsback.priors.laplace import LaplacePriorSettings
from bitsback.priors.mixtures import ScaleMixturePriorSettings
from bitsback.training import TrainingSettings, train


class Tied(nn.Module):
    """A matrix that is used twice, an embedding with padding, and a weight that nothing uses."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.first, self.second, self.idle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        hidden = self.embedding(x.long().clamp(0, 6)).mean(1)
        return self.second(self.norm(self.first(hidden)).tanh())[:, :3]


NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3)), (12, 5)),
    "long": (lambda: nn.Sequential(nn.Linear(500, 300), nn.Tanh(), nn.Linear(300, 3)), (12, 500)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
        (12, 2, 8, 8),
    ),
    "tied": (Tied, (12, 4)),
    "recurrent": (lambda: nn.Sequential(Last(nn.GRU(4, 5, batch_first=True)), nn.Linear(5, 3)), (12, 6, 4)),
}


class Last(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0][:, -1]


PRIORS = {
    "closed_form": {"prior": GaussianPriorSettings()},
    "gradient": {"prior": GaussianPriorSettings(learn="gradient", scale=0.2)},
    "fixed, off centre": {"prior": GaussianPriorSettings(learn="none", mean=0.3)},
    "one for all": {"prior": GaussianPriorSettings(per="model")},
    "some by autograd": {"prior": GaussianPriorSettings(), "overrides": {"*bias*": LaplacePriorSettings()}},
    "all by autograd": {"prior": ScaleMixturePriorSettings()},
}


def make(network, prior="closed_form", estimator="auto", **more):
    torch.manual_seed(3)
    build, shape = NETWORKS[network]
    model = bayesianize(build(), estimator=estimator, **PRIORS[prior], **more).double()
    inputs = torch.randn(shape, dtype=torch.float64) + (3 if network == "tied" else 0)
    return model, inputs, torch.arange(len(inputs)) % 3


def loss_of(model, weights, inputs, targets, groups=1, curve=False):
    """Cost and loss of one step; a curved loss asks for more than a constant share of the cost."""
    likelihood = CategoricalLikelihood(3)
    weight_bits = weights.cost(0.4)
    data_bits = torch.zeros((), dtype=torch.float64)
    torch.manual_seed(5)
    for number, (x, y) in enumerate(zip(inputs.chunk(groups), targets.chunk(groups), strict=True)):
        with weights.group(number):
            data_bits = data_bits + likelihood.bits(model(x), y).sum()
    return weight_bits, ((data_bits * weight_bits.abs().sqrt()) if curve else (3 * data_bits + 0.7 * weight_bits)) / 60


class Explicit(PlainWeights):
    """The plain step with noise that is given: every tensor is held at mean + std * noise, for autograd to differentiate."""

    def __init__(self, model, noises):
        super().__init__(model)
        self.noises = noises

    def group(self, number):
        posteriors = [q for q in self.model.posteriors() if self.model.is_drawn(q)]
        noise = dict(zip(map(id, posteriors), self.noises[number], strict=True))
        return holding(posteriors, lambda q: q.mean + q.std() * noise[id(q)])


class LayersOwn(OutputNoise):
    """Noise as layers draw it by themselves."""

    def __init__(self):
        super().__init__(reuse=1)

    def __call__(self, outputs):
        return torch.randn_like(outputs)


def assert_same_gradients(fused, plain):
    for (name, one), (_, other) in zip(fused.named_parameters(), plain.named_parameters(), strict=True):
        found = torch.zeros_like(one) if one.grad is None else one.grad
        wanted = torch.zeros_like(other) if other.grad is None else other.grad
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-11), name


def compare(model, inputs, targets, draws=1, antithetic=False, curve=False):
    plain = copy.deepcopy(model)
    weights = FusedWeights(model, draws, antithetic, reuse=3)
    weights.output_noise = LayersOwn()
    fused_bits, loss = loss_of(model, weights, inputs, targets, draws, curve)
    with torch.no_grad():
        noises = [[(part.leaves[n] - part.q.mean) / part.std for part in weights.drawn] for n in range(draws)]
    loss.backward()
    weights.add_gradients()
    reference = Explicit(plain, noises)
    plain_bits, plain_loss = loss_of(plain, reference, inputs, targets, draws, curve)
    plain_loss.backward()
    assert float(fused_bits.detach()) == pytest.approx(float(plain_bits.detach()), rel=1e-10)
    assert float(loss.detach()) == pytest.approx(float(plain_loss.detach()), rel=1e-10)
    for one, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-9)
    assert_same_gradients(model, plain)
    return noises


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("estimator", ["weight", "auto"])
@pytest.mark.parametrize("network", NETWORKS)
def test_fused_and_plain_steps_have_the_same_cost_and_gradients(network, estimator, prior):
    compare(*make(network, prior, estimator))


def test_a_tensor_of_several_pieces_is_one_tensor():
    model, inputs, targets = make("long", estimator="weight")
    assert len(FusedWeights(model).drawn[0].pieces) > 1
    compare(model, inputs, targets, draws=2)


def test_output_noise_in_convolutions():
    model, inputs, targets = make("convolution", estimator="output")
    interleave(model)
    compare(model, inputs, targets, draws=2)


@pytest.mark.parametrize("draws", [2, 4])
@pytest.mark.parametrize("antithetic", [False, True])
def test_several_draws_each_see_their_part_of_the_batch(draws, antithetic):
    noises = compare(*make("convolution", estimator="weight"), draws=draws, antithetic=antithetic)
    mirrored = torch.allclose(noises[0][0], -noises[1][0])
    assert mirrored == antithetic


def test_any_objective_may_ask_for_the_cost():
    compare(*make("dense", "gradient"), curve=True)


def test_points_and_frozen_tensors_go_the_plain_way():
    model, inputs, targets = make("dense")
    model.weights[0].posterior.log_std.requires_grad_(False)
    compare(model, inputs, targets)
    model, inputs, targets = make("dense", "one for all")
    model.weights[0].posterior.log_std.requires_grad_(False)
    compare(model, inputs, targets)
    points, *_ = make("dense", "fixed, off centre", posterior=PointPosteriorSettings())
    assert isinstance(step_weights(points, TrainingSettings()), PlainWeights)


def test_settings_choose_the_step():
    model, *_ = make("dense", estimator="output")
    assert isinstance(step_weights(model, TrainingSettings()), FusedWeights)
    assert isinstance(step_weights(model, TrainingSettings(fused=False)), PlainWeights)
    with pytest.raises(ConfigError, match="no layer draws its weights"):
        step_weights(model, TrainingSettings(antithetic=True, draws=2))
    with pytest.raises(ValueError, match="come in pairs"):
        TrainingSettings(antithetic=True)


def test_noise_is_standard_normal_and_shared_by_steps():
    torch.manual_seed(0)
    pool = NoisePool(1000, reuse=4, like=torch.zeros(1))
    steps = torch.stack([pool.next().clone() for _ in range(400)])
    assert steps.mean().abs() < 0.02
    assert abs(steps.var() - 1) < 0.02
    own = (steps[1:] * steps[:-1]).mean(1)  # a weight's own numbers in a row
    assert own.mean().abs() < 0.01
    fresh = len(torch.unique(steps)) / steps.numel()
    assert 0.2 < fresh < 0.3
    pool.restart()
    assert not torch.isin(pool.next(), steps).any()


def test_noise_of_outputs_differs_from_use_to_use():
    noise = OutputNoise(reuse=4)
    outputs = torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)
    first, second = noise(outputs), noise(outputs)
    assert first.stride() == outputs.stride()
    assert not torch.isin(first, second).any()
    noise.begin()
    again = noise(outputs[:2])
    assert again.shape == (2, 3, 5, 5)


def test_training_ends_at_the_same_bits_either_way():
    torch.manual_seed(0)
    inputs = torch.randn(300, 6)
    data = Dataset("halves", Examples(inputs, (inputs[:, 0] > 0).long()), None, 2)
    found = {}
    for fused in (True, False):
        torch.manual_seed(1)
        model = bayesianize(nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 2)), estimator="weight")
        settings = TrainingSettings(epochs=150, batch_size=50, fused=fused, optimizer={"lr": 0.02})
        found[fused] = train(model, CategoricalLikelihood(2), data, training=settings, progress=False).ledger.net_bits
    assert found[True] < 200
    assert found[True] == pytest.approx(found[False], rel=0.1)


def test_filters_lie_with_channels_last_while_training_and_straight_afterwards():
    model, *_ = make("convolution")
    before = {name: p.clone() for name, p in model.named_parameters()}
    interleave(model)
    filters = model.weights[0].posterior.mean
    assert filters.stride()[1] == 1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    straighten(model)
    assert filters.is_contiguous()
