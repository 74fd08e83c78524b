"""Captured steps: with a stand-in for a GPU, the same training as without; and what says why there is none."""

import copy
import importlib
import warnings
from contextlib import nullcontext

import pytest
import torch
from oracle import mlp
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


class Repeats:
    """Stands in for a device: a captured call is called again, and leaves the host's state as it was, as a graph does."""

    def __init__(self, fit, fails=False):
        self.fit, self.fails, self.captured, self.replayed = fit, fails, 0, 0

    def trial(self):
        return nullcontext()

    def capture(self, body):
        if self.fails:
            self.fit.model.draw()  # a capture that breaks off has moved the host's state
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.captured += 1
        return Repeated(self, body)


class Repeated:
    def __init__(self, captures, body):
        self.captures, self.body = captures, body

    def replay(self):
        fit = self.captures.fit
        if fit is None:
            return self.body()
        self.captures.replayed += 1
        state = fit.host_state()
        bits = self.body()
        fit.set_host_state(state)
        return bits


def fit_of(graphs, *, rows=44, prior="gaussian", network=mlp, likelihood=None, fails=False, estimator="auto", **settings):
    torch.manual_seed(1)
    model = bayesianize(network(), prior, seed=1, estimator=estimator)
    model.set_noise(CounterNoise())
    x, y = torch.randn(rows, 5), torch.randint(3, (rows,))
    settings = {"epochs": 6, "batch_size": 8, "noise_reuse": 1, "optimizer": {"lr": 0.01}, **settings}
    fit = start(model, likelihood or CategoricalLikelihood(3), Examples(x, y), TrainingSettings(**settings))
    model.set_noise(CounterNoise(), seed=0)
    if graphs:
        fit.graphs = StepGraphs(fit, Repeats(fit, fails))
    return fit


def trained(*arguments, epochs=6, **settings):
    fit = fit_of(*arguments, epochs=epochs, **settings)
    bits = [fit.run_epoch() for _ in range(epochs)]
    return fit, bits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"draws": 2},
        {"draws": 4, "antithetic": True, "estimator": "weight"},
        {"draws": 2, "estimator": "weight"},
        {"prior": "laplace", "gradient_clip": 0.1},
        {"prior": "adaptive_mixture", "optimizer": {"lr": 0.01, "log_std_lr": 0.03}},
        {"prior": {"kind": "group_gaussian", "group": "input"}, "beta": {"warmup_epochs": 3, "start": 0.01}},
        {"optimizer": {"name": "IVON"}},
    ],
    ids=str,
)
def test_replayed_steps_are_those_of_the_loop(settings):
    """44 rows in batches of at most 8 have two sizes, and so two graphs."""
    plain, wanted = trained(False, **settings)
    fit, found = trained(True, **copy.deepcopy(settings))
    captures = fit.graphs.captures
    assert captures.captured == 2
    assert captures.replayed == 6 * 6 - 2 * TRIALS
    assert fit.host_state() == plain.host_state()
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for weight, again in zip(fit.model.weights, plain.model.weights, strict=True):
        for a, b in zip(weight.tensors(), again.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert fit.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]
    with fit.model.sample():
        pass
    fit.end()
    assert not fit.model._is_stale()


def test_a_step_that_cannot_be_captured_runs_as_usual_and_says_so_once():
    plain, wanted = trained(False)
    fit = fit_of(True, fails=True)
    with pytest.warns(
        UserWarning, match="without a CUDA graph: a step cannot be captured \\(operation not permitted when"
    ) as said:
        found = [fit.run_epoch() for _ in range(6)]
    assert len(said) == 1
    assert fit.host_state() == plain.host_state()
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


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
    fit = fit_of(False, **settings)
    if settings.get("precision") == "float64":
        fit.model.double()
    said = fit.why_no_graph()
    assert said.startswith(why) if why else said == ""


def test_more_shapes_than_graphs():
    fit = fit_of(True, rows=64)
    fit.graphs.captures.captured = 0
    every = [(rows, number) for rows in range(2, 12) for number in range(TRIALS + 2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for rows, number in every:
            fit.step(number, torch.randn(rows, 5), torch.randint(3, (rows,)))
    assert ["more than 8 shapes" in str(one.message) for one in said if "graph" in str(one.message)] == [True]
    assert fit.graphs.captures.captured == 8


def test_a_loss_that_is_not_finite_is_found_when_it_is_read(monkeypatch):
    """On a GPU the bits of steps are summed there, and read at the end of an epoch or every log_every steps."""
    monkeypatch.setattr("bitsback.training.loop.Fit._read", lambda self, number: number.detach())
    for log_every, step in ((None, 6), (2, 4)):
        fit = fit_of(False, log_every=log_every)
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


def test_evaluations_replay_one_graph_for_all_draws(monkeypatch):
    torch.manual_seed(2)
    model = bayesianize(nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(27, 3)), seed=1)
    examples = Examples(torch.randn(21, 1, 4, 4), torch.randint(3, (21,)))
    likelihood = CategoricalLikelihood(3)
    wanted = evaluate(model, likelihood, examples, samples=4, batch_size=8)
    captures = Repeats(None)
    kinds = []

    def forward_of(model):
        from bitsback.model.draws import chosen

        kinds.append(GraphedForward(lambda inputs: chosen(model.network(inputs), "auto"), captures))
        return kinds[-1]

    monkeypatch.setattr("bitsback.model.accounting.forward_of", forward_of)
    found = evaluate(model, likelihood, examples, samples=4, batch_size=8)
    assert found == wanted
    assert captures.captured == 2
    assert len(kinds) == 1


def test_a_device_with_too_little_memory(monkeypatch):
    from bitsback.training.train import check_memory

    model = bayesianize(mlp())
    count = sum(p.numel() for p in model.network.parameters())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (32 * count - 1, 1 << 40))
    with pytest.raises(
        ConfigError, match=rf"32 bytes for each of {count} weights, 0.0 GB besides the activations, and cuda:0 has"
    ):
        check_memory(model, torch.device("cuda:0"))
    check_memory(model, torch.device("cuda:0"), shards=2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (32 * count, 1 << 40))
    check_memory(model, torch.device("cuda:0"))
    check_memory(model, torch.device("cpu"))


def test_parameters_without_a_posterior_are_moved_in_the_graph():
    runs = []
    for graphs in (False, True):
        torch.manual_seed(3)
        model = bayesianize(mlp(), seed=1, exclude=["*bias*"])
        model.set_noise(CounterNoise())
        examples = Examples(torch.randn(40, 5), torch.randint(3, (40,)))
        fit = start(model, CategoricalLikelihood(3), examples, TrainingSettings(epochs=6, batch_size=8, noise_reuse=1))
        model.set_noise(CounterNoise(), seed=0)
        if graphs:
            fit.graphs = StepGraphs(fit, Repeats(fit))
        for _ in range(6):
            fit.run_epoch()
        runs.append(fit)
    assert runs[1].graphs.captures.replayed > 20
    plain, found = (dict(fit.model.deterministic()) for fit in runs)
    assert set(plain) == {"0.bias", "2.bias"}
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", ["auto", "never"])
def test_steps_are_captured_where_that_is_asked_for(graph, monkeypatch):
    monkeypatch.setattr(importlib.import_module("bitsback.training.train"), "captures_of", lambda device: Repeats(None))
    monkeypatch.setattr("bitsback.training.loop.Fit.why_no_graph", lambda fit: "")
    fit = fit_of(False, graph=graph)
    assert (fit.graphs is not None) == (graph == "auto")


def test_why_no_step_is_captured_is_said_at_the_start(monkeypatch):
    monkeypatch.setattr(importlib.import_module("bitsback.training.train"), "captures_of", lambda device: Repeats(None))
    with pytest.warns(
        UserWarning, match="without a CUDA graph: SGD keeps its rates on the host; training.graph=never says nothing"
    ):
        fit_of(False, optimizer={"name": "SGD"})
