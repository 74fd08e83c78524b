"""Several processes train as one: DDP and FSDP2 against a single process with the same global batch and seed."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from ranks import together
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

import bitsback

PRIORS = {
    "gaussian": "gaussian",
    "laplace": "laplace",
    "mixture": {"kind": "scale_mixture", "learn": "gradient"},
}
EXAMPLES, BATCH, STEPS, CLASSES = 64, 16, 4, 3
ROOT = Path(__file__).parent.parent
LIKELIHOOD = bitsback.likelihoods.CategoricalLikelihood


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(EXAMPLES, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, CLASSES))


def batches(rank=0, count=1):
    """Each step's examples of one of several ranks."""
    x, y = data()
    for step in range(STEPS):
        first = step * BATCH % EXAMPLES
        own = slice(first + rank * BATCH // count, first + (rank + 1) * BATCH // count)
        yield x[own], y[own]


def loss_of(output, y):
    return F.cross_entropy(output, y)


def posterior(model):
    """Means, log stds and learned numbers of priors, as whole tensors."""
    found = {f"{w.name}.mean": w.whole(w.posterior.mean) for w in model.weights}
    found |= {f"{w.name}.log_std": w.whole(w.posterior.log_std) for w in model.weights}
    found |= {f"prior.{name}": p for name, p in [*model.priors.named_parameters(), *model.priors.named_buffers()]}
    return {name: t.detach().clone() for name, t in found.items()}


def ledger_of(model):
    book = bitsback.take_ledger(model, LIKELIHOOD(CLASSES), bitsback.Examples(*data()), samples=8)
    numbers = [book.net_weight_bits, book.refund_bits, book.data_bits, book.data_bits_stderr, book.hyperparameter_bits]
    return torch.tensor(numbers, dtype=torch.float64)


def adam(model, **options):
    return bitsback.optim.Adam(model, lr=1e-2, log_std_lr=2e-2, examples=EXAMPLES, **options)


def trained_alone(prior, **options):
    model = bitsback.bayesianize(network(), prior, seed=5)
    optimizer = adam(model, **options)
    for x, y in batches():
        loss_of(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def assert_close(found, wanted, relative=1e-4):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        gap = float((found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-3))
        assert gap <= relative, (name, gap)


def check_against_one(results, model, relative=1e-4):
    wanted, book = posterior(model), ledger_of(model)
    for found in results:
        own = found.pop("ledger")
        assert_close(found, wanted, relative)
        assert torch.allclose(own[:2], book[:2], rtol=1e-6)
        assert abs(own[2] - book[2]) <= book[3]


# DDP


def with_ddp(rank, wraps, prior, seed_of_rank, options):
    net = network(seed_of_rank * rank)
    model = bitsback.bayesianize(net, PRIORS[prior], seed=5 + seed_of_rank * rank)
    if wraps == "model":
        forward = DDP(model)
        optimizer = adam(forward, **options)
    else:
        optimizer = adam(model, **options)
        forward = DDP(net)
    for x, y in batches(rank, 2):
        loss_of(forward(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = posterior(model)
    found["ledger"] = ledger_of(model)
    return found


@pytest.mark.parametrize("prior", PRIORS)
def test_ddp_of_the_model_takes_the_steps_of_one_process(prior):
    check_against_one(of_two(with_ddp, "model", prior, 0, {}), trained_alone(PRIORS[prior]))


@pytest.mark.parametrize("wraps", ["model", "network"])
def test_ranks_that_were_seeded_apart_train_rank_0s_model(wraps):
    check_against_one(of_two(with_ddp, wraps, "gaussian", 7, {}), trained_alone("gaussian"))


# bitsback train


def settings(**changes):
    """A training of five epochs of two batches, whose layers draw their outputs as on one process."""
    sections = {
        "training": {"epochs": 4, "batch_size": 32, "checkpoint_seconds": 0, "threads": 1, "noise_reuse": 1},
        "ledger": {"samples": 8},
        "engine": {"strategy": "ddp"},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return sections


class Stopped(Exception):
    """Raised by a callback to interrupt a training."""


def train(rank, out, changes, stop, resume=False):
    model = bitsback.bayesianize(network(), "laplace", seed=5, estimator="weight" if "engine" in changes else "auto")

    def watch(step, _):
        if step == stop:
            raise Stopped

    found = {}
    dataset = bitsback.Dataset("made", bitsback.Examples(*data()), None)
    try:
        bitsback.train(
            model, LIKELIHOOD(CLASSES), dataset, out=out, seed=9, watch=watch, progress=False, report=False, resume=resume,
            **settings(**changes),
        )  # fmt: skip
    except Stopped:
        return {"step": torch.tensor(stop)}
    found = posterior(model)
    found["ledger"] = ledger_of(model)
    return found


STRATEGIES = ("ddp", "fsdp")


def train_both(rank, folder, stop, resume):
    """A training under each strategy, until a step; and whatever it ends with."""
    found = {}
    for strategy in STRATEGIES:
        ended = train(rank, folder / strategy, {"engine": {"strategy": strategy}}, stop, resume)
        found |= {f"{strategy}|{name}": t for name, t in ended.items()}
    return found


@pytest.mark.slow
def test_a_training_of_four_processes_is_continued_by_two_and_ended_by_one(tmp_path):
    whole = train(0, tmp_path / "one", {"engine": {"strategy": "none"}}, 0)
    wanted = whole.pop("ledger")
    together(4, train_both, tmp_path, 3, False)
    together(2, train_both, tmp_path, 6, True)
    (ended,) = together(1, train_both, tmp_path, 0, True)
    for strategy in STRATEGIES:
        own = {name.removeprefix(f"{strategy}|"): t for name, t in ended.items() if name.startswith(strategy)}
        book = own.pop("ledger")
        assert_close(own, whole)
        assert torch.allclose(book[:3], wanted[:3], rtol=1e-4)
        lines = [json.loads(line) for line in (tmp_path / strategy / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


# FSDP2


def sharded(net):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def with_fsdp(rank, prior, seed_of_rank, options):
    net = network(seed_of_rank * rank)
    model = bitsback.bayesianize(net, PRIORS[prior], seed=5 + seed_of_rank * rank)
    sharded(net)
    optimizer = adam(model, **options)
    for x, y in batches(rank, 2):
        loss_of(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = posterior(model)
    found["ledger"] = ledger_of(model)
    return found


CLIPPED = {"max_grad_norm": 0.05}


@pytest.mark.parametrize(("prior", "options"), [*((prior, {}) for prior in PRIORS), ("mixture", CLIPPED)])
def test_fsdp_takes_the_steps_of_one_process(prior, options):
    check_against_one(of_two(with_fsdp, prior, 0, options), trained_alone(PRIORS[prior], **options))


# Traps


def both(draws, x, y):
    return zip(x.tensor_split(draws), y.tensor_split(draws), strict=True)


def trained_alone_with_two_draws(prior):
    model = bitsback.bayesianize(network(), prior, seed=5)
    optimizer = adam(model)
    for x, y in batches():
        for draw, (a, b) in enumerate(both(2, x, y)):
            if draw:
                model.draw()
            (loss_of(model(a), b) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def with_two_draws(rank, syncs):
    model = bitsback.bayesianize(network(), "gaussian", seed=5)
    forward = DDP(model)
    optimizer = adam(forward)
    for x, y in batches():
        for draw, (a, b) in enumerate(both(2, x, y)):
            if draw:
                model.draw()
            share = slice(rank * len(a) // 2, (rank + 1) * len(a) // 2)
            with nullcontext() if draw or syncs else forward.no_sync():
                (loss_of(forward(a[share]), b[share]) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {**posterior(model), "ledger": ledger_of(model)}


@pytest.mark.parametrize("syncs", [True, False])
def test_two_draws_in_a_step_of_ddp_with_and_without_synchronisation_in_between(syncs):
    check_against_one(of_two(with_two_draws, syncs), trained_alone_with_two_draws("gaussian"))


def fsdp_traps(rank):
    """Two draws a step, forwards that leave whole weights, of the bare network; and a draw before gradients are sent."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = network()
    model = bitsback.bayesianize(net, "gaussian", seed=5)
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=False)
    optimizer = adam(model)
    for x, y in batches():
        for draw, (a, b) in enumerate(both(2, x, y)):
            with torch.no_grad():
                net(a)
            if draw:
                model.draw()
            share = slice(rank * len(a) // 2, (rank + 1) * len(a) // 2)
            (loss_of(net(a[share]), b[share]) / 2).backward()
            with torch.no_grad():
                net(a)
        optimizer.step()
        optimizer.zero_grad()
    found = {**posterior(model), "ledger": ledger_of(model)}
    net.set_requires_gradient_sync(False)
    loss_of(net(x), y).backward()
    with pytest.raises(bitsback.errors.LayerError, match="not sent"):
        model.draw()
    with pytest.raises(bitsback.errors.LayerError, match="per_rank"):
        adam(model, noise="per_rank")
    with pytest.raises(bitsback.errors.LayerError, match="SGD does not know shards"):
        bitsback.optim.Variational(model, torch.optim.SGD, lr=0.1, examples=EXAMPLES)
    with pytest.raises(bitsback.errors.LayerError, match="draw it afresh"):
        model.set_noise(None, 8)
    other = bitsback.bayesianize(network(), seed=5)
    fully_shard(other, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(bitsback.errors.LayerError, match=r"apply it to model\.network"):
        adam(other)
    grouped = bitsback.bayesianize(network(), "group_gaussian", seed=5)
    sharded(grouped.network)
    with pytest.raises(bitsback.errors.LayerError, match="groups of weights"):
        adam(grouped)
    return found


def test_forwards_that_leave_whole_weights_under_fsdp_do_not_hide_the_next_draw():
    check_against_one(of_two(fsdp_traps), trained_alone_with_two_draws("gaussian"))


def with_distributed_checkpoint(rank):
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def made():
        net = network()
        model = bitsback.bayesianize(net, "gaussian", seed=5)
        sharded(net)
        return model, adam(model)

    def step(model, optimizer, x, y):
        loss_of(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = made()
    steps = list(batches(rank, 2))
    for x, y in steps[:2]:
        step(model, optimizer, x, y)
    saved = [copied(state) for state in get_state_dict(model, optimizer)]
    again, fresh = made()
    before, number = posterior(again), again.draw_number
    get_state_dict(again, fresh)  # fills the fresh optimiser's state by a step of zero gradients and rates
    assert again.draw_number == number
    assert_close(posterior(again), before, 0.0)
    set_state_dict(again, fresh, model_state_dict=saved[0], optim_state_dict=saved[1])
    for x, y in steps[2:]:
        step(again, fresh, x, y)
    return {**posterior(again), "ledger": ledger_of(again)}


def copied(state):
    from torch.utils._pytree import tree_map

    return tree_map(lambda value: value.clone() if isinstance(value, torch.Tensor) else value, state)


def test_distributed_checkpoints_of_a_fresh_optimiser():
    check_against_one(of_two(with_distributed_checkpoint), trained_alone("gaussian"))


# A draw for each rank

RATE = 0.1
FIXED = {"kind": "gaussian", "scale": 0.5, "learn": "none"}


def with_own_draws(rank):
    net = network()
    model = bitsback.bayesianize(net, FIXED, seed=5)
    forward = DDP(model)
    optimizer = bitsback.optim.Variational(forward, torch.optim.SGD, lr=RATE, examples=EXAMPLES, noise="per_rank")
    found = {}
    for number, (x, y) in enumerate(batches(rank, 2)):
        found |= {f"{number}.{name}": tensor for name, tensor in posterior(model).items()}
        found |= {f"{number}.{w.name}.drawn": w.parameter.detach().clone() for w in model.weights}
        with forward.no_sync():
            loss_of(forward(x), y).backward()
        found |= {f"{number}.{w.name}.gradient": w.gradient.clone() for w in model.weights}
        optimizer.step()
        optimizer.zero_grad()
    found |= {f"{STEPS}.{name}": tensor for name, tensor in posterior(model).items()}
    return found


def test_with_a_draw_for_each_rank_steps_average_g_and_g_times_w_minus_m():
    results = of_two(with_own_draws)
    names = {
        name.split(".", 1)[1].removesuffix(".mean") for name in results[0] if name.endswith(".mean") and "prior" not in name
    }
    for number in range(STEPS):
        for name in names:
            first, last = (
                [one[f"{n}.{name}.{part}"].double() for part in ("mean", "log_std")] for one in results[:1] for n in (number, number + 1)
            )  # fmt: skip
            drawn, gradients = (
                torch.stack([one[f"{number}.{name}.{part}"].double() for one in results]) for part in ("drawn", "gradient")
            )
            assert number == 0 or bool((drawn[0] != drawn[1]).all())
            mean, log_std = first
            precision = 1 / 0.5**2
            by_mean = gradients.mean(0) + mean * precision / EXAMPLES
            by_log_std = (gradients * (drawn - mean)).mean(0) + ((2 * log_std).exp() * precision - 1) / EXAMPLES
            assert torch.allclose(last[0], mean - RATE * by_mean, rtol=1e-5, atol=1e-7)
            assert torch.allclose(last[1], log_std - RATE * by_log_std, rtol=1e-5, atol=1e-7)
    for name in names:
        assert torch.equal(results[0][f"{STEPS}.{name}.mean"], results[1][f"{STEPS}.{name}.mean"])
        assert torch.equal(results[0][f"{STEPS}.{name}.log_std"], results[1][f"{STEPS}.{name}.log_std"])


# What all processes share


def train_here(model, examples=EXAMPLES, test=None, seed=9, **changes):
    x, y = data()
    split = bitsback.Examples(x[:examples], y[:examples])
    dataset = bitsback.Dataset("made", split, None if test is None else bitsback.Examples(x[:test], y[:test]))
    keywords = {name: changes.pop(name) for name in ("out", "resume", "watch") if name in changes}
    sections = settings(**changes)
    return bitsback.train(
        model, LIKELIHOOD(CLASSES), dataset, seed=seed, progress=False, report=False, **keywords, **sections
    )  # fmt: skip


def half_bayesian(seed):
    return bitsback.bayesianize(network(seed), {"kind": "gaussian"}, seed=5 + seed, exclude=["2*"], estimator="weight")


def network_of(model):
    found = {name: p for name, p in posterior(model).items() if not name.startswith("prior")}
    from torch.distributed.tensor import DTensor

    found |= {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.deterministic()}
    return {name: p.detach().clone() for name, p in found.items()}


UNEQUAL = {"batch_size": 33, "draws": 2, "epochs": 2}


def of_unequal_groups(strategy):
    model = bitsback.bayesianize(network(), {"kind": "gaussian"}, seed=5)
    train_here(model, 63, engine={"strategy": strategy}, training=UNEQUAL)
    return network_of(model)


def shared(rank):
    """Trainings of which each process has a part of its own: evaluations, deterministic weights, groups of examples."""
    found = {}
    done = train_here(half_bayesian(rank), test=20, training={"epochs": 6}, logging={"test_every": 4})
    found["error"] = torch.tensor(done.test_error)
    for strategy in STRATEGIES:
        model = half_bayesian(rank)
        train_here(model, engine={"strategy": strategy})
        found |= {f"{strategy}|{name}": tensor for name, tensor in network_of(model).items()}
    found |= {f"unequal|{name}": tensor for name, tensor in of_unequal_groups("ddp").items()}
    torch.manual_seed(rank)
    wide = bitsback.bayesianize(nn.Sequential(nn.Linear(6, 6000), nn.Tanh(), nn.Linear(6000, CLASSES)), "student_t", seed=5)
    budget = {"epochs": 2, "budget_bits": 2e4}
    train_here(wide, training=budget, ledger={"samples": 1})
    found |= {f"wide|{name}": p.double().sum() for name, p in network_of(wide).items()}
    half = [torch.full((3,), 6e4, dtype=torch.float16)]
    bitsback.distributed.present().average(half)
    return {**found, "half": half[0]}


def named(found, prefix):
    return {name.removeprefix(f"{prefix}|"): t for name, t in found.items() if name.startswith(f"{prefix}|")}


def test_evaluations_deterministic_weights_and_groups_are_those_of_one_process():
    results = of_two(shared)
    alone = half_bayesian(0)
    train_here(alone, engine={"strategy": "none"})
    again = half_bayesian(0)
    done = train_here(again, test=20, training={"epochs": 6}, logging={"test_every": 4}, engine={"strategy": "none"})
    for found in results:
        assert float(found["error"]) == pytest.approx(done.test_error)
        for strategy in STRATEGIES:
            assert_close(named(found, strategy), network_of(alone))
        assert_close(named(found, "unequal"), of_unequal_groups("none"))
        assert torch.equal(found["half"], torch.full((3,), 6e4, dtype=torch.float16))
    first, second = (named(found, "wide") for found in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


def outside_steps(rank, count, own_start):
    """A linear regression whose log std is a parameter outside the network; rank 0 takes a ledger before a step."""
    torch.manual_seed(0)
    model = bitsback.bayesianize(nn.Linear(6, 1), "gaussian", seed=5)
    log_std = nn.Parameter(torch.full((), own_start * rank))
    forward = DDP(model) if count > 1 else model
    optimizer = bitsback.optim.Adam(forward, lr=1e-2, examples=EXAMPLES, also=[log_std])
    for step, (x, _) in enumerate(batches(rank, count)):
        gap = forward(x)[:, 0] - x[:, 0] * x[:, 1]
        (0.5 * gap.square() * torch.exp(-2 * log_std) + log_std).mean().backward()
        if step == 1 and rank == 0:
            with model.sample():
                pass
        optimizer.step()
        optimizer.zero_grad()
    return {**posterior(model), "log_std": log_std}


def outside(rank):
    return outside_steps(rank, 2, 0.5)


def test_parameters_outside_the_network_take_the_steps_of_one_process():
    wanted = outside_steps(0, 1, 0.0)
    for found in of_two(outside):
        assert_close(found, {name: tensor.detach() for name, tensor in wanted.items()})


def meshes(rank):
    """A mesh of replicas is refused; so are plain networks of shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for shape in ((2, 1), (1, 2)):
        net = network()
        model = bitsback.bayesianize(net, seed=5)
        fully_shard(net, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")))
        with pytest.raises(bitsback.errors.LayerError, match="one dimension"):
            adam(model)
    own = init_device_mesh("cpu", (2, 1), mesh_dim_names=("apart", "shard"))["shard"]
    net = network()
    model = bitsback.bayesianize(net, seed=5)
    fully_shard(net, mesh=own)
    with pytest.raises(bitsback.errors.LayerError, match="over the 2 processes"):
        adam(model)
    net = network()
    model = bitsback.bayesianize(net, seed=5)
    sharded(net)
    adam(model)
    for make in (model.mean_network, model.sampled_network):
        with pytest.raises(bitsback.errors.LayerError, match="load_run"):
            make()
    return {"rank": torch.tensor(rank)}


def test_meshes_that_count_a_weight_twice_and_plain_networks_of_shards_are_refused():
    assert [int(found["rank"]) for found in of_two(meshes)] == [0, 1]


def with_own_draws_resumed(rank, folder):
    """A training with a draw for each rank, and one that is interrupted, whose newest checkpoint is then damaged."""

    def go(name, stop=0, resume=False):
        model = bitsback.bayesianize(network(), {"kind": "gaussian"}, seed=5, estimator="weight")

        def watch(step, _):
            if step == stop:
                raise Stopped

        with suppress(Stopped):
            train_here(model, out=folder / name, watch=watch, resume=resume, engine={"noise": "per_rank"})
        return network_of(model)

    found = {f"one|{name}": tensor for name, tensor in go("one").items()}
    go("two", 5)
    torch.distributed.barrier()
    if rank == 0:
        newest = folder / "two" / "checkpoint" / "state.safetensors"
        newest.write_bytes(newest.read_bytes()[:-100])
    torch.distributed.barrier()
    return found | {f"two|{name}": tensor for name, tensor in go("two", 0, True).items()}


def test_a_training_with_a_draw_for_each_rank_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, capfd):
    results = together(2, with_own_draws_resumed, tmp_path)
    for found in results:
        assert_close(named(found, "two"), named(found, "one"), 1e-6)
    assert_close(results[1], results[0], 0.0)
    assert capfd.readouterr().err.count("is damaged; going on") == 1


class Broken(nn.Module):
    """Network whose outputs are NaN in rank 1 after some calls."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.calls = nn.Linear(6, 9), nn.Linear(9, CLASSES), 0

    def forward(self, x):
        self.calls += self.training
        is_broken = self.calls > 4 and torch.distributed.get_rank() == 1
        return self.two(torch.tanh(self.one(x))) * (float("nan") if is_broken else 1.0)


def breaking(rank, strategy):
    torch.manual_seed(0)
    model = bitsback.bayesianize(Broken(), seed=5, estimator="weight")
    try:
        train_here(model, engine={"strategy": strategy})
    except bitsback.errors.BitsbackError as error:
        return {"said": torch.tensor(list(str(error).encode()), dtype=torch.uint8)}
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_whose_loss_is_not_finite_says_so_and_the_others_stop(strategy):
    first, second = (bytes(found["said"].tolist()).decode() for found in together(2, breaking, strategy))
    assert "another process" in first
    assert "the loss is not finite at step" in second


def test_each_process_takes_a_device_of_its_own():
    from bitsback.distributed import Ranks
    from bitsback.training._engine import own_device

    two = Ranks(1, 2)
    with pytest.raises(bitsback.errors.ConfigError, match=r"training\.device=cuda"):
        own_device("cuda:0", two)
    assert own_device("cpu", two) == "cpu"
    assert own_device("cuda:0", Ranks()) == "cuda:0"


# What is refused


def refusals(rank):
    said = {}

    def refused(name, changes):
        try:
            train(rank, None, changes, 0)
        except bitsback.errors.BitsbackError as error:
            said[name] = torch.tensor(list(str(error).encode()), dtype=torch.uint8)

    refused("alike", {"training": {"threads": 1, "optimizer": {"lr": 0.01 + rank}}})
    refused("none", {"engine": {"strategy": "none"}})
    refused("float64", {"training": {"precision": "float64"}})
    refused("few", {"training": {"batch_size": 1}})
    made = bitsback.bayesianize(network(), seed=5)
    every = bitsback.Dataset("made", bitsback.Examples(*data()), None)
    split = bitsback.Dataset("made", every.train, every.train if rank else None)
    points = bitsback.bayesianize(network(), exclude=["*"])
    for name, model, dataset, options in [
        ("seed", made, every, {"seed": rank}),
        ("samples", made, every, {"ledger": {"samples": 2 + rank}}),
        ("test", made, split, {}),
        ("test_every", made, every, {"logging": {"test_every": 2 + rank}}),
        ("nothing", points, every, {"engine": {"strategy": "fsdp"}}),
    ]:
        options = {"engine": {"strategy": "ddp"}, "training": {"epochs": 1}, **options}
        try:
            bitsback.train(model, LIKELIHOOD(CLASSES), dataset, progress=False, report=False, **options)
        except bitsback.errors.BitsbackError as error:
            said[name] = torch.tensor(list(str(error).encode()), dtype=torch.uint8)
    try:
        adam(bitsback.bayesianize(nn.Linear(2, 2 + rank)))
    except bitsback.errors.BitsbackError as error:
        said["network"] = torch.tensor(list(str(error).encode()), dtype=torch.uint8)
    own = adam(bitsback.bayesianize(network(rank), seed=rank), ranks=bitsback.distributed.ALONE)
    said["own"] = own.model.weights[0].posterior.mean
    done = train(rank, None, {"engine": {"noise": "per_rank"}}, 0)
    said |= {f"per_rank.{name}": tensor for name, tensor in done.items()}
    return said


def test_what_several_processes_cannot_do_is_refused_in_each():
    results = of_two(refusals)
    for found in results:
        text = {name: bytes(t.tolist()).decode() for name, t in found.items() if t.dtype == torch.uint8}
        assert "disagree on the configuration" in text["alike"]
        assert "rank 0 has" in text["alike"]
        assert "'lr': 1.01" in text["alike"]
        assert "engine.strategy=ddp" in text["none"]
        assert "need one process" in text["float64"]
        assert "training.batch_size to 2" in text["few"]
        assert "disagree on the network" in text["network"]
        assert "rank 0 has seed: 0" in text["seed"]
        assert "'samples': 3" in text["samples"]
        assert "rank 1 has 64 test examples" in text["test"]
        assert "rank 1 has test_every: 3" in text["test_every"]
        assert "no weight has one" in text["nothing"]
    assert not torch.equal(results[0]["own"], results[1]["own"])
    for name in results[0]:
        if name.startswith("per_rank."):
            assert torch.equal(results[0][name], results[1][name])


# torchrun


FAILING = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.calls = 0
    def forward(self, x):
        self.calls += self.training
        broken = os.environ["RANK"] == "1" and self.calls > 20
        return self.layer(x.flatten(1)) * (float("nan") if broken else 1.0)

def make():
    return Net()
"""

YAML = """
data: {kind: digits}
network: NETWORK
training: {epochs: 4, threads: 1, noise_reuse: 1}
ledger: {samples: 5}
logging: {report: false}
engine: {strategy: ddp}
"""


def torchrun(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "bitsback"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *arguments], env=environment, cwd=folder, start_new_session=True, **pipes) as process:
        try:
            out, error = process.communicate(timeout=120)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the workers too, which would wait for each other
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


@pytest.mark.slow
def test_torchrun_trains_one_run_and_says_everything_once(tmp_path):
    (tmp_path / "one.yaml").write_text(YAML.replace("NETWORK", "{kind: mlp, hidden: [12]}"))
    done = torchrun(tmp_path, "train", "one.yaml", "--out", "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("The run is in two") == 1
    alone = bitsback.train(tmp_path / "one.yaml", out=tmp_path / "one", progress=False)
    ledger = json.loads((tmp_path / "two" / "ledger.json").read_text())
    assert ledger["net_bits"] == pytest.approx(alone.ledger.net_bits, rel=1e-4)
    again = torchrun(tmp_path, "train", "one.yaml", "--out", "two")
    assert again.returncode == 1
    assert again.stderr.count("is not empty") == 1
    assert torchrun(tmp_path, "send", "two", "--out", "message").stderr.count("needs one process") == 1


@pytest.mark.slow
def test_a_rank_that_fails_stops_all_with_its_own_message(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "one.yaml").write_text(YAML.replace("NETWORK", "{kind: factory, factory: 'failing:make'}"))
    done = torchrun(tmp_path, "train", "one.yaml", "--out", "two")
    assert done.returncode != 0
    assert done.stderr.count("bitsback: ") == 1
    assert "bitsback: rank 1: the loss is not finite" in done.stderr
    assert not (tmp_path / "two" / "summary.json").exists()


# What docs/scale.md shows


def shown(rank):
    """The loops of the page, as they stand there."""
    page = (ROOT / "docs" / "scale.md").read_text()
    ddp, fsdp = re.findall(r"```python\n(.*?)```", page, re.S)
    ledgers = []
    for code in (ddp + "\nledger = bitsback.take_ledger(model, likelihood, train)", fsdp):
        from torch.distributed.fsdp import fully_shard

        net = network()
        loader = list(batches(rank, 2))
        scope = {"bitsback": bitsback, "torch": torch, "network": net, "layers": [net[0], net[2]], "loader": loader,
                 "fully_shard": fully_shard, "train": bitsback.Examples(*data()), "likelihood": LIKELIHOOD(CLASSES)}  # fmt: skip
        exec(compile(code, "scale.md", "exec"), scope)
        ledgers.append(torch.tensor(scope["ledger"].net_weight_bits, dtype=torch.float64))
    return {"bits": torch.stack(ledgers)}


def test_the_loops_of_the_page_run_and_agree():
    first, second = of_two(shown)
    assert first["bits"][0] == pytest.approx(float(first["bits"][1]), rel=1e-6)
    assert torch.equal(first["bits"], second["bits"])


def cases(rank, names):
    """All that is to be seen of two processes; starting them takes longer than everything else."""
    return {f"{name}|{key}": t for name in names for key, t in CASES[name][0](rank, *CASES[name][1]).items()}


CASES = {
    repr((work.__name__, *args)): (work, args)
    for work, *args in [
        *((with_ddp, "model", prior, 0, {}) for prior in PRIORS),
        *((with_ddp, wraps, "gaussian", 7, {}) for wraps in ("model", "network")),
        *((with_fsdp, prior, 0, {}) for prior in PRIORS),
        (with_fsdp, "mixture", 0, CLIPPED),
        (with_two_draws, True),
        (with_two_draws, False),
        (fsdp_traps,),
        (with_distributed_checkpoint,),
        (with_own_draws,),
        (shared,),
        (outside,),
        (meshes,),
        (refusals,),
        (shown,),
    ]
}


@cache
def results_of_two(names):
    return together(2, cases, names)


def of_two(work, *args):
    """What each of two processes returned for a case."""
    name = repr((work.__name__, *args))
    found = results_of_two(tuple(CASES))
    return [{key.removeprefix(f"{name}|"): t for key, t in one.items() if key.startswith(f"{name}|")} for one in found]
