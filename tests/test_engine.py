"""Steps of the optimisers against the float64 oracle: whatever made the gradients, means and stds go where autograd says."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracle import RATES, N, Oracle, assert_close, batches, classify, doubled, mlp
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import bitsback
from bitsback.data import Examples
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.optim import Adam


def follow(
    network, data, cost=classify, *, ours=None, wrap=lambda model: model, prior="gaussian", plain=None, atol=1e-6, dtype=torch.float64,
    **options,
):  # fmt: skip
    """Train three steps and compare with the oracle.

    ``ours(call, *batch)`` leaves the gradients where that is not ``cost(call, *batch).backward()``; ``wrap`` makes ``call``.
    """
    plain = copy.deepcopy(network) if plain is None else plain
    model = bitsback.bayesianize(network, prior, seed=1, **options)
    optimizer = Adam(model, examples=N, **RATES)
    oracle = Oracle(model, plain, examples=N, dtype=dtype, **RATES)
    start = [q.mean.detach().clone() for q in model.posteriors()]
    call = wrap(model)
    for batch in data:
        given = doubled(batch) if dtype == torch.float64 else batch
        oracle.step((model.state, lambda network, given=given: cost(network, *given)))
        optimizer.zero_grad()
        if ours is None:
            cost(call, *batch).backward()
        else:
            ours(call, *batch)
        optimizer.step()
    assert_close(model, oracle, atol)
    assert all(
        float((q.mean - before).detach().abs().max()) > 1e-3 for q, before in zip(model.posteriors(), start, strict=True)
    )
    assert model.draw_number == len(data)
    return model


def test_a_plain_loop():
    follow(mlp(), batches())


# torch.compile


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("what", ["model", "network"])
def test_a_compiled_model(what, backend):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()

    def compiled(model):
        return torch.compile(model if what == "model" else model.network, backend=backend, fullgraph=True)

    follow(mlp(), batches(), wrap=compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # a draw compiles nothing anew


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "network"])
def test_a_compiled_model_by_inductor(what):
    torch.compiler.reset()
    follow(mlp(), batches(), wrap=lambda model: torch.compile(model if what == "model" else model.network))


def test_an_optimiser_takes_a_compiled_model():
    model = bitsback.bayesianize(mlp())
    assert Adam(torch.compile(model, backend="eager"), examples=N).model is model


# checkpointing


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.body, self.reentrant = nn.Linear(5, 7), mlp_body(), reentrant

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.body(h) if self.reentrant is None else checkpoint(self.body, h, use_reentrant=self.reentrant)


def mlp_body():
    return nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    network = Checkpointed(reentrant)
    plain = copy.deepcopy(network)
    plain.reentrant = None
    follow(network, batches(), plain=plain)


# torch.func


def parts(call):
    """What functional_call takes, the prefix of the network's names there, and its parameters."""
    inner = call.network if isinstance(call, bitsback.BayesianModel) else call
    prefix = "network." if inner is not call else ""
    return {prefix + name: p for name, p in inner.named_parameters()}


def leave(call, gradients):
    for name, parameter in parts(call).items():
        parameter.grad = gradients[name].detach()


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: model.network], ids=["model", "network"])
def test_functional_call_and_grad(wrap):
    def ours(call, x, y):
        gradients = grad(lambda weights: F.cross_entropy(functional_call(call, weights, (x,)), y))(parts(call))
        leave(call, gradients)

    follow(mlp(), batches(), ours=ours, wrap=wrap)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: model.network], ids=["model", "network"])
def test_vmap_over_examples(wrap):
    def ours(call, x, y):
        def one(weights, x, y):
            return F.cross_entropy(functional_call(call, weights, (x[None],)), y[None])

        each = vmap(grad(one), in_dims=(None, 0, 0))({k: p.detach() for k, p in parts(call).items()}, x, y)
        leave(call, {name: gradient.mean(0) for name, gradient in each.items()})

    follow(mlp(), batches(), ours=ours, wrap=wrap)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: model.network], ids=["model", "network"])
def test_functional_call_and_backward(wrap):
    def ours(call, x, y):
        F.cross_entropy(functional_call(call, parts(call), (x,)), y).backward()

    follow(mlp(), batches(), ours=ours, wrap=wrap)


def test_transforms_see_the_resident_draw():
    model, x = bitsback.bayesianize(mlp()), torch.randn(4, 5)
    wanted = model(x)
    assert torch.allclose(vmap(model)(x), wanted, atol=1e-6)
    slopes = jacrev(model)(x)
    assert torch.allclose(slopes, torch.autograd.functional.jacobian(model.network, x), atol=1e-6)


# hooks


def test_hooks_that_read_numbers():
    network, seen = mlp(), []
    plain = copy.deepcopy(network)
    for layer in network:
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.detach().mean().item()))
    model = follow(network, batches(), plain=plain)
    assert len(seen) == 9
    x, y = torch.randn(30, 5), torch.randint(3, (30,))
    book = bitsback.take_ledger(model, CategoricalLikelihood(3), Examples(x, y), samples=4)
    assert len(seen) >= 9 + 4 * 3
    assert book.data_bits > 0


# precisions


def test_float16_with_a_scaler():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def half(call, x, y):
        with torch.autocast("cpu", torch.float16):
            return F.cross_entropy(call(x), y)

    network, data = mlp(), batches()
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, seed=1)
    optimizer, oracle = (
        Adam(model, examples=N, **RATES),
        Oracle(model, plain, examples=N, dtype=torch.float32, **RATES),
    )
    for batch in data:
        state = model.state
        scaler.scale(half(model, *batch)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        oracle.step((state, lambda network, batch=batch: half(network, *batch)))
    assert_close(model, oracle)
    assert scaler.get_scale() == 2.0**10


def test_bfloat16_autocast():
    def half(call, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(call(x), y)

    follow(mlp(), batches(), half, dtype=torch.float32, atol=1e-5)


# kinds of networks


def test_weight_norm():
    follow(nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 7)), nn.Tanh(), nn.Linear(7, 3)), batches())


def test_spectral_norm():
    follow(nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 7)), nn.Tanh(), nn.Linear(7, 3)), batches())


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4, **options), nn.Linear(4, 3)

    def forward(self, words):
        return self.out(self.table(words).mean(1))


def words(count=3):
    return [(torch.randint(9, (12, 6)), torch.randint(3, (12,))) for _ in range(count)]


def test_sparse_embeddings():
    model = follow(Words(sparse=True), words(), plain=None)
    classify(model, *words()[0]).backward()
    assert model.network.table.weight.grad.is_sparse


def test_padding_rows_are_constants():
    network = Words(padding_idx=2)
    with torch.no_grad():
        network.table.weight[2] = 0.5
    model = bitsback.bayesianize(network)
    assert torch.equal(network.table.weight[2], torch.full((4,), 0.5))
    model.draw()
    assert torch.equal(network.table.weight[2], torch.full((4,), 0.5))
    network = Words(padding_idx=2)
    follow(network, words())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.out.weight = self.table.weight
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, words):
        return self.out(torch.tanh(self.table(words).mean(1) + self.shift))


def test_ties():
    model = follow(Tied(), [(x, torch.randint(9, (12,))) for x, _ in words()])
    assert [weight.name for weight in model.weights] == ["shift", "table.weight"]
    assert model.network.out.posterior["weight"] is model.network.table.posterior["weight"]


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(5, 6, num_layers=2, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x, lengths):
        output, _ = self.cell(pack_padded_sequence(x, lengths, enforce_sorted=False))
        padded, _ = pad_packed_sequence(output)
        return self.out(padded.sum(0) / lengths[:, None])


def test_a_packed_lstm():
    data = [(torch.randn(7, 12, 5), torch.randint(1, 8, (12,)), torch.randint(3, (12,))) for _ in range(3)]
    follow(Packed(), data, lambda call, x, lengths, y: F.cross_entropy(call(x, lengths), y))


class Graph(nn.Module):
    """Two graph convolutions: every node sees its neighbours."""

    def __init__(self, nodes, inputs, hidden, classes):
        super().__init__()
        links = (torch.rand(nodes, nodes) < 0.2).float()
        links = ((links + links.T) > 0).float() + torch.eye(nodes)
        self.register_buffer("spread", links / links.sum(1, keepdim=True))
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, classes)

    def forward(self, x):
        return self.spread @ self.second(torch.relu(self.spread @ self.first(x)))


def test_a_graph_network():
    follow(Graph(12, 5, 7, 3), batches())


class Recurrent(nn.Module):
    """A cell of one's own: a Linear called at every time."""

    def __init__(self, inputs, hidden, classes):
        super().__init__()
        self.hidden, self.cell, self.out = hidden, nn.Linear(inputs + hidden, hidden), nn.Linear(hidden, classes)

    def forward(self, x):
        h = x.new_zeros(len(x), self.hidden)
        for time in range(x.shape[1]):
            h = torch.tanh(self.cell(torch.cat([x[:, time], h], 1)))
        return self.out(h)


def test_a_recurrent_cell():
    follow(Recurrent(4, 6, 3), [(torch.randn(10, 12, 4), torch.randint(3, (10,))) for _ in range(3)])


class Flattened(nn.Module):
    """Tokens become rows before they meet a Linear."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        rows, times, size = x.shape
        return self.out(torch.tanh(self.inner(x.reshape(rows * times, size))).view(rows, times, -1).mean(1))


def test_tokens_flattened_before_a_linear():
    follow(Flattened(), [(torch.randn(10, 5, 4), torch.randint(3, (10,))) for _ in range(3)])
