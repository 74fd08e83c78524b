"""The kernels of GPUs, in Triton's interpreter: the same steps as the float64 oracle, and the same noise everywhere."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import RATES, N, Oracle, assert_close, batches, classify, doubled, errors, mlp
from test_optim import PRIORS, run_of
from torch import nn

import bitsback
from bitsback import kernels
from bitsback.model.noise import BlockNoise, CounterNoise, as_key, short_stream
from bitsback.optim import IVON, Adam, Variational

pytest.importorskip("triton", reason="the interpreter is a part of triton, which Linux alone has")


class Sizes(nn.Module):
    """Weights of awkward sizes: a single number, less than a chunk, and many chunks and a bit."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.randn(1))
        self.few = nn.Parameter(torch.randn(127))
        self.many = nn.Parameter(torch.randn(100_003) * 0.1)

    def forward(self, x):
        many = (self.many.view(1, -1)[:, : 99_999].view(3, -1).sum(1) * 0.01 + self.many[-4:].sum())
        return x[:, :3] * self.one + x.sum(1, keepdim=True) * self.few[:3] * self.few.sum() * 0.01 + many


def pair(network, prior="gaussian", *, kind=Adam, oracle=(), **options):
    """A model that the kernels move, with its optimiser, and the oracle beside them."""
    plain = copy.deepcopy(network)
    options = {**RATES, **options}
    of_model = {key: options.pop(key) for key in ("include", "exclude", "overrides", "posterior") if key in options}
    model = bitsback.bayesianize(network, prior, seed=1, **of_model)
    model.set_noise(CounterNoise())
    optimizer = kind(model, examples=N, **options)
    return model, optimizer, Oracle(model, plain, examples=N, **{**RATES, **dict(oracle)})


def step(model, optimizer, oracle, batch):
    """One step of both; ours by the kernels alone."""
    oracle.step((model.state, lambda network: classify(network, *doubled(batch))))
    optimizer.zero_grad()
    classify(model, *batch).backward()
    optimizer.step()
    assert {weight.index for weight in optimizer._kernel.weights} == {w.index for w in model.weights if w.is_gaussian}


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: "-".join(str(v) for v in prior.values()))
def test_three_steps_under_every_prior(prior, tmp_path):
    torch.manual_seed(3)
    network = mlp()
    if prior["kind"] == "checkpoint":
        prior = {**prior, "run": run_of(network, tmp_path)}
    model, optimizer, oracle = pair(network, prior)
    for batch in batches(3):
        step(model, optimizer, oracle, batch)
        assert_close(model, oracle, 3e-5)
    kernel = sum(len(weights) for _, weights in optimizer._kernel.parts)
    assert kernel == len(model.weights)
