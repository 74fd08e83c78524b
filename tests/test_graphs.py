"""Captured steps: with a stand-in for a GPU, the same training as without; and what says why there is none."""

import copy
import importlib
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from oracle import mlp
from recorder import Recorder
from test_kernels import NoReads
from torch import nn

from bitsback.data import Examples
from bitsback.errors import ConfigError, TrainingError
from bitsback.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
)
from bitsback.model import bayesianize, evaluate
from bitsback.model.draws import GraphedForward
from bitsback.model.noise import CounterNoise
from bitsback.training import TrainingSettings, start
from bitsback.training._graphs import TRIALS, StepGraphs

pytest.importorskip("triton", reason="the kernels run in the interpreter of triton, which Linux alone has")


def fit_of(
    captures,
    *,
    rows=44,
    prior="gaussian",
    network=mlp,
    likelihood=None,
    overrides=None,
    exclude=(),
    estimator="auto",
    **settings,
):
    torch.manual_seed(1)
    model = bayesianize(network(), prior, seed=1, estimator=estimator, overrides=overrides, exclude=exclude)
    model.set_noise(CounterNoise())
    x, y = torch.randn(rows, 5), torch.randint(3, (rows,))
    settings = {"epochs": 6, "batch_size": 8, "noise_reuse": 1, "optimizer": {"lr": 0.01}, **settings}
    fit = start(model, likelihood or CategoricalLikelihood(3), Examples(x, y), TrainingSettings(**settings))
    model.set_noise(CounterNoise(), seed=0)
    fit.outputs._noise.source = model.noise_source
    if captures is not None:
        captures.fit, fit.graphs = fit, StepGraphs(fit, captures)
    return fit


@pytest.fixture
def recorder(monkeypatch):
    return Recorder().install(monkeypatch)


def trained(captures, epochs=6, between=None, **settings):
    fit, bits = fit_of(captures, epochs=epochs, **settings), []
    for _ in range(epochs):
        bits.append(fit.run_epoch())
        if between is not None:
            between(fit)
    return fit, bits


def assert_same(one, other):
    for weight, again in zip(one.model.weights, other.model.weights, strict=True):
        for a, b in zip(weight.tensors(), again.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.model.priors.state_dict(), other.model.priors.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"draws": 2},
        {"draws": 4, "antithetic": True, "estimator": "weight"},
        {"draws": 2, "estimator": "weight"},
        {
            "prior": "laplace",
            "gradient_clip": 0.1,
            "schedule": {"name": None},
        },  # on a CPU, learned numbers move at a plain rate
        {"prior": "adaptive_mixture", "optimizer": {"lr": 0.01, "log_std_lr": 0.03}, "schedule": {"name": None}},
        {"prior": {"kind": "group_gaussian", "group": "input"}, "beta": {"warmup_epochs": 3, "start": 0.01}},
        {"optimizer": {"name": "IVON"}},
    ],
    ids=str,
)
def test_replayed_steps_are_those_of_the_loop(settings, recorder):
    """44 rows in batches of at most 8 have two sizes, and so two graphs."""
    plain, wanted = trained(None, **settings)
    fit, found = trained(recorder, **copy.deepcopy(settings))
    assert recorder.captured == fit.graphs.captured == 2
    assert recorder.replayed > 36 - 4 * TRIALS
    assert fit.host_state() == plain.host_state()
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert_same(fit, plain)
    if fit.optimizer.grad_norm is not None:
        torch.testing.assert_close(fit.optimizer.grad_norm, plain.optimizer.grad_norm, rtol=1e-4, atol=1e-6)
    assert fit.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]
    with fit.model.sample():
        pass
    fit.end()
    assert not fit.model.is_stale()
    assert fit.graphs is None


def edit(fit):
    with torch.no_grad(), fit.model.mean():
        fit.model.network[0].weight.mul_(0.9)


def freeze(fit):
    fit.model.network[2].weight.requires_grad_(fit.epoch % 2 == 0)


def reload(fit):
    fit.optimizer.load_state_dict(copy.deepcopy(fit.optimizer.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("between", [edit, freeze, reload], ids=lambda between: between.__name__)
def test_what_changes_between_epochs_is_not_missed_by_replays(between, recorder):
    plain, _ = trained(None, between=between)
    fit, _ = trained(recorder, between=between)
    assert recorder.replayed > 5
    assert_same(fit, plain)


def test_a_mean_that_a_watch_edits_is_not_missed_by_replays(recorder):
    runs = []
    for captures in (None, recorder):
        fit = fit_of(captures)

        def watch(number, model):
            if number == 25:
                with torch.no_grad():
                    model.weights[0].posterior.mean.add_(0.1)

        fit.watch = watch
        for _ in range(6):
            fit.run_epoch()
        runs.append(fit)
    assert recorder.replayed > 5
    assert_same(*runs)


def test_bits_that_are_read_between_replays_take_nothing_from_them(recorder):
    """The sums of learned scales and those of all bits are of other weights."""
    runs = []
    for captures in (None, recorder):
        fit = fit_of(captures, rows=40, overrides={"*bias*": {"kind": "gaussian", "learn": "none", "scale": 0.2}})
        for _ in range(6):
            fit.run_epoch()  # reads the bits at its end
        runs.append(fit)
    assert recorder.replayed > 20
    assert_same(*runs)


class Reading(nn.Module):
    """A forward that reads a number from the device."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(x) * float(x.detach().abs().max().clamp(1, 1))


def test_a_step_that_cannot_be_captured_runs_as_usual_and_says_so_once(recorder):
    plain, wanted = trained(None, network=Reading)
    fit = fit_of(recorder, network=Reading)
    with pytest.warns(UserWarning, match="without a CUDA graph: a step cannot be captured \\(operation not permitted") as said:
        found = [fit.run_epoch() for _ in range(6)]
    assert len(said) == 1
    assert recorder.replayed == 0
    assert fit.host_state() == plain.host_state()
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_a_step_that_waits_in_its_trials_is_not_captured(recorder, monkeypatch):
    monkeypatch.setattr(recorder, "trial", lambda: nullcontext(SimpleNamespace(waits="it waits for the device at model.py:7")))
    fit = fit_of(recorder)
    with pytest.warns(UserWarning, match="without a CUDA graph: it waits for the device at model.py:7"):
        fit.run_epoch()
    assert recorder.captured == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"budget_bits": 50.0}, "the weight of the KL depends on its value"),
        ({"objective": {"kind": "quad"}}, "the weight of the KL depends on its value"),
        ({"optimizer": {"name": "SGD"}}, "SGD keeps its rates on the host"),
        ({"precision": "float64"}, "no kernel moves '0.weight', which is no Gaussian in float32"),
        ({"prior": {"kind": "pyro", "distribution": "Normal", "arguments": {"loc": 0.0, "scale": 1.0}}}, "no kernel knows the prior of '0.weight'"),
        ({}, ""),
        ({"prior": "horseshoe"}, ""),
    ],
)  # fmt: skip
def test_why_steps_are_not_captured(settings, why):
    fit = fit_of(None, **settings)
    if settings.get("precision") == "float64":
        fit.model.double()
    said = fit.why_no_graph()
    assert said.startswith(why) if why else said == ""


@pytest.mark.slow
def test_more_shapes_than_graphs(recorder):
    fit = fit_of(recorder, rows=64)
    every = [(rows, number) for rows in range(2, 12) for number in range(TRIALS + 2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for rows, number in every:
            fit.step(number, torch.randn(rows, 5), torch.randint(3, (rows,)))
    assert ["more than 8 shapes" in str(one.message) for one in said if "graph" in str(one.message)] == [True]
    assert recorder.captured == 8


def test_a_loss_that_is_not_finite_is_found_when_it_is_read(monkeypatch):
    """On a GPU the bits of steps are summed there, and read at the end of an epoch or every log_every steps."""
    monkeypatch.setattr("bitsback.training.loop.Fit._read", lambda self, number: number.detach())
    for log_every, step in ((None, 6), (2, 4)):
        fit = fit_of(None, log_every=log_every)
        fit.run_epoch()
        seen = []

        def spoil(number, model, seen=seen):
            seen.append(number)
            if len(seen) == 3:
                with torch.no_grad():
                    model.weights[0].posterior.mean.fill_(float("nan"))

        fit.watch = spoil
        with pytest.raises(
            TrainingError, match=rf"not finite in epoch 2, at step {step} of it or before: the posterior mean of '0.weight'"
        ):
            fit.run_epoch()
        assert len(seen) == step
        assert fit.epoch == 1


LIKELIHOODS = {
    "categorical": (lambda: CategoricalLikelihood(3), 3, lambda: torch.randint(3, (24,))),
    "some hidden": (lambda: CategoricalLikelihood(3, ignore=-1), 3, lambda: torch.randint(-1, 3, (24,))),
    "bernoulli": (BernoulliLikelihood, 2, lambda: torch.randint(2, (24, 2)).float()),
    "learned noise": (GaussianLikelihood, 1, lambda: torch.randn(24)),
    "predicted noise": (lambda: GaussianLikelihood(noise="predicted"), 2, lambda: torch.randn(24)),
    "counts": (PoissonLikelihood, 1, lambda: torch.randint(5, (24,)).float()),
    "uneven counts": (NegativeBinomialLikelihood, 1, lambda: torch.randint(5, (24,)).float()),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("estimator", ["weight", "output"])
def test_a_step_of_the_loop_reads_nothing_from_the_device(name, estimator, monkeypatch):
    """As on a GPU: bits stay there, and the values of targets are looked at before they are moved there."""
    make, outputs, targets_of = LIKELIHOODS[name]
    monkeypatch.setattr("bitsback.training.loop.Fit._read", lambda self, number: number.detach())
    likelihood, x, y = make(), torch.randn(24, 5), targets_of()
    model = bayesianize(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs)), seed=1, estimator=estimator)
    model.set_noise(CounterNoise())
    fit = start(model, likelihood, Examples(x, y), TrainingSettings(epochs=9, batch_size=24, noise_reuse=1, draws=2))
    model.set_noise(CounterNoise())
    monkeypatch.setattr(type(likelihood), "_check_values", lambda *_: None)
    for number in range(8):
        with NoReads() if number > 3 else nullcontext():
            bits = fit.step(number, x, y)
    assert torch.isfinite(bits)


def test_evaluations_replay_one_graph_for_all_draws(monkeypatch, recorder):
    torch.manual_seed(2)
    model = bayesianize(nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(27, 3)), seed=1)
    examples = Examples(torch.randn(21, 1, 4, 4), torch.randint(3, (21,)))
    likelihood = CategoricalLikelihood(3)
    wanted = evaluate(model, likelihood, examples, samples=4, batch_size=8)
    kinds = []

    def forward_of(model):
        from bitsback.model.draws import chosen

        kinds.append(GraphedForward(lambda inputs: chosen(model.network(inputs), "auto"), recorder))
        return kinds[-1]

    monkeypatch.setattr("bitsback.model.accounting.forward_of", forward_of)
    found = evaluate(model, likelihood, examples, samples=4, batch_size=8)
    assert found == wanted
    assert recorder.captured == 2
    assert recorder.replayed == 3 * 4 - 2
    assert len(kinds) == 1


def test_a_device_with_too_little_memory(monkeypatch):
    """A frozen parameter counts once, one without posterior four times, one with a posterior eight times."""
    from bitsback.training.train import check_memory

    network = mlp()
    network[0].weight.requires_grad_(False)
    model = bayesianize(network, exclude=["*bias*"])
    needed = 4 * (1 * 35 + 8 * 21 + 4 * (7 + 3))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed - 1, 1 << 40))
    with pytest.raises(ConfigError, match=r"a step of 66 weights holds 0.0 GB besides the activations \(32 bytes for each"):
        check_memory(model, torch.device("cuda:0"))
    check_memory(model, torch.device("cuda:0"), shards=2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed, 1 << 40))
    check_memory(model, torch.device("cuda:0"))
    check_memory(model, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * needed)
    check_memory(model, torch.device("cuda:0"), number_bytes=8)


def test_parameters_without_a_posterior_are_moved_in_the_graph(recorder):
    """At a rate that does not change: on a CPU, torch's fused kernel takes it from Python."""
    runs = []
    for captures in (None, recorder):
        fit = fit_of(captures, rows=40, exclude=["*bias*"], schedule={"name": None})
        for _ in range(6):
            fit.run_epoch()
        runs.append(fit)
    assert recorder.replayed > 20
    assert_same(*runs)
    plain, found = (dict(fit.model.deterministic()) for fit in runs)
    assert set(plain) == {"0.bias", "2.bias"}
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", ["auto", "never"])
def test_steps_are_captured_where_that_is_asked_for(graph, monkeypatch):
    monkeypatch.setattr(importlib.import_module("bitsback.training.train"), "captures_of", lambda device: Recorder())
    monkeypatch.setattr("bitsback.training.loop.Fit.why_no_graph", lambda fit: "")
    fit = fit_of(None, graph=graph)
    assert (fit.graphs is not None) == (graph == "auto")


def test_why_no_step_is_captured_is_said_at_the_start(monkeypatch):
    monkeypatch.setattr(importlib.import_module("bitsback.training.train"), "captures_of", lambda device: Recorder())
    with pytest.warns(
        UserWarning, match="without a CUDA graph: SGD keeps its rates on the host; training.graph=never says nothing"
    ):
        fit_of(None, optimizer={"name": "SGD"})


def test_an_evaluation_that_waits_says_once_that_it_has_no_graph(recorder, monkeypatch):
    monkeypatch.setattr(recorder, "trial", lambda: nullcontext(SimpleNamespace(waits="it waits for the device at model.py:7")))
    forward = GraphedForward(lambda inputs: inputs + 1, recorder)
    with pytest.warns(UserWarning, match="evaluations run without CUDA graphs: it waits for the device at model.py:7") as said:
        found = [forward(torch.zeros(2)) for _ in range(4)]
    assert all(torch.equal(one, torch.ones(2)) for one in found)
    assert len(said) == 1
    assert recorder.captured == 0
