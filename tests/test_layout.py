"""Filters and images lie with their channels last where that is faster, and nowhere else."""

import pytest
import torch
from torch import nn

import bitsback
from bitsback.data import Examples
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model.accounting import evaluate
from bitsback.training import TrainingSettings, start


class Viewed(nn.Module):
    """A forward that takes channels as torch lays them out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(96, 3)
        self.calls = []

    def forward(self, x):
        features = self.second(self.first(x).relu()).relu()
        self.calls.append(features.is_contiguous())
        return self.out(features.view(len(x), -1))


class Reshaped(Viewed):
    def forward(self, x):
        features = self.second(self.first(x).relu()).relu()
        self.calls.append(features.is_contiguous())
        return self.out(features.flatten(1))


def images(count=30):
    return Examples(torch.randn(count, 1, 8, 8), torch.arange(count) % 3)


@pytest.mark.parametrize(("kind", "is_straight"), [(Viewed, True), (Reshaped, False)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_training_lays_filters_out_where_the_forward_takes_it(kind, is_straight, precision):
    torch.manual_seed(0)
    model, examples = bitsback.bayesianize(kind()), images()
    is_exact = precision == "float64"
    if is_exact:
        model, examples = model.double(), examples.to(torch.device("cpu"), torch.float64)
    settings = TrainingSettings(epochs=2, batch_size=10, precision=precision)
    fit = start(model, CategoricalLikelihood(3), examples, settings)
    model.network.calls.clear()
    fit.run_epoch()
    assert set(model.network.calls) == {is_straight or is_exact}
    fit.end()
    assert model.network.first.weight.stride() == (9, 9, 3, 1)
    model.network.calls.clear()
    evaluate(model, CategoricalLikelihood(3), examples, samples=2)
    assert model.network.calls[-1] == is_straight


def test_one_channel_is_laid_out_too():
    model = bitsback.bayesianize(nn.Conv2d(1, 4, 3))
    held = model.network.weight.clone()
    model.lay_out(channels_last=True)
    q = model.network.posterior["weight"]
    assert model.network.weight.stride() == q.mean.stride() == q.log_std.stride() == (9, 1, 3, 1)
    assert model.network(torch.zeros(2, 1, 6, 6)).is_contiguous(memory_format=torch.channels_last)
    model.lay_out(channels_last=False)
    assert model.network.weight.stride() == (9, 9, 3, 1)
    assert torch.allclose(model.network.weight, held, atol=1e-6)


def test_a_trial_moves_no_statistics_and_no_generator():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    model, state = bitsback.bayesianize(network), torch.get_rng_state()
    model.lay_out(channels_last=True, example=torch.randn(5, 1, 8, 8, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)
    assert network[1].num_batches_tracked == 0
    assert torch.equal(network[1].running_mean, torch.zeros(4))
