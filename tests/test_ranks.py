"""Several processes train as one: DDP and FSDP2 against a single process with the same global batch and seed."""

import json

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
    return {name: t.detach() for name, t in found.items()}


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
    model = bitsback.bayesianize(net, prior, seed=5 + seed_of_rank * rank)
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
    check_against_one(together(2, with_ddp, "model", PRIORS[prior], 0, {}), trained_alone(PRIORS[prior]))


@pytest.mark.parametrize("wraps", ["model", "network"])
def test_ranks_that_were_seeded_apart_train_rank_0s_model(wraps):
    check_against_one(together(2, with_ddp, wraps, "gaussian", 7, {}), trained_alone("gaussian"))

# bitsback train


def settings(**changes):
    """A training of five epochs of two batches, whose layers draw their outputs as on one process."""
    sections = {
        "training": {"epochs": 4, "batch_size": 32, "checkpoint_seconds": 0, "threads": 1, "noise_reuse": 1},
        "ledger": {"samples": 8},
        "engine": {"strategy": "ddp"},
    }
    for section, values in changes.items():
        sections[section] = {**sections[section], **values}
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


def resumed_by_fewer(out, changes):
    """Ends of a training of one process, and of one that 4, then 2 processes and then 1 went on with."""
    whole = train(0, out / "one", changes, 0)
    together(4, train, out / "fewer", changes, 3)
    together(2, train, out / "fewer", changes, 6, True)
    (ended,) = together(1, train, out / "fewer", changes, 0, True)
    return ended, whole


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_training_of_four_processes_is_continued_by_two_and_ended_by_one(tmp_path, strategy):
    ended, whole = resumed_by_fewer(tmp_path, {"engine": {"strategy": strategy}})
    book, wanted = ended.pop("ledger"), whole.pop("ledger")
    assert_close(ended, whole)
    assert torch.allclose(book[:3], wanted[:3], rtol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "fewer" / "metrics.jsonl").read_text().splitlines()]
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
    model = bitsback.bayesianize(net, prior, seed=5 + seed_of_rank * rank)
    sharded(net)
    optimizer = adam(model, **options)
    for x, y in batches(rank, 2):
        loss_of(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = posterior(model)
    found["ledger"] = ledger_of(model)
    return found


@pytest.mark.parametrize("prior", PRIORS)
def test_fsdp_takes_the_steps_of_one_process(prior):
    check_against_one(together(2, with_fsdp, PRIORS[prior], 0, {}), trained_alone(PRIORS[prior]))
