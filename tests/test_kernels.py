"""The kernels of GPUs, in Triton's interpreter: the same steps as the float64 oracle, and the same noise everywhere."""

import copy
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import RATES, N, Oracle, assert_close, batches, classify, doubled, errors, mlp
from test_optim import PRIORS, run_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bitsback
from bitsback import kernels
from bitsback.kernels import _layout
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
        many = self.many.view(1, -1)[:, :99_999].view(3, -1).sum(1) * 0.01 + self.many[-4:].sum()
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


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["gaussian", "laplace"])
def test_sizes_that_fill_no_chunk(prior):
    torch.manual_seed(4)
    model, optimizer, oracle = pair(Sizes(), prior)
    for batch in batches(2):
        step(model, optimizer, oracle, batch)
    assert_close(model, oracle, 3e-5)
    wanted = float(oracle.kl_nats(model.state))
    assert abs(optimizer.kl_nats() - wanted) < 1e-5 * wanted


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["student_t", "adaptive_mixture", {"kind": "horseshoe", "learn": "gradient"}])
def test_sizes_that_fill_no_chunk_under_other_priors(prior):
    several = both(Sizes, prior)
    for batch in batches(2):
        for model, optimizer in several:
            optimizer.zero_grad()
            classify(model, *batch).backward()
            optimizer.step()
    assert_same(*(model for model, _ in several), atol=1e-4)  # Adam turns a gradient near zero into a step of up to 0.03


@pytest.mark.parametrize("prior", ["gaussian", {"kind": "laplace", "learn": "gradient"}, "adaptive_mixture", "cauchy"])
def test_a_clipped_step_and_one_of_any_torch_optimiser(prior):
    for kind, options, beside in (
        (Adam, {"max_grad_norm": 0.05}, {"max_grad_norm": 0.05}),
        (Variational, {"kind_of": torch.optim.SGD}, {"kind": torch.optim.SGD}),
    ):
        torch.manual_seed(5)
        sgd = options.pop("kind_of", None)
        made = (lambda model, **more: Variational(model, sgd, **more)) if sgd else kind  # noqa: B023
        model, optimizer, oracle = pair(mlp(), prior, kind=made, oracle=beside, **options)
        for batch in batches(3):
            step(model, optimizer, oracle, batch)
            assert_close(model, oracle, 3e-5)


def test_natural_gradients_are_those_of_the_pieces():
    """IVON on the kernels against IVON on the CPU's pieces, with the same noise."""
    several = []
    for source in (CounterNoise(), Slow()):
        torch.manual_seed(6)
        model = bitsback.bayesianize(mlp(), {"kind": "gaussian", "learn": "closed_form"}, seed=1)
        model.set_noise(source)
        several.append((model, IVON(model, examples=N, lr=0.1, log_std_lr=0.1)))
    assert several[0][0].noise_source.clock(torch.device("cpu")) is not None
    for batch in batches(4):
        for model, optimizer in several:
            optimizer.zero_grad()
            classify(model, *batch).backward()
            optimizer.step()
    assert several[0][1]._kernel is not None
    assert several[1][1]._kernel is None
    assert_same(several[0][0], several[1][0])


class Slow(CounterNoise):
    """The same noise, for the CPU's pieces: no kernels."""

    def clock(self, device):
        return None

    def fill(self, out, seed, number, stream, start=0):
        return kernels.counter_normals(out, as_key(seed), number, short_stream(stream), start)


def both(make, prior="gaussian", kind=Adam, posterior=None, **options):
    """A model on the kernels and its copy on the pieces of a CPU."""
    found = []
    for source in (CounterNoise(), Slow()):
        torch.manual_seed(7)
        model = bitsback.bayesianize(make(), prior, seed=2, posterior=posterior)
        model.set_noise(source)
        found.append((model, kind(model, examples=N, **{**RATES, **options})))
    return found


def assert_same(one, other, rtol=2e-5, atol=2e-6):
    for weight, again in zip(one.weights, other.weights, strict=True):
        for a, b in zip(weight.tensors(), again.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    for prior, again in zip(one.priors, other.priors, strict=True):
        torch.testing.assert_close(prior.state_dict(), again.state_dict(), rtol=rtol, atol=atol)


class Words(nn.Module):
    """An embedding with padding, filters with channels last, a tied matrix, a weight that nothing uses."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 16, padding_idx=0)
        self.filters = nn.Conv2d(1, 6, 3).to(memory_format=torch.channels_last)
        self.first, self.idle = nn.Linear(24, 24), nn.Linear(2, 3)
        self.second = nn.Linear(24, 24)
        self.second.weight = self.first.weight

    def forward(self, x):
        images = self.table((x.abs() * 3).long().clamp(0, 8)).view(-1, 1, 5, 16)[:, :, :4, :4]
        return self.second(self.first(self.filters(images).flatten(1)).tanh())[:, :3]


@pytest.mark.parametrize("prior", ["gaussian", "logistic", {"kind": "group_gaussian", "group": "input"}])
def test_padding_filters_ties_and_idle_weights(prior):
    several = both(Words, prior)
    for batch in batches(3):
        for model, optimizer in several:
            optimizer.zero_grad()
            classify(model, *batch).backward()
            optimizer.step()
        assert_same(*(model for model, _ in several))
    assert not several[0][0].network.table.weight[0].any()


@pytest.mark.parametrize("prior", ["gaussian", "student_t"])
def test_several_draws_in_a_step_and_mirrored_pairs(prior):
    several = both(mlp, prior)
    for one, two in zip(batches(3), batches(3), strict=True):
        for model, optimizer in several:
            optimizer.zero_grad()
            (classify(model, *one) / 2).backward()
            model.mirror()
            (classify(model, *two) / 4).backward()
            model.draw()
            (classify(model, *one) / 4).backward()
            optimizer.step()
        assert_same(*(model for model, _ in several))


def test_frozen_weights_edits_and_samples_between_steps():
    several = both(mlp)
    for number, batch in enumerate(batches(5)):
        for model, optimizer in several:
            optimizer.zero_grad()
            classify(model, *batch).backward()
            if number == 1:
                model.network[0].weight.requires_grad_(False)
            if number == 2:
                model.network[0].weight.requires_grad_(True)
                with torch.no_grad(), model.mean():
                    model.network[2].weight.mul_(1.5)
            optimizer.step()
            with model.sample():
                pass
            with torch.no_grad():
                if number == 3:
                    model.weights[1].posterior.log_std.add_(0.1)
        assert_same(*(model for model, _ in several))


@pytest.mark.parametrize("share", [1e-3, 1e-5])
def test_narrow_stds_keep_their_gradients(share):
    """Where w - m has lost its digits, the noise is made again."""
    posterior = {"kind": "gaussian", "std": share, "relative_to": "absolute"}
    torch.manual_seed(8)
    network = mlp()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(p.sign())
    still = {"lr": 0.0, "log_std_lr": 1 / share, "beta": 1e-6}
    model, optimizer, oracle = pair(
        network, posterior=posterior, kind=lambda model, **more: Variational(model, torch.optim.SGD, **more),
        oracle={"kind": torch.optim.SGD, **still}, **still,
    )  # fmt: skip
    for batch in batches(2):
        step(model, optimizer, oracle, batch)
    moved = max(float((oracle.log_stds[w.name] - np.log(share)).abs().max()) for w in model.weights)
    assert moved > 0.01
    assert errors(model, oracle)["std"] < 1e-3 * moved


def test_noise_on_outputs_leaves_means_in_the_weights():
    from bitsback.data import Examples
    from bitsback.likelihoods import CategoricalLikelihood
    from bitsback.training import TrainingSettings, start

    runs = []
    for source in (CounterNoise(), Slow()):
        torch.manual_seed(9)
        model = bitsback.bayesianize(mlp(), "student_t", estimator="output", seed=1)
        model.set_noise(source)
        x, y = batches(1, rows=24)[0]
        fit = start(model, CategoricalLikelihood(3), Examples(x, y), TrainingSettings(epochs=3, batch_size=8, noise_reuse=1))
        model.set_noise(source)
        fit.outputs._noise.source = source
        fit.run_epoch()
        assert all(torch.equal(w.parameter, w.posterior.mean) for w in model.weights)
        runs.append((model, fit))
    assert runs[0][1].optimizer._kernel is not None
    assert_same(runs[0][0], runs[1][0])


# noise


def test_philox_is_that_of_its_authors():
    """Known answers of Random123 (Salmon et al. 2011)."""
    from bitsback.kernels._philox_torch import WORD, philox

    whole = torch.tensor(WORD)
    for counters, key, wanted in (
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((WORD,) * 4, (WORD << 32) + WORD, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        words = philox(tuple(whole - WORD + counter for counter in counters), key)
        assert " ".join(f"{int(word):08x}" for word in words) == wanted


def test_the_kernel_makes_the_noise_of_the_fallback():
    from bitsback.kernels import _triton

    for seed, number, stream, start in (
        (0, 0, 0, 0),
        (-(1 << 62), -3, short_stream((1 << 42) + 5), 7),
        (1 << 61, 9, 2, (1 << 33) - 40),
    ):
        one, other = torch.empty(3000), torch.empty(3000, dtype=torch.float64)
        clock = kernels.Clock(torch.device("cpu"))
        clock.set(seed, number - 5)
        _triton.fill_kernel[(3,)](one, 3000, start, clock.tensor, clock.offset(seed, number), stream, BLOCK=1024)
        kernels.counter_normals(other, seed, number, stream, start)
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_the_noise_is_normal_and_independent():
    from scipy import stats

    noise, count = CounterNoise(), 200_000
    one = noise.fill(torch.empty(count), 5, 1, 0).double().numpy()
    assert stats.kstest(one, "norm").pvalue > 1e-3
    for other in (
        noise.fill(torch.empty(count), 5, 2, 0),
        noise.fill(torch.empty(count), 5, 1, 1),
        noise.fill(torch.empty(count), 6, 1, 0),
    ):
        assert abs(np.corrcoef(one, other.double().numpy())[0, 1]) < 5 / np.sqrt(count)
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 5 / np.sqrt(count)


def test_cpus_keep_their_noise():
    model = bitsback.bayesianize(mlp(), seed=1)
    weight = model.weights[0]
    wanted = BlockNoise().fill(torch.empty(weight.posterior.numel), 1, 0, 0)
    assert torch.equal(model.noise(weight, model.state).flatten(), wanted)


# what a GPU would get


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda", "hip"])
def test_every_variant_compiles_for_gpus(target):
    """To a cubin for sm_90 and an hsaco for gfx942; whole chunks are read 128 bits at a time."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(bitsback.__file__).parent.parent)
    command = [sys.executable, str(Path(__file__).with_name("kernel_probe.py")), target]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    forms, modes = len(_layout.FORMS), len(_layout.MODES)
    assert len(found) == forms + 3 * forms + 2 * (modes - 3) + forms + 1 + 2
    for variant, binary in found.items():
        chosen = json.loads(variant)
        assert binary["bytes"] > 3000, variant
        if target == "cuda" and chosen.get("MODE", _layout.STEP) == _layout.STEP and chosen.get("FULL", "kernel" not in chosen):
            assert binary["wide_loads"] >= (6 if "RULE" in chosen else 8), variant  # one a tensor, 128 bits a thread


READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique")


class NoReads(TorchDispatchMode):
    """Fails at operators that make a host wait for its device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(word in str(function) for word in READS), f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "prior", ["gaussian", "laplace", "adaptive_mixture", "student_t", {"kind": "group_gaussian", "group": "input"}]
)
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}], ids=["plain", "clipped"])
def test_a_step_reads_nothing_from_the_device(prior, options):
    model, optimizer, _ = pair(mlp(), prior, **options)
    optimizer.nats_per_unit = 0.7  # as in bitsback.train, where no clipping outside is looked for
    for number, batch in enumerate(batches(40)):
        with NoReads() if number > 3 else nullcontext():  # a loss that is a sum is looked for in the first steps
            optimizer.zero_grad()
            classify(model, *batch).backward()
            model.mirror()
            classify(model, *batch).backward()
            optimizer.step()


# other accelerators


@pytest.mark.parametrize("kind", [Adam, IVON])
@pytest.mark.parametrize(
    "prior", ["gaussian", {"kind": "gaussian", "mean": 0.1, "per": "model"}, "laplace", "adaptive_mixture"]
)
def test_multi_tensor_steps_are_those_of_the_pieces(prior, kind, monkeypatch):
    from bitsback.optim._foreach_sweep import ForeachSweep

    def made():
        torch.manual_seed(10)
        model = bitsback.bayesianize(Words(), prior, seed=2).double()
        return model, kind(model, examples=N, **RATES)

    one, other = made(), made()
    monkeypatch.setattr(other[1], "_pass", lambda *arguments: ForeachSweep(*arguments))
    for batch in batches(3):
        for model, optimizer in (one, other):
            optimizer.zero_grad()
            (classify(model, *doubled(batch)) / 2).backward()
            model.draw()
            (classify(model, *doubled(batch)) / 2).backward()
            optimizer.step()
    for weight, again in zip(one[0].weights, other[0].weights, strict=True):
        for a, b in zip(weight.tensors(), again.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
