"""Every setting of training, bayesian, posterior and prior does what its description says: which test shows it, and the tests."""

import ast
import copy
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn
from torch.nn import functional as F

import bitsback
from bitsback.atomic_io import read_tensors
from bitsback.config import Config, Experiment, json_schema
from bitsback.errors import ConfigError
from bitsback.kl import kl
from bitsback.training.augment import AugmentSettings, augmented
from bitsback.training.settings import TrainingSettings
from bitsback.training.train import start, threads_for
from bitsback.units import bits_to_nats, nats_to_bits

TESTS = Path(__file__).parent
SECTIONS = ("training", "bayesian", "posterior", "prior")
SCHEMA = json_schema()

# Which test shows it


def resolved(node):
    return SCHEMA["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def kinds_of(variant):
    """The values of a variant's ``kind``."""
    kind = variant["properties"]["kind"]
    return kind["enum"] if "enum" in kind else [kind["const"]]


def variants_of(node):
    """The mappings that a setting may be, by their kind where there are several."""
    choices = [resolved(choice) for choice in node.get("oneOf", node.get("anyOf", []))]
    mappings = [choice for choice in choices if "properties" in choice]
    several = "discriminator" in node
    return {kind: one for one in mappings for kind in (kinds_of(one) if several else [""])}


def keys_below(name, node) -> Iterator[str]:
    """Dotted names of all settings below one; what has several kinds, with the kind in its name."""
    node = resolved(node)
    if "properties" in node:
        for key, value in node["properties"].items():
            yield from keys_below(f"{name}.{key}", value)
        return
    variants = variants_of(node)
    if "" in variants or not variants:
        yield name
    for kind, variant in variants.items():
        yield from keys_below(f"{name}.{kind}" if kind else name, variant)


KEYS = [key for section in SECTIONS for key in keys_below(section, SCHEMA["properties"][section])]
PRIORS = {kind: list(one["properties"]) for kind, one in variants_of(SCHEMA["properties"]["prior"]).items()}
OWN = PRIORS.pop("factory")  # what it does is up to the function: tests/test_factories.py
LEARN = {
    kind: resolved(one["properties"]["learn"]).get("enum", [])
    for kind, one in variants_of(SCHEMA["properties"]["prior"]).items()
    if kind in PRIORS
}
PER = {
    kind: one["properties"]["per"].get("enum") or [one["properties"]["per"]["const"]]
    for kind, one in variants_of(SCHEMA["properties"]["prior"]).items()
    if kind in PRIORS
}
HERE = "test_settings_do_what_they_say.py::"
OBJECTIVES = ("elbo", "quad", "lambda", "classic")

SHOWN_BY: dict[str, str] = {
    "training.epochs": HERE + "test_epochs_are_passes_over_the_training_split",
    "training.batch_size": HERE + "test_batches_are_equal_and_hold_at_most_so_many_examples",
    "training.draws": HERE + "test_every_group_of_a_batch_has_a_draw_of_its_own",
    "training.antithetic": HERE + "test_every_second_draw_is_the_mirror_image_of_the_one_before",
    "training.fused": HERE + "test_one_pass_and_one_thing_after_the_other_give_the_same_numbers",
    "training.noise_reuse": HERE + "test_as_many_draws_share_a_number_as_told",
    **{
        f"training.objective.{kind}.{key}": HERE + "test_a_step_goes_down_the_objective_that_was_set"
        for kind in OBJECTIVES
        for key in (("kind",) if kind == "elbo" else ("kind", "delta", "p_min"))
    },
    "training.optimizer.name": HERE + "test_steps_are_those_of_the_optimiser_of_that_name",
    "training.optimizer.lr": HERE + "test_means_and_log_stds_move_at_rates_of_their_own",
    "training.optimizer.log_std_lr": HERE + "test_means_and_log_stds_move_at_rates_of_their_own",
    "training.optimizer.arguments": HERE + "test_the_optimiser_gets_its_arguments",
    "training.schedule.name": HERE + "test_the_rate_is_that_of_torchs_schedule",
    "training.schedule.arguments": HERE + "test_the_rate_is_that_of_torchs_schedule",
    "training.schedule.warmup_epochs": HERE + "test_the_rate_rises_from_a_hundredth",
    "training.beta.start": HERE + "test_the_kl_counts_as_much_as_beta_says",
    "training.beta.warmup_epochs": HERE + "test_the_kl_counts_as_much_as_beta_says",
    "training.budget_bits": "test_training.py::test_a_budget_is_met_within_one_percent",
    "training.budget_bits.start_bits": HERE + "test_a_budget_moves_from_start_to_end_over_its_epochs",
    "training.budget_bits.end_bits": HERE + "test_a_budget_moves_from_start_to_end_over_its_epochs",
    "training.budget_bits.epochs": HERE + "test_a_budget_moves_from_start_to_end_over_its_epochs",
    "training.augment": HERE + "test_images_are_changed_in_training_and_not_in_the_ledger",
    "training.augment.shift_pixels": HERE + "test_a_shift_moves_along_either_axis_as_far_as_told",
    "training.augment.rotate_degrees": HERE + "test_a_rotation_turns_as_far_as_told",
    "training.augment.zoom": HERE + "test_a_zoom_stretches_either_axis_as_far_as_told",
    "training.augment.shear": HERE + "test_a_shear_moves_rows_as_far_as_told",
    "training.gradient_clip": HERE + "test_a_long_gradient_is_cut_to_the_clip",
    "training.early_stop": HERE + "test_a_training_stops_when_it_no_longer_improves",
    "training.early_stop.patience_epochs": HERE + "test_a_training_stops_when_it_no_longer_improves",
    "training.early_stop.min_improvement_bits": HERE + "test_a_training_stops_when_it_no_longer_improves",
    "training.checkpoint_seconds": HERE + "test_checkpoints_are_as_far_apart_as_told",
    "training.threads": HERE + "test_training_runs_on_as_many_threads_as_told",
    "training.device": HERE + "test_training_runs_on_the_device_that_was_named",
    "training.graph": "test_graphs.py::test_steps_are_captured_where_that_is_asked_for",
    "training.log_every": "test_graphs.py::test_a_loss_that_is_not_finite_is_found_when_it_is_read",
    "training.precision": HERE + "test_the_forward_pass_runs_in_the_precision_that_was_named",
    "bayesian.include": HERE + "test_only_what_is_included_gets_a_posterior",
    "bayesian.exclude": HERE + "test_what_is_excluded_is_charged_as_float32",
    "bayesian.estimator": HERE + "test_training_draws_what_the_estimator_says",
    "posterior.gaussian.kind": HERE + "test_a_gaussian_posterior_is_drawn_and_gives_bits_back_and_a_point_does_neither",
    "posterior.gaussian.std": HERE + "test_stds_start_where_told",
    "posterior.gaussian.relative_to": HERE + "test_stds_start_where_told",
    "posterior.point.kind": HERE + "test_a_gaussian_posterior_is_drawn_and_gives_bits_back_and_a_point_does_neither",
    "posterior.point.grid_step": HERE + "test_points_are_coded_on_their_grid",
    **{
        f"prior.{kind}.{key}": HERE + "test_training_pays_for_weights_by_the_density_that_was_set"
        for kind, keys in PRIORS.items()
        for key in keys
        if key not in ("learn", "per", "group")
    },
    **{f"prior.factory.{key}": "test_factories.py::test_what_a_prior_of_ones_own_is_told" for key in OWN},
    **{f"prior.{kind}.learn": HERE + "test_numbers_of_a_prior_are_learned_and_charged_or_neither" for kind in PRIORS},
    **{f"prior.{kind}.per": HERE + "test_as_many_weights_share_a_prior_as_told" for kind in PRIORS},
    "prior.group_gaussian.group": HERE + "test_units_of_the_group_have_scales_of_their_own",
}
"""From each key to the test that shows it."""

ALSO_SHOWN_BY = {
    "prior_overrides": "test_model.py::test_overrides_by_pattern",
    "logging.histograms_every": "test_loggers.py::test_histograms_of_every_tensor_at_some_epochs_and_at_the_end",
    "tied weights": HERE + "test_a_tied_weight_is_drawn_moved_and_charged_once",
    "IVON": HERE + "test_natural_gradients_are_those_of_the_paper",
    "checkpoint prior": "test_training.py::test_fine_tuning_with_a_checkpoint_prior_costs_only_the_difference",
}
"""The same for what is no key of these sections, but stands in the design."""


def test_every_key_has_a_test_and_no_test_is_for_a_key_that_is_gone():
    assert len(KEYS) == len(set(KEYS)) > 100
    assert set(KEYS) == SHOWN_BY.keys()


@pytest.mark.parametrize("named", sorted({*SHOWN_BY.values(), *ALSO_SHOWN_BY.values()}))
def test_the_named_test_exists(named):
    file, _, name = named.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# A small training that is looked at

DENSE = {"kind": "sequential", "layers": ["Flatten", {"Linear": {"bias": False}}]}
CONVOLUTION = {"kind": "sequential", "layers": [{"Conv2d": {"out_channels": 3, "kernel_size": 3}}, "Flatten", "Linear"]}
LINEAR = "linear1.weight"
BASE = {
    "data": {"kind": "digits", "limit": 60},
    "network": DENSE,
    "prior": {"kind": "gaussian", "learn": "none", "scale": 1.0},
    "bayesian": {"estimator": "weight"},
    "training": {
        "epochs": 1,
        "batch_size": 60,
        "precision": "float64",
        "optimizer": {"name": "SGD", "lr": 0.1},
        "schedule": {"name": None},
    },
    "ledger": {"samples": 2},
}


class Metrics(list):
    """A logger that keeps what it is told, and calls when the epochs are over."""

    def __init__(self, at_the_end=lambda: None):
        super().__init__()
        self.at_the_end = at_the_end

    def log(self, metrics):
        self.append(metrics)

    def close(self):
        self.at_the_end()


def built(**sections):
    merged = {**BASE, **sections, "training": {**BASE["training"], **sections.get("training", {})}}
    return Experiment.build(Config.model_validate(merged))


def train(directory=None, logger=None, **sections):
    """Train, and return what was seen: each forward pass, the posteriors before each step, the log, the ledger."""
    experiment = built(**sections)
    model, config = experiment.model, experiment.config
    training, asked, steps = [], [], []
    metrics = Metrics(at_the_end=asked.clear)  # what is asked then, is asked for the ledger, and for the test error

    def state():
        return {
            weight.name: tuple(p.detach().double().clone() for p in weight.posterior.parameters()) for weight in model.weights
        }

    def look(_network, inputs, output):
        weights = {name: p.detach().double().clone() for name, p in model.network.named_parameters()}
        seen = SimpleNamespace(
            inputs=inputs[0].clone(), weights=weights, output=output.detach(), threads=torch.get_num_threads(), step=len(steps)
        )
        (training if torch.is_grad_enabled() else asked).append(seen)

    handle = model.network.register_forward_hook(look)
    states = [state()]

    def watch(step, _model):
        steps.append(step)
        states.append(state())

    outcome = bitsback.train(
        model, experiment.likelihood, experiment.dataset, out=directory, training=config.training, ledger=config.ledger,
        seed=config.seed, progress=False, loggers=[metrics, *([] if logger is None else [logger])], watch=watch,
    )  # fmt: skip
    handle.remove()
    return SimpleNamespace(
        model=model, data=experiment.dataset.train, training=training, asked=asked, states=states, steps=len(steps),
        metrics=metrics, outcome=outcome, ledger=outcome.ledger,
    )  # fmt: skip


def targets_of(run, inputs):
    """The targets of these rows of the training split."""
    data = run.data.inputs.double()
    found = (inputs.flatten(1).double()[:, None] == data.flatten(1)[None]).all(-1)
    assert (found.sum(1) == 1).all()
    return run.data.targets[found.double().argmax(1)]


def kl_bits(mean, log_std):
    return nats_to_bits((0.5 * (mean.square() + (2 * log_std).exp()) - log_std - 0.5).sum())


def description_length(bits, kl, examples, beta=1.0):
    return bits.mean() + beta * kl / examples


def gradients(run, step, loss=description_length):
    """Gradients of a dense network's loss, by autograd through mean + std e with the noise of that step's draws, float64."""
    mean, log_std = (p.clone().requires_grad_() for p in run.states[step][LINEAR])
    bits = []
    for seen in run.training:
        if seen.step == step:
            noise = (seen.weights[LINEAR] - mean.detach()) / log_std.detach().exp()
            outputs = seen.inputs.double().flatten(1) @ (mean + log_std.exp() * noise).T
            bits.append(nats_to_bits(F.cross_entropy(outputs, targets_of(run, seen.inputs), reduction="none")))
    loss(torch.cat(bits), kl_bits(mean, log_std), len(run.data)).backward()
    return mean.grad, log_std.grad


def moved(run, step=0):
    """How far mean and log std went in a step."""
    return tuple(after - before for after, before in zip(run.states[step + 1][LINEAR], run.states[step][LINEAR], strict=True))


def close(found, wanted, tolerance=1e-9):
    return torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.detach().abs().max()))


# training: epochs, batches, draws


def test_epochs_are_passes_over_the_training_split():
    for epochs in (2, 3):
        run = train(training={"epochs": epochs, "batch_size": 30})
        assert [line["epoch"] for line in run.metrics] == list(range(1, epochs + 1))
        seen = torch.cat([forward.inputs for forward in run.training]).flatten(1)
        rows, count = torch.unique(seen, dim=0, return_counts=True)
        assert len(rows) == 60
        assert (count == epochs).all()
    settled = built(training={"epochs": "auto", "batch_size": 1}).config.training
    assert settled.epochs == math.ceil(4000 / 60)
    assert built(data={"kind": "digits"}, training={"epochs": "auto", "batch_size": 2}).config.training.epochs == 30


@pytest.mark.parametrize(("size", "batches"), [(60, [60]), (25, [20, 20, 20]), (16, [15, 15, 15, 15])])
def test_batches_are_equal_and_hold_at_most_so_many_examples(size, batches):
    assert [len(seen.inputs) for seen in train(training={"batch_size": size}).training] == batches


def test_every_group_of_a_batch_has_a_draw_of_its_own():
    one, four = train(), train(training={"draws": 4, "epochs": 2})
    assert [len(seen.inputs) for seen in one.training] == [60]
    assert [(seen.step, len(seen.inputs)) for seen in four.training] == [(step, 15) for step in (0, 1) for _ in range(4)]
    drawn = torch.stack([seen.weights[LINEAR] for seen in four.training])
    assert len(drawn[:, 0, 0].unique()) == 8
    assert torch.cat([seen.inputs for seen in four.training[:4]]).flatten(1).unique(dim=0).shape[0] == 60
    for step in (0, 1):  # each group's gradient under its own draw, the KL once
        for found, wanted in zip(moved(four, step), gradients(four, step), strict=True):
            assert close(found, -0.1 * wanted)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])  # reused noise, and fresh one
def test_every_second_draw_is_the_mirror_image_of_the_one_before(fused, precision, tolerance):
    for antithetic in (True, False):
        run = train(training={"draws": 4, "epochs": 2, "antithetic": antithetic, "fused": fused, "precision": precision})
        for step in (0, 1):
            mean = run.states[step][LINEAR][0]
            drawn = [seen.weights[LINEAR] - mean for seen in run.training if seen.step == step]
            for first, second in ((0, 1), (2, 3)):
                assert close(drawn[second], -drawn[first], tolerance) == antithetic
            assert not close(drawn[2].abs(), drawn[0].abs(), 0.1)
            for found, wanted in zip(moved(run, step), gradients(run, step), strict=True):
                assert close(found, -0.1 * wanted, tolerance)


def test_antithetic_draws_come_in_pairs_of_drawn_weights():
    with pytest.raises(ValueError, match=r"come in pairs, and draws is 3; set training\.draws to 2 or 4"):
        built(training={"draws": 3, "antithetic": True})
    with pytest.raises(ConfigError, match=r"no layer draws its weights; .* set bayesian\.estimator=weight"):
        train(training={"draws": 2, "antithetic": True}, bayesian={"estimator": "output"})


def test_the_outputs_of_a_mirrored_draw_have_noise_of_their_own():
    """A convolution draws its weights, the dense layer its outputs: what that adds must not be the same for both halves."""
    run = train(network=CONVOLUTION, training={"draws": 2, "antithetic": True}, bayesian={"estimator": "auto"})
    added = []
    for seen in run.training:
        kernel, bias = seen.weights["conv2d1.weight"], seen.weights["conv2d1.bias"]
        plain = F.linear(F.conv2d(seen.inputs, kernel, bias).flatten(1), seen.weights[LINEAR], seen.weights["linear1.bias"])
        added.append((seen.output - plain).flatten())
    assert all(float(noise.std()) > 0.01 for noise in added)
    assert abs(float(torch.corrcoef(torch.stack(added))[0, 1])) < 0.2  # 300 numbers: three standard errors are .17


class Layout(Metrics):
    """A logger that keeps how the first filters lie in memory while training."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def log(self, metrics):
        self.append(self.model.network[1].weight.stride())


def test_one_pass_and_one_thing_after_the_other_give_the_same_numbers():
    training = {"epochs": 5, "batch_size": 20, "optimizer": {"name": "Adam", "lr": 0.01}}
    dense = {"kind": "sequential", "layers": ["Flatten", {"Linear": {"out_features": 20}}, "Linear"]}
    one, other = (train(network=dense, training={**training, "fused": fused}).states[-1] for fused in (True, False))
    assert all(close(p, q, 1e-8) for name in one for p, q in zip(one[name], other[name], strict=True))
    layers = [{"Conv2d": {"out_channels": 3, "kernel_size": 3}}, *CONVOLUTION["layers"]]
    for fused, strides in ((True, (27, 1, 9, 3)), (False, (27, 9, 3, 1))):  # of filters 3 x 3 x 3 x 3, channels last or not
        e = built(network={**CONVOLUTION, "layers": layers}, training={**training, "fused": fused, "precision": "float32"})
        begun = start(copy.deepcopy(e.model), copy.deepcopy(e.likelihood), e.dataset.train, e.config.training)
        assert begun.optimizer.by_pieces == fused
        layout = Layout(e.model)
        e.train(None, progress=False, loggers=[layout])
        assert set(layout) == {strides}


def numbers_shared_with_the_last_draw(reuse, precision="float32"):
    wide = {"kind": "gaussian", "std": 1.0, "relative_to": "absolute"}  # so that the noise can be told from the weights
    run = train(training={"epochs": 12, "noise_reuse": reuse, "precision": precision}, posterior=wide)
    noise = []
    for seen in run.training:
        mean, log_std = run.states[seen.step][LINEAR]
        noise.append(((seen.weights[LINEAR] - mean) / log_std.exp()).flatten())
    assert abs(float(torch.stack(noise).std()) - 1) < 0.05
    shared = [(after[:, None] - before).abs().min(1).values.lt(1e-6).double().mean() for before, after in pairwise(noise)]
    in_place = [(after - before).abs().lt(1e-6).double().mean() for before, after in pairwise(noise)]
    return float(torch.stack(shared).mean()), float(torch.stack(in_place).mean())


def test_as_many_draws_share_a_number_as_told():
    for fresh in (numbers_shared_with_the_last_draw(1), numbers_shared_with_the_last_draw(8, "float64")):
        assert max(fresh) < 0.01
    for reuse in (2, 4, 8):
        shared, in_place = numbers_shared_with_the_last_draw(reuse)
        assert shared == pytest.approx(1 - 1 / reuse, abs=0.1)
        assert in_place < 0.1  # each for another weight


# training: objective, optimiser, schedule, beta


def bound(kind, delta=0.025, p_min=1e-5):
    """A loss as the paper has it: Perez-Ortiz et al. 2021, equations 8 to 10, at the first step, where lambda is 1/2."""

    def loss(bits, kl, examples):
        most = -math.log2(p_min)
        risk = bits.clamp_max(most).mean() / most
        c = (bits_to_nats(kl) + math.log(2 * math.sqrt(examples) / delta)) / examples
        if kind == "quad":
            return ((risk + c / 2).sqrt() + (c / 2).sqrt()).square()
        return risk + (c / 2).sqrt() if kind == "classic" else risk / (1 - 0.25) + c / (0.5 * (1 - 0.25))

    return loss


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_step_goes_down_the_objective_that_was_set(kind):
    steps = {}
    for settings in ({},) if kind == "elbo" else ({}, {"delta": 0.5}, {"p_min": 0.2}):
        near = {"kind": "gaussian", "std": 0.9, "relative_to": "absolute"}  # to the prior, so that data count in the bound
        run = train(training={"epochs": 2, "objective": {"kind": kind, **settings}}, posterior=near)
        wanted = gradients(run, 0, description_length if kind == "elbo" else bound(kind, **settings))
        for found, gradient in zip(moved(run), wanted, strict=True):
            assert close(found, -0.1 * gradient)
        steps[str(settings)] = moved(run, 1)[0]  # delta moves lambda, and lambda the next step
    others = [step for name, step in steps.items() if name != "{}"]
    assert not any(close(step, steps["{}"], 1e-5) for step in others)


ACCEPTED = sorted({name for name in vars(torch.optim) if name[0].isupper()} - {"Optimizer", "LBFGS", "SparseAdam"})


def follow(run, optimizer, mean, log_std):
    """Whether an optimiser that is given the same gradients takes the same steps."""
    for step in range(run.steps):
        mean.grad, log_std.grad = gradients(run, step)
        optimizer.step()
        wanted = run.states[step + 1][LINEAR]
        if not all(close(p.detach(), other, 1e-8) for p, other in zip((mean, log_std), wanted, strict=True)):
            return False
    return True


@pytest.mark.parametrize("name", ACCEPTED)
def test_steps_are_those_of_the_optimiser_of_that_name(name):
    run = train(training={"epochs": 3, "optimizer": {"name": name, "lr": 0.01, "log_std_lr": 0.03}})
    mean, log_std = (nn.Parameter(p.clone()) for p in run.states[0][LINEAR])
    optimizer = getattr(torch.optim, name)([{"params": mean}, {"params": log_std, "lr": 0.03}], lr=0.01)
    if "weight_decay" in optimizer.defaults:
        optimizer.param_groups[1]["weight_decay"] = 0.0  # a log std that is pulled to zero is a std that is pulled to one
    assert follow(run, optimizer, mean, log_std)


def test_natural_gradients_are_those_of_the_paper():
    """m <- m - lr s^2 dF/dm (averaged), 1/s^2 <- (1 + r G + (r G)^2 / 2) / s^2, G = dF / dlog s, F in nats of all examples."""
    run = train(training={"epochs": 3, "optimizer": {"name": "IVON", "lr": 0.2, "log_std_lr": 0.05}})
    average = torch.zeros(10, 64, dtype=torch.float64)
    for step in range(3):
        _, log_std = run.states[step][LINEAR]
        by_mean, by_log_std = (bits_to_nats(60 * gradient) for gradient in gradients(run, step))
        average = 0.9 * average + 0.1 * by_mean
        wanted = -0.2 * (2 * log_std).exp() * average / (1 - 0.9 ** (step + 1))
        change = (0.05 * by_log_std).clamp(-1, 1)
        assert close(moved(run, step)[0], wanted, 1e-7)
        assert close(moved(run, step)[1], -0.5 * (1 + change + change.square() / 2).log(), 1e-7)


@pytest.mark.parametrize(("rates", "of_mean", "of_log_std"), [
    ({"lr": 0.1}, 0.1, 0.1), ({"lr": 0.2}, 0.2, 0.2), ({"lr": 0.1, "log_std_lr": 0.03}, 0.1, 0.03),
])  # fmt: skip
def test_means_and_log_stds_move_at_rates_of_their_own(rates, of_mean, of_log_std):
    run = train(training={"optimizer": {"name": "SGD", **rates}})
    by_mean, by_log_std = gradients(run, 0)
    assert close(moved(run)[0], -of_mean * by_mean)
    assert close(moved(run)[1], -of_log_std * by_log_std)


@pytest.mark.parametrize(("name", "arguments"), [
    ("SGD", {"momentum": 0.9, "nesterov": True}), ("Adam", {"betas": [0.5, 0.9], "eps": 1e-4}),
    ("Adam", {"amsgrad": True, "eps": 1e-4}), ("RMSprop", {"alpha": 0.5}),
])  # fmt: skip
def test_the_optimiser_gets_its_arguments(name, arguments):
    run = train(training={"epochs": 3, "optimizer": {"name": name, "lr": 0.01, "arguments": arguments}})
    kind = getattr(torch.optim, name)
    for given in (arguments, {}):
        parameters = [nn.Parameter(p.clone()) for p in run.states[0][LINEAR]]
        assert follow(run, kind(parameters, lr=0.01, **given), *parameters) == (given == arguments)


SCHEDULES = [
    (None, {}, {}),
    ("CosineAnnealingLR", {}, {"T_max": 6}),
    ("CosineAnnealingLR", {"T_max": 3, "eta_min": 0.01}, {}),
    ("StepLR", {"step_size": 2, "gamma": 0.5}, {}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.1}, {"total_iters": 6}),
    ("OneCycleLR", {}, {"total_steps": 6, "max_lr": 0.1}),
]


@pytest.mark.parametrize(("name", "arguments", "by_default"), SCHEDULES)
def test_the_rate_is_that_of_torchs_schedule(name, arguments, by_default):
    sgd = {"name": "SGD", "lr": 0.1, "log_std_lr": 0.3, "arguments": {"momentum": 0.9}}
    run = train(training={"epochs": 6, "optimizer": sgd, "schedule": {"name": name, "arguments": arguments}})
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    schedule = name and getattr(torch.optim.lr_scheduler, name)(plain, **{**by_default, **arguments})
    rates = []
    for _ in range(6):
        plain.step()
        if schedule:
            schedule.step()
        rates.append(plain.param_groups[0]["lr"])
    assert [line["lr"] for line in run.metrics] == pytest.approx(rates)


def test_a_schedule_moves_the_rates_of_means_and_of_log_stds():
    sgd = {"name": "SGD", "lr": 0.1, "log_std_lr": 0.3}
    run = train(training={"epochs": 2, "optimizer": sgd, "schedule": {"name": "StepLR", "arguments": {"step_size": 1}}})
    for found, gradient, rate in zip(moved(run, 1), gradients(run, 1), (0.01, 0.03), strict=True):  # a tenth after a step
        assert close(found, -rate * gradient)


def test_the_rate_rises_from_a_hundredth():
    run = train(training={"epochs": 6, "schedule": {"name": None, "warmup_epochs": 4}})
    assert [line["lr"] for line in run.metrics] == pytest.approx([0.1 * (0.01 + 0.99 * k / 4) for k in (1, 2, 3, 4, 4, 4)])
    assert close(moved(run)[0], -0.001 * gradients(run, 0)[0])
    then = train(training={"epochs": 6, "schedule": {"name": "CosineAnnealingLR", "warmup_epochs": 4}})
    assert [line["lr"] for line in then.metrics[3:]] == pytest.approx([0.1, 0.05, 0.0])


@pytest.mark.parametrize(("beta", "values"), [
    ({}, [1.0] * 6),
    ({"start": 0.2, "warmup_epochs": 4}, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]),
    ({"start": 0.5, "warmup_epochs": 2}, [0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
    ({"warmup_epochs": 2}, [0.001, 0.5005, 1.0, 1.0, 1.0, 1.0]),
])  # fmt: skip
def test_the_kl_counts_as_much_as_beta_says(beta, values):
    run = train(training={"epochs": 6, "beta": beta})
    assert [line["beta"] for line in run.metrics] == pytest.approx(values)
    for step, value in enumerate(values):
        wanted = gradients(run, step, lambda bits, kl, n, value=value: description_length(bits, kl, n, value))
        for found, gradient in zip(moved(run, step), wanted, strict=True):
            assert close(found, -0.1 * gradient)


def test_the_kl_warms_up_where_noise_is_learned():
    data = {"kind": "friedman", "examples": 100}
    found = {}
    for noise in ("learned", "fixed"):
        likelihood = {"kind": "gaussian", "noise": noise, **({"std": 1.0} if noise == "fixed" else {})}
        found[noise] = built(data=data, likelihood=likelihood, training={"epochs": 10}).config.training.beta.numbers
    assert found == {"learned": (0.001, 3.0), "fixed": (1.0, 0.0)}


MOVING = {"start_bits": 600.0, "end_bits": 150.0, "epochs": 40.0}


def bits_on_the_way(**budget):
    training = {"epochs": 80, "optimizer": {"lr": 0.03}, "budget_bits": {**MOVING, **budget}, "precision": "float32"}
    run = train(training=training, prior={"kind": "gaussian"}, data={"kind": "digits", "limit": 300})
    return [line["net_weight_bits"] for line in run.metrics]


def test_a_budget_moves_from_start_to_end_over_its_epochs():
    plain, longer = bits_on_the_way(), bits_on_the_way(epochs=70.0)
    higher, lower = bits_on_the_way(end_bits=300.0), bits_on_the_way(start_bits=200.0)
    assert [ends[-1] for ends in (plain, higher, lower)] == pytest.approx([150, 300, 150], rel=0.1)
    assert longer[40] > 1.5 * plain[40]  # 343 and 150 bits are asked for
    assert lower[16] < 0.7 * plain[16]  # 180 and 420


# training: images, clipping, when to stop, and the machine


def blobs(x, y, count=400, size=33, width=1.0):
    """Pictures of a spot at (x, y) pixels from the middle."""
    at = torch.arange(size, dtype=torch.float64) - size // 2
    spot = torch.exp(-0.5 * ((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / width**2)
    return spot.expand(count, 1, size, size)


def centres(images):
    at = torch.arange(images.shape[-1], dtype=torch.float64) - images.shape[-1] // 2
    mass = images.sum((1, 2, 3))
    return (images.sum((1, 2)) * at).sum(1) / mass, (images.sum((1, 3)) * at).sum(1) / mass


def reaches(values, low, high, slack=0.05):
    """Whether values fill an interval, and do not leave it but for what pixels blur."""
    span = (high - low) * slack
    return bool((values >= low - span).all() and (values <= high + span).all() and values.min() < low + span) and bool(
        values.max() > high - span
    )


def test_a_shift_moves_along_either_axis_as_far_as_told():
    for pixels in (1.0, 3.0):
        for centre in centres(augmented(blobs(0, 0), AugmentSettings(shift_pixels=pixels))):
            assert reaches(centre, -pixels, pixels)


def test_a_rotation_turns_as_far_as_told():
    for degrees in (10.0, 40.0):
        x, y = centres(augmented(blobs(10, 0), AugmentSettings(rotate_degrees=degrees)))
        assert reaches(torch.rad2deg(torch.atan2(y, x)), -degrees, degrees)
        assert torch.allclose(torch.hypot(x, y), torch.tensor(10.0, dtype=torch.float64), atol=0.1)


def test_a_zoom_stretches_either_axis_as_far_as_told():
    for zoom in (0.1, 0.3):
        x, y = centres(augmented(blobs(8, 8), AugmentSettings(zoom=zoom)))
        for factor in (8 / x, 8 / y):
            assert reaches(factor, 1 - zoom, 1 + zoom)
        assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.2  # each axis by itself


def test_a_shear_moves_rows_as_far_as_told():
    for shear in (0.1, 0.5):
        x, y = centres(augmented(blobs(0, 8), AugmentSettings(shear=shear)))
        assert reaches(x / 8, -shear, shear)
        assert torch.allclose(y, torch.tensor(8.0, dtype=torch.float64), atol=0.05)
    assert torch.allclose(augmented(blobs(3, 5), AugmentSettings()), blobs(3, 5), atol=1e-6)


@pytest.mark.parametrize("augment", [
    None, {"shift_pixels": 1.0}, {"rotate_degrees": 20.0}, {"zoom": 0.2}, {"shear": 0.2},
])  # fmt: skip
def test_images_are_changed_in_training_and_not_in_the_ledger(augment):
    run = train(training={"epochs": 2, "augment": augment})
    known = {tuple(row.tolist()) for row in run.data.inputs.double().flatten(1)}

    def changed(forwards):
        rows = [tuple(row.tolist()) for seen in forwards for row in seen.inputs.double().flatten(1)]
        return sum(row not in known for row in rows) / len(rows)

    assert changed(run.training) == (0.0 if augment is None else 1.0)
    assert changed(run.asked[:2]) == 0.0  # the ledger's two draws of all examples
    assert sum(len(seen.inputs) for seen in run.asked[:2]) == 120
    assert not torch.equal(run.training[0].inputs, run.training[1].inputs)


def test_a_long_gradient_is_cut_to_the_clip():
    free = train()
    length = math.hypot(*(float(gradient.norm()) for gradient in gradients(free, 0)))
    for share in (0.5, 2.0):
        clipped = train(training={"gradient_clip": share * length})
        for found, plain in zip(moved(clipped), moved(free), strict=True):
            assert close(found, min(1.0, share) * plain, 1e-5)


def test_a_training_stops_when_it_no_longer_improves():
    def epochs(**rule):
        adam = {"name": "Adam", "lr": 0.02}
        outcome = train(training={"epochs": 12, "optimizer": adam, "early_stop": rule or None}).outcome
        assert outcome.stopped_early == (outcome.epochs < 12)
        return outcome.epochs

    assert epochs() == 12
    assert epochs(patience_epochs=2, min_improvement_bits=1e9) == 4
    assert epochs(patience_epochs=3, min_improvement_bits=1e9) == 6
    assert epochs(patience_epochs=2, min_improvement_bits=0.0) == 12  # a training that begins improves


@pytest.mark.parametrize(("seconds", "epochs"), [(0.0, [0, 1, 2]), (1e6, [0, 0, 0])])
def test_checkpoints_are_as_far_apart_as_told(tmp_path, seconds, epochs):
    class Look(Metrics):
        """Keeps the epoch of the checkpoint that is there when an epoch ends."""

        def log(self, metrics):
            self.append(json.loads(read_tensors(tmp_path / "run/checkpoint/state.safetensors")[1]["facts"])["epoch"])

    look = Look()
    train(tmp_path / "run", look, training={"epochs": 3, "checkpoint_seconds": seconds})
    assert look == epochs
    assert json.loads(read_tensors(tmp_path / "run/checkpoint/state.safetensors")[1]["facts"])["epoch"] == 3


@pytest.mark.parametrize(("threads", "outside", "inside"), [(1, 2, 1), (2, 1, 2), ("auto", 2, 1)])
def test_training_runs_on_as_many_threads_as_told(threads, outside, inside):
    before = torch.get_num_threads()
    torch.set_num_threads(outside)
    try:
        run = train(training={"threads": threads})
        assert torch.get_num_threads() == outside
    finally:
        torch.set_num_threads(before)
    assert {seen.threads for seen in [*run.training, *run.asked]} == {inside}
    assert run.outcome.threads == inside


def test_a_large_model_takes_the_threads_that_there_are():
    settings = TrainingSettings()
    large = bitsback.bayesianize(nn.Linear(1000, 1000))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert threads_for(settings, large) == 2
        assert threads_for(settings, bitsback.bayesianize(nn.Linear(10, 10))) == 1
    finally:
        torch.set_num_threads(before)


ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)


def test_training_runs_on_the_device_that_was_named():
    here = ACCELERATOR.type if ACCELERATOR else "cpu"
    for name in {"cpu", "auto", here}:
        run = train(training={"device": name, "precision": "float32"})
        wanted = here if name == "auto" else name
        assert {seen.inputs.device.type for seen in [*run.training, *run.asked]} == {wanted}
        assert {p.device.type for p in run.model.parameters()} == {wanted}
    missing = next(name for name in ("xpu", "mps", "cuda") if name != here)
    with pytest.raises(ConfigError, match=rf"training\.device: '{missing}' cannot be used here .*; use cpu or auto"):
        train(training={"device": missing})


@pytest.mark.parametrize(("precision", "forward", "stored"), [
    ("float32", torch.float32, torch.float32),
    ("float64", torch.float64, torch.float64),
    ("bfloat16", torch.bfloat16, torch.float32),
])  # fmt: skip
def test_the_forward_pass_runs_in_the_precision_that_was_named(precision, forward, stored):
    run = train(training={"precision": precision, "epochs": 2})
    assert {seen.output.dtype for seen in run.training} == {forward}
    assert {seen.output.dtype for seen in run.asked} == {stored}
    assert {p.dtype for p in run.model.parameters()} == {stored}


# bayesian


def test_only_what_is_included_gets_a_posterior():
    every = train(network=CONVOLUTION)
    assert [weight.name for weight in every.model.weights] == ["conv2d1.weight", "conv2d1.bias", LINEAR, "linear1.bias"]
    for include, names in ((["linear1"], [LINEAR, "linear1.bias"]), (["*.weight"], ["conv2d1.weight", LINEAR])):
        run = train(network=CONVOLUTION, bayesian={"estimator": "weight", "include": include})
        assert [weight.name for weight in run.model.weights] == names
        others = sum(p.numel() for name, p in run.model.network.named_parameters() if name not in names)
        assert run.model.deterministic_bits() == 32 * others > 0


def test_what_is_excluded_is_charged_as_float32():
    run = train(network=CONVOLUTION, bayesian={"estimator": "weight", "exclude": ["conv2d1", "*.bias"]}, training={"epochs": 3})
    assert [weight.name for weight in run.model.weights] == [LINEAR]
    first, *_, last = run.training
    for name, count in (("conv2d1.weight", 27), ("conv2d1.bias", 3), ("linear1.bias", 10)):
        assert not torch.equal(first.weights[name], last.weights[name])  # it learns all the same
        (entry,) = [entry for entry in run.ledger.entries if entry.name == name]
        assert (entry.net_bits, entry.refund_bits) == (32 * count, 0)


class Cell(nn.Module):
    """A dense layer that is called twice for each example."""

    def __init__(self):
        super().__init__()
        self.inner, self.linear1 = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.linear1(torch.tanh(self.inner(torch.tanh(self.inner(x.flatten(1))))))


def cell():
    return Cell()


TWICE = {"kind": "factory", "factory": "test_settings_do_what_they_say:cell"}
MIXED = {"kind": "sequential", "layers": [*CONVOLUTION["layers"][:2], "BatchNorm1d", "Linear"]}


@pytest.mark.parametrize(("network", "estimator", "outputs"), [
    (CONVOLUTION, "weight", set()),
    (CONVOLUTION, "output", {"conv2d1", "linear1"}),
    (CONVOLUTION, "auto", {"linear1"}),
    (CONVOLUTION, {"Conv2d": "output", "Linear": "weight"}, {"conv2d1"}),
    (CONVOLUTION, {"Linear": "output"}, {"linear1"}),
    (TWICE, "auto", {"linear1"}),  # trial forwards see the other called twice
    (TWICE, {"Linear": "output"}, {"inner", "linear1"}),  # asked for
    (MIXED, "auto", {"linear1"}),  # in trials batch norm takes its running statistics, as where bits are counted
])  # fmt: skip
def test_training_draws_what_the_estimator_says(network, estimator, outputs):
    """A layer whose outputs are drawn holds its means in the forward pass, and its outputs have noise of their own."""
    run = train(network=network, bayesian={"estimator": estimator})
    (seen,) = run.training
    for weight in run.model.weights:
        layer, mean = weight.name.rpartition(".")[0], run.states[0][weight.name][0]
        assert torch.equal(seen.weights[weight.name], mean) == (layer in outputs)
    network = run.model.network
    again = torch.func.functional_call(network.train(), seen.weights, (seen.inputs,))
    assert torch.allclose(again, seen.output) == (not outputs)
    for before, after in zip(run.states[0].values(), run.states[1].values(), strict=True):  # either way, both learn
        assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))


# posterior


@pytest.mark.parametrize("std", [0.1, 0.5])
@pytest.mark.parametrize(("relative_to", "unit"), [("absolute", 1.0), ("prior", 0.25), ("fan_in", 1 / 8)])
def test_stds_start_where_told(std, relative_to, unit):
    posterior = {"kind": "gaussian", "std": std, "relative_to": relative_to}
    model = built(posterior=posterior, prior={"kind": "gaussian", "scale": 0.25}).model
    assert torch.allclose(model.weights[0].posterior.std().float(), torch.tensor(std * unit))


def test_a_gaussian_posterior_is_drawn_and_gives_bits_back_and_a_point_does_neither():
    gaussian, point = (train(training={"epochs": 3}, posterior={"kind": kind}) for kind in ("gaussian", "point"))
    assert gaussian.ledger.refund_bits > 0 == point.ledger.refund_bits
    for run, is_drawn in ((gaussian, True), (point, False)):
        for seen in run.training:
            assert torch.equal(seen.weights[LINEAR], run.states[seen.step][LINEAR][0]) != is_drawn
        assert (len({seen.weights[LINEAR][0, 0].item() for seen in run.asked[:2]}) == 2) == is_drawn
    mean = point.states[0][LINEAR][0].requires_grad_()  # its loss is the data and -log p
    outputs = point.data.inputs.double().flatten(1) @ mean.T
    (F.cross_entropy(outputs, point.data.targets) + 0.5 * mean.square().sum() / 60).backward()
    assert close(moved(point)[0], -0.1 * nats_to_bits(mean.grad))


def test_points_are_coded_on_their_grid():
    found = {}
    for step in (2.0**-4, 2.0**-6, None):
        run = train(posterior={"kind": "point", "grid_step": step})
        coded, grid = run.asked[0].weights[LINEAR], step or 2.0**-4  # below an eighth of the prior's scale, which is one
        assert run.ledger.grid_step == grid
        assert torch.equal(coded, (coded / grid).round() * grid)
        assert not torch.equal(run.states[-1][LINEAR][0], coded)  # training knows no grid
        found[step] = run.ledger.gross_weight_bits
    assert found[2.0**-6] - found[2.0**-4] == pytest.approx(2 * 640, rel=0.02)


# prior


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Two finished runs of the dense network."""
    runs = [tmp_path_factory.mktemp("runs") / name for name in ("first", "second")]
    for run, epochs in zip(runs, (2, 4), strict=True):
        train(run, training={"epochs": epochs, "optimizer": {"name": "Adam", "lr": 0.1}})
    return [str(run) for run in runs]


LOCATION = {"scale": 0.3, "mean": 0.0, "relative_to": "absolute"}
LOCATION_CHANGES = {"scale": 0.5, "mean": 0.0625, "relative_to": "fan_in"}
DENSITIES = {
    "gaussian": (LOCATION, LOCATION_CHANGES),
    "group_gaussian": (LOCATION, LOCATION_CHANGES),
    "laplace": (LOCATION, LOCATION_CHANGES),
    "cauchy": (LOCATION, LOCATION_CHANGES),
    "logistic": (LOCATION, LOCATION_CHANGES),
    "horseshoe": ({**LOCATION, "scale": 2.0}, LOCATION_CHANGES),
    "student_t": ({**LOCATION, "df": 3.0}, {**LOCATION_CHANGES, "df": 1.5}),
    "scale_mixture": ({"scales": [0.05, 0.6], "weights": [0.75, 0.25]}, {"scales": [0.1, 0.6], "weights": [0.5, 0.5]}),
    "spike_and_slab": (
        {"spike_scale": 0.05, "slab_scale": 0.6, "slab_weight": 0.25},
        {"spike_scale": 0.08, "slab_scale": 0.4, "slab_weight": 0.5},
    ),
    "adaptive_mixture": ({"components": 3, "scale": 0.3}, {"components": 4, "scale": 0.2}),
    "checkpoint": ({"run": 0, "scale": 0.1}, {"run": 1, "scale": 0.2}),
    "pyro": (
        {"distribution": "Laplace", "arguments": {"loc": 0.0, "scale": 1.0}, "scale": 0.5},
        {"distribution": "Normal", "arguments": {"loc": 0.25, "scale": 1.0}, "scale": 0.25},
    ),
}
"""Numbers of every prior, and other ones."""


def log_density(kind, *, scale=1.0, mean=0.0, relative_to="absolute", **numbers):
    """ln p(w), by scipy and by the papers, not by bitsback."""
    s = scale / 8 if relative_to == "fan_in" else scale  # 64 inputs

    def mixture(weights, means, scales):
        parts = list(zip(weights, means, scales, strict=True))
        return lambda w: np.log(sum(share * stats.norm.pdf(w, m, width) for share, m, width in parts))

    def horseshoe(w):
        x = ((w - mean) / s) ** 2 / 2
        return x + np.log(special.exp1(x)) - math.log(s * math.sqrt(2 * math.pi**3))

    match kind:
        case "gaussian" | "group_gaussian":
            return stats.norm(mean, s).logpdf
        case "laplace":
            return stats.laplace(mean, s).logpdf
        case "cauchy":
            return stats.cauchy(mean, s).logpdf
        case "logistic":
            return stats.logistic(mean, s).logpdf
        case "student_t":
            return stats.t(numbers["df"], mean, s).logpdf
        case "horseshoe":
            return horseshoe
        case "scale_mixture":
            return mixture(numbers["weights"], [0.0, 0.0], numbers["scales"])
        case "spike_and_slab":
            share = numbers["slab_weight"]
            return mixture([1 - share, share], [0.0, 0.0], [numbers["spike_scale"], numbers["slab_scale"]])
        case "adaptive_mixture":
            count = numbers["components"]
            return mixture([1 / count] * count, np.linspace(-scale, scale, count), [scale / 2] * count)
        case "checkpoint":
            means = read_tensors(Path(numbers["run"]) / "posterior.safetensors")[0]["linear1.weight.mean"].double().numpy()
            return stats.norm(means, scale).logpdf
        case "pyro":
            law = {"Laplace": stats.laplace, "Normal": stats.norm}[numbers["distribution"]]
            return law(scale * numbers["arguments"]["loc"], scale * numbers["arguments"]["scale"]).logpdf


def pull_in_training(posterior, settings):
    """The KL's part of a step: what it asks of mean and log std beyond the data, in nats of all examples; and the state, the draw."""
    run = train(training={"epochs": 2}, posterior=posterior, prior={"learn": "none", **settings})
    mean, *log_std = run.states[1][LINEAR]  # after a step: a checkpoint prior begins at its mean
    (drawn,) = [seen.weights[LINEAR] for seen in run.training if seen.step == 1]
    w = drawn.clone().requires_grad_()
    F.cross_entropy(run.data.inputs.double().flatten(1) @ w.T, run.data.targets).backward()
    of_data = [w.grad, w.grad * (drawn - mean)]
    of_step = [bits_to_nats(step / -0.1) for step in moved(run, 1)]
    pulls = [60 * (whole - data) for whole, data in zip(of_step, of_data, strict=False)]
    return pulls, mean, log_std, drawn


def slope_of(density, w, step=1e-6):
    w = w.numpy()
    return torch.from_numpy(density(w - step) - density(w + step)) / (2 * step)


def expected_pull(density, mean, std):
    """Gradients of E_q[-ln p(w)] by m and log s, by Stein's identity on a fine grid: E[-ln p e] / s, and E[-ln p (e^2 - 1)]."""
    e = torch.linspace(-8, 8, 4002, dtype=torch.float64)[:, None, None]  # it leaves out the very middle
    chance = torch.exp(-0.5 * e.square()) * (e[1] - e[0]) / math.sqrt(2 * math.pi)
    weighed = -chance * torch.from_numpy(density((mean + std * e).numpy()))
    return [(weighed * e / std).sum(0), (weighed * (e.square() - 1)).sum(0) - 1]


def right_pulls(density, mean, log_std, drawn):
    """The right ways to pull: for a point the slope h of -ln p; else h and h (w - m) - 1, alone or with the mirror image, or E_q."""
    if not log_std:
        yield [slope_of(density, mean)]
        return
    far = drawn - mean
    at, there = slope_of(density, drawn), slope_of(density, mean - far)
    yield [at, at * far - 1]
    yield [(at + there) / 2, (at - there) * far / 2 - 1]
    yield expected_pull(density, mean, log_std[0].exp())


@pytest.mark.parametrize("posterior", ["point", "gaussian"])
@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind, keys in PRIORS.items() for key in keys if key not in ("learn", "learned", "per", "group")],
)
def test_training_pays_for_weights_by_the_density_that_was_set(kind, key, posterior, earlier):
    plain, changes = DENSITIES[kind]
    tolerance = 2e-3 if kind == "horseshoe" and posterior == "gaussian" else 1e-3 if kind == "horseshoe" else 1e-4  # a table
    pulls = []
    for numbers in (plain, plain if key == "kind" else {**plain, key: changes[key]}):
        settings = {**numbers, "run": earlier[numbers["run"]]} if kind == "checkpoint" else numbers
        start = {"kind": posterior, **({"std": 0.05, "relative_to": "absolute"} if posterior == "gaussian" else {})}
        pull, *state = pull_in_training(start, {"kind": kind, **settings})
        right = right_pulls(log_density(kind, **settings), *state)
        assert any(all(close(*pair, tolerance) for pair in zip(pull, wanted, strict=True)) for wanted in right)
        pulls.append(pull[0])
    assert close(*pulls, 1e-3) == (key == "kind")


@pytest.mark.parametrize(("kind", "learn"), [(kind, learn) for kind, several in LEARN.items() for learn in several])
def test_numbers_of_a_prior_are_learned_and_charged_or_neither(kind, learn, earlier):
    plain, _ = DENSITIES[kind]
    settings = {"kind": kind, **plain, "learn": learn, **({"run": earlier[0]} if kind == "checkpoint" else {})}
    adam = {"epochs": 15, "optimizer": {"name": "Adam", "lr": 0.05}}
    before = built(prior=settings).model.double()
    run = train(training=adam, prior=settings)
    (first,), (last,) = before.priors, run.model.priors
    assert (first.values() == last.values()) == (learn == "none")
    assert run.ledger.hyperparameter_bits == sum(charge.bits for charge in last.charges())
    assert (run.ledger.hyperparameter_bits > 0) == (learn != "none")
    weight = run.model.weights[0]
    if learn != "none":  # so that weights cost less than under the numbers of the start
        assert kl(weight.posterior, last).nats < kl(weight.posterior, first).nats
    if learn == "closed_form":
        moment = (weight.posterior.mean - last.mean).square() + weight.posterior.variance()
        best = 0.5 * moment.mean([axis for axis, size in enumerate(last.log_scale.shape) if size == 1] or None).log()
        assert (last.log_scale.squeeze() - best).abs().max() <= 2**-6 + 1e-9  # half a step of its grid


TWO_LAYERS = {"kind": "sequential", "layers": ["Flatten", {"Linear": {"out_features": 8}}, "Linear"]}


@pytest.mark.parametrize(("kind", "per"), [(kind, per) for kind, several in PER.items() for per in several])
def test_as_many_weights_share_a_prior_as_told(kind, per, tmp_path):
    plain, _ = DENSITIES[kind]
    if kind == "checkpoint":
        train(tmp_path / "run", network=TWO_LAYERS)
    own = {**plain, "run": str(tmp_path / "run")} if kind == "checkpoint" else plain
    run = train(network=TWO_LAYERS, prior={"kind": kind, **own, "per": per, "learn": "gradient"}, training={"epochs": 3})
    groups = [sorted(weight.name for weight in weights) for _, weights in run.model.weights_by_prior()]
    one, other = ["linear1.bias", "linear1.weight"], ["linear2.bias", "linear2.weight"]
    apart = [[name] for name in ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")]
    assert groups == {"tensor": apart, "layer": [one, other], "model": [one + other]}[per]
    assert run.ledger.hyperparameter_bits == sum(sum(charge.bits for charge in prior.charges()) for prior in run.model.priors)
    if per != "tensor":
        assert len(run.ledger.charges) < len(train(network=TWO_LAYERS, prior={"kind": kind, **own}).ledger.charges)


@pytest.mark.parametrize(("group", "shape"), [("output", (10, 1)), ("input", (1, 64))])
def test_units_of_the_group_have_scales_of_their_own(group, shape):
    run = train(prior={"kind": "group_gaussian", "group": group}, training={"epochs": 3, "optimizer": {"name": "Adam"}})
    (prior,) = run.model.priors
    assert prior().batch_shape == shape
    assert len(prior.log_scale.unique()) > max(shape) // 8
    assert run.ledger.hyperparameter_bits == 10 * max(shape)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.linear1 = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.linear1(self.second(torch.tanh(self.first(x.flatten(1)))))


def tied():
    return Tied()


def test_a_tied_weight_is_drawn_moved_and_charged_once():
    run = train(network={"kind": "factory", "factory": "test_settings_do_what_they_say:tied"}, training={"epochs": 2})
    assert [weight.name for weight in run.model.weights] == ["first.weight", LINEAR, "linear1.bias"]
    assert run.ledger.model_weights == 64 * 64 + 640 + 10
    assert run.model.network.second.weight is run.model.network.first.weight
    mean, log_std = (p.clone().requires_grad_() for p in run.states[0]["first.weight"])
    (seen,) = [seen for seen in run.training if seen.step == 0]
    noise = (seen.weights["first.weight"] - mean.detach()) / log_std.detach().exp()
    w = mean + log_std.exp() * noise
    hidden = torch.tanh(seen.inputs.flatten(1) @ w.T) @ w.T
    outputs = F.linear(hidden, seen.weights[LINEAR], seen.weights["linear1.bias"])
    data_bits = nats_to_bits(F.cross_entropy(outputs, targets_of(run, seen.inputs)))
    (data_bits + kl_bits(mean, log_std) / 60).backward()
    for before, after, p in zip(*(run.states[step]["first.weight"] for step in (0, 1)), (mean, log_std), strict=True):
        assert close(after - before, -0.1 * p.grad)
