"""Training: deterministic, resumable, budgeted, and stopped cleanly."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from torch import nn

import bitsback
from bitsback.atomic_io import read_tensors
from bitsback.config import Experiment, load_config
from bitsback.config.schema import Config
from bitsback.errors import ConfigError, PriorError, RunError, TrainingError
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.training.beta import Beta
from bitsback.training.loop import Fit
from bitsback.training.settings import TrainingSettings

TOY = {
    "data": {"kind": "digits", "limit": 300},
    "training": {"epochs": 6, "batch_size": 64, "checkpoint_seconds": 0},
    "ledger": {"samples": 3},
}


def config(**sections):
    return Config.model_validate({key: {**TOY.get(key, {}), **sections.get(key, {})} for key in {*TOY, *sections}})


def train(directory, resume=False, **sections):
    return Experiment.build(config(**sections)).train(directory, resume=resume, progress=False)


def posterior(directory):
    return read_tensors(directory / "posterior.safetensors")[0]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_equal_seeds_give_equal_bits(tmp_path):
    first, second = train(tmp_path / "a"), train(tmp_path / "b")
    assert first.ledger == second.ledger
    assert same(posterior(tmp_path / "a"), posterior(tmp_path / "b"))
    other = train(tmp_path / "c", training={**TOY["training"], "batch_size": 32})
    assert other.ledger != first.ledger


VARIANTS = {
    "plain": {},
    "sgd": {"training": {"optimizer": {"name": "SGD", "lr": 0.1, "arguments": {"momentum": 0.9}}}},
    "adamw": {"training": {"optimizer": {"name": "AdamW", "lr": 0.01, "log_std_lr": 0.03}}},
    "one_cycle": {"training": {"schedule": {"name": "OneCycleLR"}}},
    "warmup": {"training": {"schedule": {"name": "StepLR", "arguments": {"step_size": 3}, "warmup_epochs": 2}}},
    "budget": {"training": {"budget_bits": 200}},
    "moving_budget": {"training": {"budget_bits": {"start_bits": 600, "end_bits": 200, "epochs": 4}, "fused": False}},
    "bound": {"training": {"objective": {"kind": "lambda"}}},
    "one_by_one": {"training": {"fused": False, "gradient_clip": 0.5}},
    "draws": {"training": {"draws": 4, "antithetic": True}, "bayesian": {"estimator": "weight"}},
    "fresh_noise": {"training": {"noise_reuse": 1}, "bayesian": {"estimator": {"Linear": "output"}}},
    "augment": {"training": {"augment": {"shift_pixels": 1.0}, "precision": "bfloat16"}},
    "repeatable": {"training": {"precision": "float64"}, "prior": {"kind": "laplace"}},
    "learned": {"prior": {"kind": "scale_mixture"}},
    "norm": {"network": {"kind": "sequential", "layers": ["Flatten", {"Linear": {"out_features": 8}}, "BatchNorm1d", "Dropout",
                                                          "Linear"]}},
    "convolution": {"network": {"kind": "sequential", "layers": [{"Conv2d": {"out_channels": 2, "kernel_size": 3}}, "ReLU",
        {"Conv2d": {"out_channels": 3, "kernel_size": 3}}, "Flatten", "Linear"]}},
    "point": {"posterior": {"kind": "point"}, "prior": {"kind": "gaussian", "learn": "none"}},
    "stopped": {"training": {"early_stop": {"patience_epochs": 2, "min_improvement_bits": 1e9}, "epochs": 9}},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path, monkeypatch, name):
    whole = train(tmp_path / "whole", **VARIANTS[name])
    real, killed_after = Fit.run_epoch, 2

    def killed(fit):
        if fit.epoch == killed_after:
            raise KeyboardInterrupt
        return real(fit)

    monkeypatch.setattr(Fit, "run_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", **VARIANTS[name])
    assert not (tmp_path / "cut" / "ledger.json").exists()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "net_b')  # a kill in the middle of a line
    monkeypatch.setattr(Fit, "run_epoch", real)
    torch.manual_seed(12345)
    resumed = train(tmp_path / "cut", resume=True, **VARIANTS[name])
    assert resumed.ledger == whole.ledger
    assert same(posterior(tmp_path / "whole"), posterior(tmp_path / "cut"))
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    wanted = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, whole.epochs + 1))
    assert [line["net_bits"] for line in lines] == [line["net_bits"] for line in wanted]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train(tmp_path / "run")
    again = train(tmp_path / "run", resume=True)
    assert again.ledger == first.ledger


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    real = Fit.run_epoch

    def broken(fit):
        if fit.epoch == 2:
            fit.model.weights[0].posterior.mean.data[0, 0] = math.nan
        return real(fit)

    monkeypatch.setattr(Fit, "run_epoch", broken)
    with pytest.raises(TrainingError, match=r"posterior mean of 'linear1\.weight' is not finite"):
        train(tmp_path / "run")
    tensors, metadata = read_tensors(tmp_path / "run" / "checkpoint" / "state.safetensors")
    assert json.loads(metadata["facts"])["epoch"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


class Exploding(nn.Module):
    """Overflows inside one layer."""

    def __init__(self):
        super().__init__()
        self.fine, self.hot, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        nn.init.constant_(self.hot.weight, 1e38)

    def forward(self, x):
        return self.last(self.hot(self.fine(x.flatten(1)) * 1e3).sum(1, keepdim=True) * torch.ones(8))


def exploding():
    return Exploding()


def test_an_overflowing_activation_names_its_layer(tmp_path):
    with pytest.raises(TrainingError, match="output of layer 'hot' is not finite"):
        train(tmp_path / "run", network={"kind": "factory", "factory": "test_training:exploding"},
              prior={"kind": "gaussian", "learn": "none", "scale": 1e38}, bayesian={"estimator": "weight"})  # fmt: skip


@pytest.mark.parametrize("budget", [150, {"start_bits": 600, "end_bits": 150, "epochs": 20}])
def test_a_budget_is_met_within_one_percent(budget):
    outcome = Experiment.build(
        config(training={"epochs": 300, "batch_size": 150, "budget_bits": budget, "optimizer": {"lr": 0.03}})
    ).train(None, progress=False)
    assert outcome.ledger.net_weight_bits == pytest.approx(150, rel=0.01)


def test_beta_rises_to_one():
    settings = TrainingSettings.model_validate({"epochs": 4, "beta": {"start": 0.2, "warmup_epochs": 2}})
    beta = Beta(settings, steps_per_epoch=5)
    values = [beta.before_step(step, 1.0) for step in range(20)]
    assert values[0] == pytest.approx(0.2)
    assert values[10:] == [1.0] * 10
    assert values == sorted(values)


def test_early_stop_looks_at_net_bits_only(tmp_path):
    rule = {"patience_epochs": 2, "min_improvement_bits": 1e9}
    outcome = train(tmp_path / "run", training={"epochs": 50, "early_stop": rule})
    assert outcome.epochs == 4
    assert outcome.stopped_early
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4


def test_the_last_epoch_of_the_log_agrees_with_the_ledger(tmp_path):
    ledger = train(tmp_path / "run", training={"epochs": 60, "optimizer": {"lr": 0.05}}).ledger
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["net_weight_bits"] == pytest.approx(ledger.net_weight_bits, rel=0.01)
    assert last["data_bits"] == pytest.approx(ledger.data_bits, rel=0.2)
    assert last["hyperparameter_bits"] == ledger.hyperparameter_bits


def test_a_point_estimate_learns(tmp_path):
    sections = {"posterior": {"kind": "point"}, "prior": {"kind": "gaussian", "scale": 1.0, "learn": "none"}}
    outcome = train(tmp_path / "run", training={"epochs": 60, "optimizer": {"lr": 0.05}}, **sections)
    assert outcome.test_error < 0.2
    assert outcome.ledger.refund_bits == 0.0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["net_bits"] == pytest.approx(outcome.ledger.net_bits, rel=0.05)


def test_a_point_with_a_learned_prior_is_refused(tmp_path):
    with pytest.raises(PriorError, match=r"collapse onto it; set prior\.learn=none"):
        train(tmp_path / "run", posterior={"kind": "point"})


def test_a_gradient_that_is_not_finite_never_reaches_the_checkpoint(tmp_path, monkeypatch):
    from bitsback.optim import Adam

    real, taken = Adam.step, []

    def broken(self, *args, **kwargs):
        if len(taken) == 9:  # the last step of epoch two
            self.model.network[1].weight.grad[0, 0] = math.nan
        taken.append(real(self, *args, **kwargs))

    monkeypatch.setattr(Adam, "step", broken)
    with pytest.raises(TrainingError, match=r"after epoch 2 the posterior mean of 'linear1\.weight' is not finite"):
        train(tmp_path / "run", training={"schedule": {"name": None}})
    tensors, metadata = read_tensors(tmp_path / "run" / "checkpoint" / "state.safetensors")
    assert json.loads(metadata["facts"])["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_statistics_that_are_not_finite_are_named(tmp_path, monkeypatch):
    real = Fit.step

    def broken(fit, *args):
        result = real(fit, *args)
        dict(fit.model.statistics())["batchnorm1d1.running_var"].fill_(math.inf)
        return result

    monkeypatch.setattr(Fit, "step", broken)
    with pytest.raises(TrainingError, match=r"'batchnorm1d1\.running_var' is not finite"):
        train(tmp_path / "run", network={"kind": "sequential", "layers": ["Flatten", "BatchNorm1d", "Linear"]})


def test_a_diverged_run_says_so(tmp_path):
    with pytest.raises(TrainingError, match="not"):
        train(tmp_path / "run", training={"optimizer": {"name": "SGD", "lr": 1e6}})


def test_a_budget_counts_what_the_ledger_counts():
    training = {"epochs": 300, "batch_size": 150, "budget_bits": 500, "optimizer": {"lr": 0.03}}
    outcome = Experiment.build(config(training=training, bayesian={"exclude": ["*.bias"]})).train(None, progress=False)
    assert outcome.ledger.net_weight_bits == pytest.approx(500, rel=0.01)


def test_a_budget_out_of_reach_is_named_in_the_ledger():
    outcome = Experiment.build(config(training={"epochs": 5, "budget_bits": 1})).train(None, progress=False)
    assert "the budget of 1 bits was missed" in outcome.ledger.notes[-1]


def test_early_stop_waits_for_beta(tmp_path):
    rule = {"patience_epochs": 1, "min_improvement_bits": 1e9}
    training = {"epochs": 20, "early_stop": rule, "beta": {"start": 0.1, "warmup_epochs": 8}}
    assert train(tmp_path / "run", training=training).epochs == 10


def test_training_leaves_the_callers_generator_alone():
    torch.manual_seed(7)
    experiment = Experiment.build(config())
    before = torch.get_rng_state()
    experiment.train(None, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_every_epoch_logs_comparable_gross_and_net(tmp_path):
    train(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["gross_bits"] - line["refund_bits"] == pytest.approx(line["net_bits"])
        assert line["net_bits"] == pytest.approx(line["data_bits"] + line["net_weight_bits"] + line["hyperparameter_bits"])
        assert line["seconds"] > 0
        assert line["beta"] == 1.0


def test_tensorboard_writes_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", logging={"tensorboard": True})
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"bits/net", "bits/gross", "bits/refund", "bits/data"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("bits/net")) == 6


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_precisions(tmp_path, precision):
    outcome = train(tmp_path / "run", training={"precision": precision, "epochs": 60, "optimizer": {"lr": 0.05}})
    assert outcome.ledger.net_bits < outcome.ledger.uniform_bits
    tensors, _ = read_tensors(tmp_path / "run" / "checkpoint" / "state.safetensors")
    wanted = torch.float64 if precision == "float64" else torch.float32
    assert {t.dtype for name, t in tensors.items() if name.endswith("log_std")} == {wanted}


def test_several_draws_per_batch(tmp_path):
    outcome = train(tmp_path / "run", training={"draws": 2, "epochs": 60, "optimizer": {"lr": 0.05}})
    assert outcome.ledger.net_bits < outcome.ledger.uniform_bits


def test_gradient_clipping_changes_the_path(tmp_path):
    sgd = {"optimizer": {"name": "SGD", "lr": 0.1}}
    free = train(tmp_path / "free", training=sgd)
    clipped = train(tmp_path / "clipped", training={**sgd, "gradient_clip": 1e-3})
    assert clipped.ledger.data_bits > free.ledger.data_bits


def test_fine_tuning_with_a_checkpoint_prior_costs_only_the_difference(tmp_path):
    longer = {"epochs": 80, "optimizer": {"lr": 0.03}}
    first = train(tmp_path / "first", training=longer)
    again = train(
        tmp_path / "second", training=longer, posterior={"kind": "gaussian", "relative_to": "prior", "std": 0.9},
        prior={"kind": "checkpoint", "run": str(tmp_path / "first")},
    )  # fmt: skip
    assert again.ledger.net_weight_bits < 0.2 * first.ledger.net_weight_bits
    assert any("assumed known to the receiver" in line for line in again.ledger.not_charged)


class Shared(nn.Module):
    """A tied weight, a fixed buffer, batch norm and a named layer: what a pretrained network may hold."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.face = nn.Linear(64, 10, bias=False), nn.BatchNorm1d(10), bitsback.Linear(10, 10)
        self.again = nn.Linear(64, 10, bias=False)
        self.again.weight = self.first.weight
        self.register_buffer("fixed", torch.ones(10))

    def forward(self, x):
        x = x.flatten(1)
        return self.face(self.norm(self.first(x) + self.again(x))) * self.fixed


def shared():
    return Shared()


@pytest.mark.parametrize(
    "network", [{"kind": "sequential", "layers": ["Flatten", "Linear"]}, {"kind": "factory", "factory": "test_training:shared"}]
)
def test_a_run_is_a_place_to_start_from(tmp_path, network):
    train(tmp_path / "first", network=network)
    again = Experiment.build(config(network={**network, "pretrained": str(tmp_path / "first")}))
    stored = posterior(tmp_path / "first")
    for weight in again.model.weights:
        assert torch.equal(weight.posterior.mean.detach(), stored[f"{weight.name}.mean"])
    for name, buffer in again.model.statistics():
        assert torch.equal(buffer, stored[name])


def test_a_checkpoint_prior_of_another_network_is_refused(tmp_path):
    train(tmp_path / "first")
    layers = ["Flatten", {"Linear": {"out_features": 4}}, "Linear"]
    with pytest.raises(Exception, match="the earlier run must be of the same network"):
        train(
            None, network={"kind": "sequential", "layers": layers}, prior={"kind": "checkpoint", "run": str(tmp_path / "first")}
        )


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    layers = ["Flatten", {"Linear": {"out_features": 4}}, "Linear"]
    with pytest.raises(RunError, match="does not fit this configuration"):
        train(tmp_path / "other", resume=True, network={"kind": "sequential", "layers": layers})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": {"name": "Adm"}}, "did you mean 'Adam'"),
        ({"optimizer": {"arguments": {"bets": 1}}}, "refuses its arguments"),
        ({"schedule": {"name": "CosineAnealingLR"}}, "did you mean 'CosineAnnealingLR'"),
        ({"schedule": {"name": "StepLR"}}, "refuses its arguments"),
        ({"device": "warp9"}, "cannot be used here"),
    ],
)
def test_what_torch_does_not_know_is_refused(tmp_path, training, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", training=training)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_is_complete_and_reloads(tmp_path):
    outcome = train(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "ledger.json", "posterior.safetensors", "summary.json", "checkpoint"}
    settled = config().training.settled(300, CategoricalLikelihood(10))  # numbers in place of auto
    data = config().data.model_copy(update={"scaling": "unit"})
    assert load_config(tmp_path / "run" / "config.yaml") == config().model_copy(update={"training": settled, "data": data})
    from bitsback.config import load_run
    from bitsback.model import take_ledger

    e = load_run(tmp_path / "run").experiment()
    again = take_ledger(e.model, e.likelihood, e.dataset.train, samples=3, seed=0)
    assert dataclasses.replace(again, warnings=outcome.ledger.warnings) == outcome.ledger  # a cause may have shown in training


def test_a_training_is_not_told_that_it_clips(recwarn):
    """With many classes of which few occur, gradients hardly change their norm at first."""
    data = bitsback.Dataset("few of many", bitsback.Examples(torch.randn(60, 4), torch.arange(60) % 3), None)
    model = bitsback.bayesianize(nn.Linear(4, 2000), posterior="point", prior={"kind": "gaussian", "learn": "none"})
    settings = TrainingSettings(epochs=4, batch_size=60, optimizer={"lr": 1e-7})
    bitsback.train(model, CategoricalLikelihood(2000), data, training=settings, progress=False)
    assert [str(warning.message) for warning in recwarn] == []
