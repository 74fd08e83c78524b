"""What is frozen stays frozen: weights without gradients, modules in eval mode, statistics and buffers that do not train."""

import copy
import math

import pytest
import torch
from torch import nn

import bitsback
from bitsback.analysis._approximate import laplace_model_bits
from bitsback.certificates import certify_posterior
from bitsback.certificates._posterior_risk import mean_loss_of_draws
from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings, TuningSettings
from bitsback.config.schema import Config
from bitsback.data import Dataset, Examples
from bitsback.errors import CertificateError, ConfigError, LayerError
from bitsback.formats._exact_outputs import exact_outputs
from bitsback.formats.message.read import receive_file
from bitsback.formats.message.write import Sender
from bitsback.formats.model_file.write import pack_experiment
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize, evaluate, take_ledger, width_curve
from bitsback.model.modes import Modes, evaluating
from bitsback.report._budget import operations
from bitsback.report._example_costs import judged
from bitsback.report._recoded import recoded
from bitsback.report.widths import widths
from bitsback.training import TrainingSettings, train
from bitsback.training.loop import Fit
from bitsback.training.settings import OptimizerSettings
from bitsback.training.train import start

N, C = 60, 3
LIKELIHOOD = CategoricalLikelihood(C)
FIXED = {"kind": "gaussian", "scale": 0.5, "learn": "none"}


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, 1, 6, 6, generator=generator)
    return Examples(inputs, (inputs[:, 0, :C, 0] + inputs[:, 0, :C, 3]).argmax(1))


def table(width=8):
    inputs = torch.randn(N, width)
    return Examples(inputs, inputs[:, :C].argmax(1))


def trained(model, examples, epochs=5, test=None, **settings):
    settings = {"batch_size": 30, "epochs": epochs, **settings}
    data = Dataset("made here", examples, test, C)
    return train(model, LIKELIHOOD, data, training=TrainingSettings(**settings), progress=False)


def conv_trunk():
    """Convolution and batch norm, used once, then frozen in eval mode; its statistics are no bfloat16 numbers."""
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    trunk(images().inputs)
    assert not torch.equal(trunk[1].running_mean, trunk[1].running_mean.bfloat16().float())
    return trunk.requires_grad_(False).eval()


def modes_of(network):
    return [(name, module.training) for name, module in network.named_modules()]


def numbers_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def charged(ledger):
    return {charge.name: (charge.numbers, charge.bits) for charge in ledger.charges}


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.bn(self.conv(x)))


class Residual(nn.Module):
    """Stem, blocks, pool and fc, as a ResNet has."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.layer1, self.fc = nn.Sequential(Block(6), Block(6)), nn.Linear(6, C)

    def forward(self, x):
        return self.fc(self.layer1(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


# A head on a frozen trunk


def test_a_frozen_trunk_in_eval_mode_costs_nothing_and_is_left_as_it_is():
    """The ledger is that of the head alone on the trunk's features: same start, same draws, same batches."""
    examples, trunk, head = images(), conv_trunk(), nn.Linear(64, C)
    before, alone = numbers_of(trunk), copy.deepcopy(head)
    model = bayesianize(nn.Sequential(trunk, head))
    modes = modes_of(model)
    ledger = trained(model, examples, test=images(1)).ledger
    assert modes_of(model) == modes
    assert same(numbers_of(trunk), before)
    features = Examples(trunk(examples.inputs), examples.targets)
    wanted = trained(bayesianize(nn.Sequential(alone)), features).ledger
    assert [entry.name for entry in ledger.entries] == ["1.weight", "1.bias"]
    assert ledger.hyperparameter_bits == wanted.hyperparameter_bits == 20.0  # two scales
    assert ledger.net_weight_bits == pytest.approx(wanted.net_weight_bits, rel=1e-4)
    assert ledger.data_bits == pytest.approx(wanted.data_bits, rel=1e-4)
    named = [line for line in ledger.not_charged if line.startswith("0.")]
    assert named == [
        "0.0.weight (36 frozen weights)", "0.0.bias (4 frozen weights)", "0.1.weight (4 frozen weights)",
        "0.1.bias (4 frozen weights)", "0.1.running_mean (4 fixed statistics)", "0.1.running_var (4 fixed statistics)",
    ]  # fmt: skip
    assert not ledger.notes


def test_only_the_last_layer_of_a_residual_network_pays():
    examples, network = images(), Residual()
    network(examples.inputs)
    network.requires_grad_(False).eval()
    network.fc.requires_grad_(True)
    network.fc.train()
    before = numbers_of(network)
    model = bayesianize(network, FIXED)
    ledger = trained(model, examples).ledger
    assert {entry.name for entry in ledger.entries} == {"fc.weight", "fc.bias"}
    assert ledger.hyperparameter_bits == 0.0
    assert ledger.model_weights == 6 * C + C
    after = numbers_of(network)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if not name.startswith("fc."))
    assert [module.training for name, module in network.named_modules() if not name.startswith("fc")] == [False] * 10


def test_frozen_weights_in_train_mode_have_statistics_that_move_and_are_paid_for():
    """Torch's own rule: only eval mode holds statistics still; the ledger says how."""
    network = Residual().requires_grad_(False)
    network.fc.requires_grad_(True)
    ledger = trained(bayesianize(network, FIXED), images()).ledger
    assert charged(ledger) == {
        f"{norm}.{name}": (6, 96.0)
        for norm in ("bn1", "layer1.0.bn", "layer1.1.bn")
        for name in ("running_mean", "running_var")
    }
    assert any("'bn1', 'layer1.0.bn', 'layer1.1.bn': weights are frozen but statistics charged" in n for n in ledger.notes)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("estimator", ["auto", "weight"])
def test_a_frozen_backbone_does_not_move_and_only_the_head_pays(estimator, fused):
    examples = table()
    net = nn.Sequential(nn.Linear(8, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, C))
    for layer in net[:4]:
        layer.requires_grad_(False)
    before = numbers_of(net[:4])
    model = bayesianize(net, estimator=estimator)
    assert [weight.name for weight in model.weights] == ["4.weight", "4.bias"]
    start_of_head = model.weights[0].posterior.mean.detach().clone()
    ledger = trained(model, examples, epochs=10, fused=fused).ledger  # twenty steps
    assert same(numbers_of(net[:4]), before)
    assert not torch.equal(model.weights[0].posterior.mean, start_of_head)
    assert (ledger.weights, {entry.name for entry in ledger.entries}) == (303, {"4.weight", "4.bias"})
    alone = bayesianize(nn.Linear(100, C))
    alone.posterior.load_state_dict(model.posterior.get_submodule("4").state_dict())
    alone.update_priors()
    alone.round_to_grid()
    assert ledger.net_weight_bits == pytest.approx(float(alone.double().kl_bits(exact=True).detach()), rel=1e-4)


class Sines(nn.Module):
    """A table of sines as a parameter without gradients, in front of a linear layer."""

    def __init__(self):
        super().__init__()
        places = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0.1, 0.01])
        self.table = nn.Parameter(places.sin(), requires_grad=False)
        self.head = nn.Linear(3, C)

    def forward(self, x):
        return self.head(x @ self.table)


@pytest.mark.parametrize("optimizer", [{"name": "AdamW", "lr": 0.05, "arguments": {"weight_decay": 0.5}}, {"name": "IVON"}])
def test_a_sine_table_stays_a_table(optimizer):
    network = Sines()
    before = network.table.clone()
    ledger = trained(bayesianize(network), table(), optimizer=OptimizerSettings(**optimizer)).ledger
    assert isinstance(network.table, nn.Parameter)
    assert torch.equal(network.table, before)
    assert "table (24 frozen weights)" in ledger.not_charged
    assert {entry.name for entry in ledger.entries} == {"head.weight", "head.bias"}


class Quantised(nn.Module):
    """A trunk of eight-bit weights, as a quantised backbone has, under a head."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Parameter(torch.randint(-100, 100, (8, 8), dtype=torch.int8), requires_grad=False)
        self.head = nn.Linear(8, C)

    def forward(self, x):
        return self.head((x @ (self.trunk.to(x.dtype) / 100)).tanh())


def test_a_trunk_of_whole_numbers_leaves_inputs_as_they_are():
    network, examples = Quantised(), table()
    model = bayesianize(network, FIXED)
    ledger = trained(model, examples).ledger
    assert network.trunk.dtype == torch.int8
    assert "trunk (64 frozen weights)" in ledger.not_charged
    with model.mean(), torch.no_grad():
        wanted = float(LIKELIHOOD.bits(model(examples.inputs), examples.targets).sum())
    assert evaluate(model, LIKELIHOOD, examples, samples=0).data_bits == pytest.approx(wanted, rel=1e-6)
    judged_bits = judged(model, LIKELIHOOD, examples, draws=1, numbers=torch.arange(N)).bits.sum()
    assert float(judged_bits) == pytest.approx(evaluate(model, LIKELIHOOD, examples, samples=1).data_bits, rel=1e-6)
    assert operations(model, examples) > 2 * 8 * C


# What gets a posterior


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, C)
        self.again.weight = self.first.weight

    def forward(self, x):
        return self.head(self.again(self.first(x).tanh()))


def test_a_tied_weight_is_frozen_under_both_of_its_names():
    network = Tied()
    network.again.weight.requires_grad_(False)
    model = bayesianize(network)
    assert {weight.name for weight in model.weights} == {"head.weight", "head.bias"}
    assert network.first.weight is network.again.weight
    assert [name for name, _ in model.deterministic()] == ["first.weight"]


def test_attention_with_a_frozen_input_projection():
    network = nn.MultiheadAttention(8, 2, batch_first=True)
    network.in_proj_weight.requires_grad_(False)
    model = bayesianize(network)
    assert {weight.name for weight in model.weights} == {"in_proj_bias", "out_proj.weight", "out_proj.bias"}
    x = torch.randn(2, 5, 8)
    with model.mean():
        output, _ = model(x, x, x)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    state = {name: network.in_proj_weight if name == "in_proj_weight" else None for name in plain.state_dict()}
    state |= {weight.name: weight.posterior.mean for weight in model.weights}
    plain.load_state_dict(state)
    assert torch.allclose(output, plain(x, x, x)[0], atol=1e-6)


def test_recurrent_weights_may_be_frozen_one_by_one():
    network = nn.LSTM(3, 4, batch_first=True)
    network.weight_hh_l0.requires_grad_(False)
    model = bayesianize(network)
    assert {weight.name for weight in model.weights} == {"weight_ih_l0", "bias_ih_l0", "bias_hh_l0"}
    assert model(torch.randn(2, 5, 3))[0].shape == (2, 5, 4)


@pytest.mark.parametrize("kind", [nn.Embedding, bitsback.nn.Embedding])
def test_a_pretrained_embedding_stays_frozen(kind):
    vectors = torch.randn(7, 4)
    layer = kind.from_pretrained(vectors, freeze=True, padding_idx=0)
    model = bayesianize(nn.Sequential(layer, nn.Flatten(), nn.Linear(8, C)))
    assert {weight.name for weight in model.weights} == {"2.weight", "2.bias"}
    assert torch.equal(layer(torch.tensor([0, 3])), vectors[[0, 3]])
    assert "0.weight (28 frozen weights)" in model.not_charged()


def test_a_batch_norm_with_frozen_scales_keeps_them():
    network = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, C))
    network[1].requires_grad_(False)
    model = bayesianize(network)
    trained(model, table())
    assert network[1].weight.tolist() == [1.0] * 4
    assert network[1].bias.tolist() == [0.0] * 4
    assert "1.weight" not in {weight.name for weight in model.weights}


def test_asking_for_frozen_weights_alone_is_refused_with_the_fix():
    network = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, C))
    network[0].requires_grad_(False)
    with pytest.raises(
        LayerError, match=r"include '0' matches only frozen weights \(0.weight, 0.bias\), .* requires_grad_\(True\)"
    ):
        bayesianize(network, include=["0", "1"])
    assert [name for name, _ in network.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    model = bayesianize(network, include=["*.weight"])
    assert [weight.name for weight in model.weights] == ["1.weight"]
    with pytest.raises(LayerError, match=r"every weight of Linear is frozen, .* requires_grad_\(True\)"):
        bayesianize(nn.Linear(3, 2).requires_grad_(False))
    mixed = nn.Sequential(nn.Linear(8, 4).requires_grad_(False), bitsback.nn.Linear(4, C))
    assert [weight.name for weight in bayesianize(mixed).weights] == ["1.weight", "1.bias"]


def test_a_layer_of_frozen_weights_has_nothing_to_draw_or_count():
    layer = bitsback.nn.Embedding.from_pretrained(torch.randn(7, 4))
    assert not layer.posterior
    with pytest.raises(LayerError, match="every weight of this layer is frozen"):
        layer.kl_bits()


# Posteriors that are frozen later


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("estimator", ["auto", "weight"])
@pytest.mark.parametrize("optimizer", [{"name": "AdamW", "lr": 0.05, "arguments": {"weight_decay": 0.5}}, {"name": "Adam"}])
def test_a_weight_frozen_after_bayesianize_does_not_move_and_its_kl_is_charged(optimizer, estimator, fused):
    network, seen = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, C)), []
    model = bayesianize(network, {"kind": "gaussian", "learn": "closed_form"}, estimator=estimator)
    network[0].weight.requires_grad_(False)
    held = model.weights[0].posterior
    mean, log_std, other = held.mean.clone(), held.log_std.clone(), model.weights[2].posterior.mean.clone()
    network[0].register_forward_hook(lambda layer, *_: seen.append(layer.weight.detach().clone()))
    ledger = trained(model, table(), fused=fused, optimizer=OptimizerSettings(**optimizer)).ledger
    assert torch.equal(held.mean, mean)
    assert torch.equal(held.log_std, log_std)
    assert not torch.equal(model.weights[2].posterior.mean, other)
    drawn = {tuple(weight.flatten().tolist()) for weight in seen if not torch.equal(weight, mean)}
    assert len(drawn) > 2  # a draw for each step where weights are drawn, and for the ledger
    prior, m, s = model.weights[0].prior, mean.double(), held.std().double()
    p = float(prior.log_scale.double().exp())
    nats = (math.log(p) - s.log() + (s**2 + m**2) / (2 * p**2) - 0.5).sum()
    entry = next(entry for entry in ledger.entries if entry.name == "0.weight")
    assert entry.net_bits == pytest.approx(float(nats) / math.log(2), rel=1e-5)
    assert p == pytest.approx(float((m**2 + s**2).mean().sqrt()), rel=0.02)  # the best scale, on its grid
    assert "'0.weight': the weight was frozen since, and its KL is charged as it stands" in ledger.notes


def test_a_model_without_anything_to_train_is_refused():
    model = bayesianize(nn.Linear(8, C), FIXED).requires_grad_(False)
    with pytest.raises(ConfigError, match=r"nothing can be trained: every weight is frozen; call requires_grad_\(True\)"):
        trained(model, table())


# Modes


class Stubborn(nn.BatchNorm1d):
    """Stays in eval mode, whatever it is told."""

    def train(self, mode=True):
        return super().train(False)


class Merging(nn.Module):
    """Does more than note its mode, as adapters do that are merged for evaluation."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_modes_are_kept_module_by_module():
    shared = nn.Dropout().eval()
    network = nn.ModuleList([nn.ModuleList([shared, Merging()]), Stubborn(2), nn.ModuleList([shared, nn.Dropout()]).eval()])
    network[2][1].train()
    modes = modes_of(network)
    with evaluating(network):
        assert not any(training for _, training in modes_of(network))
        assert network[0][1].merged
    assert modes_of(network) == modes
    assert not network[0][1].merged
    saved = Modes(network)
    network.train()
    saved.restore()
    assert modes_of(network) == modes


def half_frozen():
    """A norm in eval mode between layers that train, and one that trains."""
    parts = nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, C)
    network = nn.Sequential(*parts)
    network(table().inputs)
    network[1].eval()
    network[5].eval()
    return network


def certify(model, examples):
    return certify_posterior(model, LIKELIHOOD, examples, draws=1, test=examples)


QUESTIONS = {
    "evaluate": lambda model, examples: evaluate(model, LIKELIHOOD, examples, samples=2),
    "take_ledger": lambda model, examples: take_ledger(model, LIKELIHOOD, examples, samples=2),
    "certify": certify,
    "draws": lambda model, examples: mean_loss_of_draws(model, LIKELIHOOD, examples),
    "width_curve": lambda model, examples: width_curve(model, LIKELIHOOD, examples, factors=(0.5, 2.0), samples=1),
    "judged": lambda model, examples: judged(model, LIKELIHOOD, examples, draws=2, numbers=torch.arange(N)),
    "operations": lambda model, examples: operations(model, examples),
    "exact": lambda model, examples: exact_outputs(model, {w.name: w.posterior.mean for w in model.weights}, examples.inputs),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_leaves_modes_and_buffers_as_they_were(name):
    model, examples = bayesianize(half_frozen(), FIXED).double(), table().to(torch.device("cpu"), torch.float64)
    model.round_to_grid()  # which the ledger does to what it charges
    modes, numbers = modes_of(model), numbers_of(model)
    QUESTIONS[name](model, examples)
    assert modes_of(model) == modes
    assert same(numbers_of(model), numbers)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_that_fails_leaves_the_modes_as_they_were(name):
    model, examples = bayesianize(half_frozen(), FIXED).double(), table().to(torch.device("cpu"), torch.float64)
    modes = modes_of(model)

    def fail(*_):
        raise RuntimeError("a hook of somebody's own")

    model.network[6].register_forward_hook(fail)
    with pytest.raises((RuntimeError, CertificateError), match="a hook of somebody's own"):
        QUESTIONS[name](model, examples)
    assert modes_of(model) == modes


def test_laplace_leaves_the_modes_as_they_were():
    model, examples = bayesianize(half_frozen(), FIXED, posterior="point"), table()
    modes = modes_of(model)
    whole = laplace_model_bits(model, LIKELIHOOD, examples).model_bits
    assert modes_of(model) == modes
    model.network[4].eval()
    assert whole - laplace_model_bits(model, LIKELIHOOD, examples).model_bits == pytest.approx(8 * 32.0)  # its statistics


def test_what_is_in_eval_mode_trains_in_eval_mode():
    """Dropout drops nothing and statistics stay; what is in train mode drops and moves."""
    network, examples = half_frozen(), table()
    seen = []
    for layer in network:
        layer.register_forward_hook(lambda layer, *_: seen.append((layer, layer.training)) if torch.is_grad_enabled() else None)
    model = bayesianize(network, FIXED)
    modes, numbers = modes_of(model), numbers_of(network)

    class Looks:
        """A logger that looks at the network, and forgets to put it back."""

        def log(self, metrics):
            model.eval()

        def close(self):
            pass

    data = Dataset("made here", examples, table(), C)
    settings = TrainingSettings(epochs=2)
    outcome = train(model, LIKELIHOOD, data, training=settings, progress=False, loggers=[Looks()])
    assert modes_of(model) == modes
    assert {(layer, mode) for layer, mode in seen} == {(layer, layer.training) for layer in network}
    assert torch.equal(network[1].running_mean, numbers["1.running_mean"])
    assert torch.equal(network[1].running_var, numbers["1.running_var"])
    assert not torch.equal(network[4].running_mean, numbers["4.running_mean"])
    assert charged(outcome.ledger) == {"4.running_mean": (4, 64.0), "4.running_var": (4, 64.0)}
    assert "1.running_mean (5 fixed statistics)" in outcome.ledger.not_charged


# Statistics and other buffers


def loop(model, examples, steps=3):
    """A training loop of somebody's own."""
    optimizer = bitsback.optim.Adam(model, lr=0.01, examples=len(examples))
    for _ in range(steps):
        nn.functional.cross_entropy(model(examples.inputs), examples.targets).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_statistics_that_moved_are_paid_for_in_whatever_mode_the_ledger_is_taken():
    network, examples = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, C)), table()
    model = bayesianize(network, FIXED)
    loop(model, examples)
    model.eval()
    ledger = take_ledger(model, LIKELIHOOD, examples, samples=1)
    assert charged(ledger) == {"1.running_mean": (4, 64.0), "1.running_var": (4, 64.0)}
    assert torch.equal(network[1].running_mean, network[1].running_mean.bfloat16().float())


def test_statistics_held_in_eval_mode_after_bayesianize_are_the_receivers():
    network, examples = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, C)), table()
    network(examples.inputs)
    model = bayesianize(network, FIXED)
    network[1].eval()
    before = network[1].running_mean.clone()
    loop(model, examples)
    ledger = take_ledger(model, LIKELIHOOD, examples, samples=1)
    assert charged(ledger) == {}
    assert torch.equal(network[1].running_mean, before)  # not rounded either


class Held(nn.Module):
    """Batch norm by constants, as detectors have it: it has a train mode, and no use for it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.full((8,), 0.1234567))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x):
        return (x - self.running_mean) / self.running_var.sqrt()


class Habits(nn.Module):
    """Buffers of every kind, some of which change in train mode."""

    def __init__(self, by=1):
        super().__init__()
        self.by = by
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("fixed", torch.ones(8))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("count", torch.zeros(3, dtype=torch.long))
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool))

    def forward(self, x):
        if self.training and self.by:
            self.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1 * self.by)
            self.count += self.by
            self.cache += self.by
        return (x - self.average) * self.fixed * self.mask


def test_constants_in_the_place_of_statistics_are_the_receivers():
    model = bayesianize(nn.Sequential(Held(), nn.Linear(8, C)), FIXED)
    ledger = trained(model, table()).ledger
    assert charged(ledger) == {}
    assert "0.running_mean (8 fixed statistics)" in ledger.not_charged
    assert model.network[0].running_mean.tolist() == torch.full((8,), 0.1234567).tolist()


def test_a_buffer_that_training_changed_is_paid_for_or_named():
    model = bayesianize(nn.Sequential(Habits(), nn.Linear(8, C)), FIXED)
    ledger = trained(model, table(), precision="float64").ledger
    assert charged(ledger) == {"0.average": (8, 8 * 32.0)}
    average = model.network[0].average
    assert torch.equal(average, average.float().double())  # what is charged is what is used
    assert [line for line in ledger.not_charged if line.startswith("0.")] == [
        "0.fixed (a buffer of 8 fixed numbers)",
        "0.cache (a buffer of 2 numbers, changed since the start and not paid for)",
        "0.count (a buffer of 3 numbers, changed since the start and not paid for)",
    ]


def test_spectral_norm_pays_for_its_vectors():
    network = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, C)))
    ledger = trained(bayesianize(network, FIXED), table()).ledger
    assert charged(ledger)["0.weight_u"] == (C, C * 32.0)


def test_what_changed_is_known_through_copies_precisions_and_states():
    network, examples = nn.Sequential(Habits(), nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, C)), table()
    model = bayesianize(network, FIXED)
    network[2].eval()
    untouched = copy.deepcopy(model)
    loop(model, examples)
    for one in (copy.deepcopy(model), copy.deepcopy(model).double(), copy.deepcopy(model).double().float(), model):
        assert [name for name, _ in one.changed_buffers()] == ["0.average"]
        assert one.learned_statistics() == []
    for one in (copy.deepcopy(untouched).double(), copy.deepcopy(untouched).bfloat16().float(), untouched):
        assert one.changed_buffers() == one.learned_statistics() == []
    assert untouched.state_dict().keys() == model.state_dict().keys()
    assert not any("start" in name for name in model.state_dict())
    untouched.load_state_dict(model.state_dict())
    assert [name for name, _ in untouched.changed_buffers()] == ["0.average"]


def test_another_prior_pays_for_the_same_buffers():
    model, examples = bayesianize(nn.Sequential(Habits(), half_frozen())), table()
    ledger = trained(model, examples).ledger
    other = recoded(model, ledger, ["laplace"])["laplace"]

    def beside(book):
        return [(charge.name, charge.bits) for charge in book.charges if "[" not in charge.name]

    wanted = [("1.4.running_mean", 64.0), ("1.4.running_var", 64.0), ("0.average", 256.0)]
    assert beside(other) == beside(ledger) == wanted
    curve = widths(model, LIKELIHOOD, examples, ledger, factors=(1.0,)).curve
    assert curve[1.0].hyperparameter_bits == pytest.approx(ledger.hyperparameter_bits, rel=1e-12)


# Runs and files


class Partly(nn.Module):
    """What a factory may return: a frozen trunk in eval mode, and an average that moves."""

    def __init__(self, by=1):
        super().__init__()
        self.flat, self.trunk, self.norm = nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12)
        self.scale, self.middle, self.last = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)
        self.habits = Habits(by)
        generator = torch.Generator().manual_seed(3)
        for tensor in (self.norm.running_mean, self.norm.running_var):
            tensor.uniform_(0.3, 0.7, generator=generator)
        for part in (self.trunk, self.norm):
            part.requires_grad_(False).eval()

    def forward(self, x):
        return self.last(self.habits(self.middle(self.scale(self.norm(self.trunk(self.flat(x)))))))


def partly(by=1):
    return Partly(by)


def config(by=1, **sections):
    network = {"kind": "factory", "factory": "test_frozen:partly", "arguments": {"by": by}}
    data = {"kind": "digits", "limit": 200}
    training = {"epochs": 4, "batch_size": 64, "checkpoint_seconds": 0}
    return Config.model_validate({"network": network, "data": data, "training": training, "ledger": {"samples": 2}, **sections})


def run(directory, resume=False, **sections):
    return Experiment.build(config(**sections)).train(directory, resume=resume, progress=False)


def test_a_factory_says_what_is_frozen_and_a_resumed_run_agrees(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    beside = {name: numbers for name, (numbers, _) in charged(whole.ledger).items() if "[" not in name}
    assert beside == {"middle.running_mean": 8, "middle.running_var": 8, "habits.average": 8}
    assert "norm.running_mean (12 fixed statistics)" in whole.ledger.not_charged
    assert "trunk.weight (768 frozen weights)" in whole.ledger.not_charged
    real = Fit.run_epoch

    def killed(fit):
        if fit.epoch == 2:
            raise KeyboardInterrupt
        return real(fit)

    monkeypatch.setattr(Fit, "run_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.setattr(Fit, "run_epoch", real)
    assert run(tmp_path / "cut", resume=True).ledger == whole.ledger
    again = Experiment.build(config(network={**config().network.model_dump(), "pretrained": str(tmp_path / "whole")}))
    state = bitsback.load_run(tmp_path / "whole").experiment().model.network
    assert torch.equal(again.model.network.habits.average, state.habits.average)
    assert torch.equal(again.model.network.norm.running_mean, state.norm.running_mean)
    assert not again.model.network.norm.training


def test_frozen_numbers_from_an_earlier_network_have_no_certificate(tmp_path):
    run(tmp_path / "first")
    network = {**config(by=0).network.model_dump(), "pretrained": str(tmp_path / "first")}
    run(tmp_path / "second", network=network)
    with pytest.raises(CertificateError, match=r"the frozen weights 'trunk.weight' come from .*give them a posterior"):
        bitsback.certify(tmp_path / "second", draws=1)


@pytest.mark.parametrize("codec", ["relative_entropy", "quantised"])
def test_a_model_file_holds_what_is_frozen(tmp_path, codec):
    examples, network = images(), nn.Sequential(*conv_trunk(), nn.Linear(64, C))
    network[1].eval()
    model = bayesianize(network, "laplace")
    trained(model, examples)
    before = numbers_of(network[1])
    tuning = TuningSettings(steps=2, balance_steps=2) if codec == "relative_entropy" else None
    bitsback.save(model, tmp_path / "model.bb", examples, settings=PackSettings(codec=codec, tuning=tuning), progress=False)
    found = bitsback.load(tmp_path / "model.bb")
    parts = {part.name: part.bits for part in found.parts}
    assert {parts[name] for name in ("conv2d1.weight", "conv2d1.bias")} == {36 * 32, 4 * 32}
    assert parts["batchnorm2d1.running_mean"] == 4 * 16
    kept = found.model.network[1].running_mean.sort().values  # the order of units is given back
    assert torch.equal(kept, before["running_mean"].bfloat16().float().sort().values)
    with evaluating(model), model.mean():
        assert torch.allclose(found(examples.inputs), model(examples.inputs), atol=1e-5)
    assert not model.network[1].training


def test_a_message_rests_on_what_the_receivers_factory_freezes(tmp_path):
    sender = Sender.train(config(by=0), progress=False)
    payload = bytes(range(256)) * 40
    modes, numbers = modes_of(sender.experiment.model), numbers_of(sender.experiment.model)
    sent = sender.send(payload)
    assert modes_of(sender.experiment.model) == modes
    assert same(numbers_of(sender.experiment.model), numbers)
    assert not sender.experiment.model.network.norm.training
    (tmp_path / "message").write_bytes(sent.content)
    got = receive_file(tmp_path / "message", tmp_path / "out", ["network.factory=test_frozen:partly"], progress=False)
    assert got.payload == payload
    assert (got.labels == sender.experiment.dataset.train.targets.numpy()).all()
    with pytest.raises(LayerError, match=r"training changed the buffer 'habits.average', which a message does not hold"):
        Sender.train(config(by=1), progress=False).send(payload)


def test_tuning_holds_what_is_in_eval_mode():
    experiment = Experiment.build(config())
    experiment.train(None, progress=False)
    network = experiment.model.network
    wanted = network.norm.running_var.bfloat16().float()
    moved = network.middle.running_var.clone()
    modes = modes_of(experiment.model)
    pack_experiment(
        experiment, PackSettings(codec="relative_entropy", tuning=TuningSettings(steps=1, groups=2)), progress=False
    )
    assert torch.equal(network.norm.running_var, wanted)
    assert not torch.equal(network.middle.running_var, moved)
    assert modes_of(experiment.model) == modes


def test_a_step_of_ones_own_takes_the_modes_as_they_are():
    model, examples = bayesianize(half_frozen(), FIXED), table()
    modes = modes_of(model)
    fit = start(model, LIKELIHOOD, examples, TrainingSettings(epochs=1))
    fit.step(0, examples.inputs, examples.targets)
    assert modes_of(model) == modes
