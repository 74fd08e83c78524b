"""Digests of a training under way: last bits never show, another training does."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import bitsback
from bitsback.config import Config, Experiment
from bitsback.errors import FileError
from bitsback.formats._training_digest import COARSENESS, MOST_DIGESTS, STATE_BITS, StateDigest, digest_steps
from bitsback.formats.message.read import RefundLostError
from bitsback.formats.repeatable import Checking, Recording
from bitsback.likelihoods import CategoricalLikelihood

LIKELIHOOD = CategoricalLikelihood(2)


def made(weights=4000, seed=0):
    """A model in float64 with means and stds all over the place."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(weights // 8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = bitsback.bayesianize(network, {"kind": "laplace", "scale": 0.3, "learn": "gradient"}, exclude=["2.bias"]).double()
    with torch.no_grad():
        for q in model.posteriors():
            q.mean.mul_(torch.randn_like(q.mean).exp())
            q.log_std.add_(torch.randn_like(q.mean))
    return model


def level(model):
    return StateDigest.of(model, LIKELIHOOD)


@pytest.mark.parametrize("weights", [80, 4000, 800_000])
def test_last_bits_never_show(weights):
    model = made(weights)
    before = level(model)
    for _ in range(10):
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.mul_(1 + 1e-12 * torch.randn_like(tensor))
        assert before.agrees(level(model))


def test_not_even_at_the_edge_of_rounding():
    """One mean is moved until the level changes, to the last bit: on both sides of that edge digests agree."""
    model = made()
    mean = model.posteriors()[0].mean.data[0]
    std = model.posteriors()[0].std()[0, 0].item()
    first, low, high = level(model), mean[0].item(), mean[0].item() + 2 * COARSENESS / 64 * std
    for _ in range(80):
        mean[0] = middle = 0.5 * (low + high)
        low, high = (middle, high) if level(model) == first else (low, middle)
    mean[0] = low
    below = level(model)
    mean[0] = high
    above = level(model)
    assert {above.level - below.level} <= {1, -1, 255, -255}
    assert below.agrees(above)


def test_other_trainings_show_but_for_three_in_256():
    levels = [level(made(seed=seed)) for seed in range(60)]
    pairs = [a.agrees(b) for place, a in enumerate(levels) for b in levels[:place]]
    expected = 3 / (1 << STATE_BITS)
    assert np.mean(pairs) == pytest.approx(expected, abs=5 * math.sqrt(expected / len(pairs)))


LOCATIONS = {
    "means": lambda model: model.posteriors()[0].mean,
    "stds": lambda model: model.posteriors()[0].log_std,
    "prior": lambda model: model.weights[0].prior.log_scale,
    "statistics": lambda model: dict(model.statistics())["1.running_var"],
    "weights without posterior": lambda model: dict(model.deterministic())["2.bias"],
}


@pytest.mark.parametrize("place", LOCATIONS)
def test_every_learned_number_shows(place):
    model = made(80)
    before = level(model)
    with torch.no_grad():
        LOCATIONS[place](model).add_(0.71)
    assert not before.agrees(level(model))


def test_numbers_that_are_not_finite_have_the_level_zero():
    model = made(80)
    model.posteriors()[0].mean.data[0, 0] = math.nan
    assert level(model) == StateDigest(0)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 64, 65, 1000, 10**6])
def test_digests_are_taken_early_and_before_the_end(steps):
    found = digest_steps(steps)
    assert list(found) == sorted(set(found))
    assert all(0 < step < steps for step in found)
    assert len(found) == MOST_DIGESTS if steps > 8 else len(found) <= MOST_DIGESTS
    assert not found or found[0] == -(-steps // 64)


def training(seed):
    """A small experiment, untrained."""
    return Experiment.build(
        Config.model_validate(
            {"data": {"kind": "digits", "limit": 60}, "training": {"epochs": 8, "batch_size": 10}, "seed": seed}
        )
    )


def test_a_training_is_watched_after_every_step_and_stopped_where_it_differs():
    sender, again, other = training(0), training(0), training(1)
    watch, seen = Recording(48, sender.likelihood), []
    sender.train(None, progress=False, watch=watch)
    assert len(watch.found) == 3
    check = Checking(48, again.likelihood, watch.found)

    def counted(step, model):
        seen.append(step)
        check(step, model)

    again.train(None, progress=False, watch=counted)
    assert seen == [*range(1, 49)]
    with pytest.raises(RefundLostError, match=r"after step (1|6|24) of 48 training here is not where the sender's was"):
        other.train(None, progress=False, watch=Checking(48, other.likelihood, watch.found))


def test_what_a_watch_raises_ends_the_training():
    experiment, steps = training(0), []

    def watch(step, model):
        assert model is experiment.model
        steps.append(step)
        if step == 7:
            raise FileError("enough")

    with pytest.raises(FileError, match="enough"):
        experiment.train(None, progress=False, watch=watch)
    assert steps == [*range(1, 8)]
