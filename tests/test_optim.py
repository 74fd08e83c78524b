"""What the optimisers of posteriors promise beyond a plain step, against the float64 oracle."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from oracle import RATES, N, Oracle, assert_close, batches, classify, doubled, errors, mlp
from torch import nn

import bitsback
from bitsback.atomic_io import write_tensors
from bitsback.errors import LayerError
from bitsback.kl import kl_each
from bitsback.model import State
from bitsback.model.pieces import PIECE
from bitsback.model.weight import COARSE
from bitsback.optim import IVON, Adam, Variational

SGD = torch.optim.SGD


def pair(network=None, prior="gaussian", *, kind=Adam, seed=1, oracle=(), posterior=None, **options):
    """A model of a network with its optimiser, and the oracle beside them."""
    network = mlp() if network is None else network
    plain = copy.deepcopy(network)
    options = {**RATES, **options}
    of_model = {key: options.pop(key) for key in ("include", "exclude", "overrides") if key in options}
    model = bitsback.bayesianize(network, prior, seed=seed, posterior=posterior, **of_model)
    optimizer = kind(model, examples=N, **options)
    return model, optimizer, Oracle(model, plain, examples=N, **{**RATES, **dict(oracle)})


def step(model, optimizer, oracle, batch, cost=classify):
    """One step of both."""
    oracle.step((model.state, lambda network: cost(network, *doubled(batch))))
    optimizer.zero_grad()
    cost(model, *batch).backward()
    optimizer.step()


# priors


def run_of(network, directory):
    """The means of an earlier run, as the prior 'checkpoint' reads them."""
    means = {f"{name}.mean": torch.randn_like(p) * 0.1 for name, p in network.named_parameters()}
    write_tensors(directory / "posterior.safetensors", means, {})
    return str(directory)


PRIORS = [
    {"kind": "gaussian", "learn": "none", "mean": 0.1},
    {"kind": "gaussian", "learn": "gradient"},
    {"kind": "gaussian", "learn": "closed_form", "mean": 0.1},
    {"kind": "gaussian", "per": "layer"},
    {"kind": "gaussian", "learn": "gradient", "per": "model"},
    {"kind": "group_gaussian", "group": "input"},
    {"kind": "group_gaussian", "group": "output", "learn": "gradient"},
    {"kind": "laplace", "learn": "none", "mean": -0.1},
    {"kind": "laplace", "per": "model"},
    {"kind": "student_t", "df": 2.5},
    {"kind": "cauchy"},
    {"kind": "logistic", "mean": 0.2},
    {"kind": "scale_mixture"},
    {"kind": "scale_mixture", "scales": [0.001, 0.1, 1.0], "weights": [0.5, 0.3, 0.2], "per": "model"},
    {"kind": "adaptive_mixture"},
    {"kind": "spike_and_slab", "learn": "none"},
    {"kind": "horseshoe", "learn": "none"},
    {"kind": "horseshoe", "learn": "gradient"},
    {"kind": "pyro", "distribution": "AsymmetricLaplace", "arguments": {"loc": 0.0, "scale": 0.3, "asymmetry": 1.5}},
    {"kind": "pyro", "distribution": "StudentT", "arguments": {"df": 3.0}, "learn": "none"},
    {"kind": "checkpoint"},
    {"kind": "checkpoint", "learn": "gradient"},
]


def test_every_kind_of_prior_is_tried():
    from bitsback.priors import registry

    assert {prior["kind"] for prior in PRIORS} == set(registry)


@pytest.mark.parametrize("posterior", ["gaussian", "point"])
@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: "-".join(str(v) for v in prior.values()))
def test_the_gradients_of_every_prior(prior, posterior, tmp_path):
    """One step of plain descent is the gradient: float64, stds from a millionth of their mean up to the mean itself."""
    network = mlp().double()
    if prior["kind"] == "checkpoint":
        prior = {**prior, "run": run_of(network, tmp_path)}
    if posterior == "point":
        prior = {**prior, "learn": "none"}
    model = bitsback.bayesianize(copy.deepcopy(network), prior, posterior=posterior, seed=1).double()
    with torch.no_grad():
        for q in model.posteriors():
            q.mean.add_(0.3 * torch.randn_like(q.mean))
            if posterior == "gaussian":
                q.set_std(
                    q.mean.abs() * torch.logspace(-6, 0, q.numel, dtype=torch.float64)[torch.randperm(q.numel)].view_as(q.mean)
                )
    model.honour_edits()
    oracle = Oracle(model, network, examples=N, lr=1.0, kind=SGD)
    optimizer = Variational(model, SGD, lr=1.0, examples=N)
    before = [p.detach().clone() for p in model.posterior.parameters()]
    start = {weight.name: weight.posterior.mean.detach().clone() for weight in model.weights}
    step(model, optimizer, oracle, doubled(batches(1)[0]))
    error = 3e-4 / N if prior["kind"] == "horseshoe" else 0.0  # of its table
    for weight in model.weights:
        q, wanted = weight.posterior, oracle.means[weight.name]
        slack = 1e-9 + error / (oracle.log_stds[weight.name].exp() if posterior == "gaussian" else start[weight.name].abs())
        assert ((q.mean - wanted).abs() <= slack).all(), weight.name
        if posterior == "gaussian":
            assert ((q.log_std - oracle.log_stds[weight.name]).abs() <= 1e-9 + error).all(), weight.name
    for found, (wanted, _) in zip(model.priors, oracle.priors, strict=True):
        for name, number in found.named_parameters():
            assert torch.allclose(number, dict(wanted.named_parameters())[name], rtol=1e-6, atol=1e-6 + 40 * error), name
    assert all(not torch.equal(p, old) for p, old in zip(model.posterior.parameters(), before, strict=True))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("share", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_widths_far_below_their_means_in_float32(share, draws):
    """d/dlog s = g s e: w - m has lost its digits, and the noise is made again; also when the draw moves on within a step."""
    network = nn.Linear(50, 20, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.randn(20, 50).sign() * (1 + torch.rand(20, 50)))
    model = bitsback.bayesianize(network, posterior={"std": share, "relative_to": "absolute"}, seed=1)
    optimizer = Variational(model, SGD, lr=0.0, log_std_lr=1 / share, examples=N, beta=0.0)
    q, slopes, wanted = model.weights[0].posterior, [torch.randn(20, 50) for _ in range(draws)], 0.0
    for number, slope in enumerate(slopes):
        if number:
            model.draw()
        wanted = wanted + slope * q.std() * model.noise(model.weights[0], model.state)
        (network.weight * slope).sum().backward()
    before = q.log_std.detach().clone()
    optimizer.step()
    error = (before - q.log_std - wanted / share).abs().max()
    assert error < (2e-5 if share < COARSE else 1e-3), float(error)


# several draws in a step


def test_several_draws_and_an_antithetic_pair_in_a_step():
    model, optimizer, oracle = pair()
    for one, two, three, four in [batches(4) for _ in range(3)]:
        costs = []

        def cost(batch, costs=costs):
            costs.append((model.state, lambda network: classify(network, *doubled(batch)) / 4))
            (classify(model, *batch) / 4).backward()

        optimizer.zero_grad()
        cost(one)
        cost(two)  # accumulation under one draw
        model.draw()
        cost(three)
        model.mirror()
        cost(four)
        optimizer.step()
        oracle.step(*costs)
    assert_close(model, oracle, 1e-6)
    assert model.draw_number == 6


def test_a_gradient_taken_inside_a_sample_counts_at_that_sample():
    model, optimizer, oracle = pair()
    for number, (one, two) in enumerate([batches(2) for _ in range(3)]):
        optimizer.zero_grad()
        with model.sample(seed=number):
            classify(model, *one).backward()
        classify(model, *two).backward()
        states = State("draw", number, -1), model.state
        optimizer.step()
        oracle.step(
            *((s, lambda network, b=b: classify(network, *doubled(b))) for s, b in zip(states, (one, two), strict=True))
        )
    assert_close(model, oracle, 1e-6)


@pytest.mark.parametrize("share", [0.1, 1e-5])
def test_draws_from_a_pool_of_noise(share):
    """Shares of the pool are made anew as the draws go on; a step looks back at the draw that it leaves."""
    network = mlp()
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, "laplace", posterior={"std": share, "relative_to": "absolute"}, seed=1)
    model.set_noise(reuse=3, seed=5)
    options = {"examples": N, "beta": 1.0 if share > 1e-3 else 1e-6, **RATES}  # next to the KL, noise so small is nothing
    optimizer, oracle = Adam(model, **options), Oracle(model, plain, **options)
    for one, two, three in [batches(3) for _ in range(4)]:
        states, optimizer_draws = [], (model.draw, model.mirror, lambda: None)
        optimizer.zero_grad()
        for batch, move in zip((one, two, three), optimizer_draws, strict=True):
            states.append(model.state)
            (classify(model, *batch) / 3).backward()
            move()
        cost = [lambda network, b=b: classify(network, *doubled(b)) / 3 for b in (one, two, three)]
        oracle.step(*zip(states, cost, strict=True))
        optimizer.step()
    assert model.state == State("draw", 5, 8)
    assert_close(model, oracle, 1e-6 if share > 1e-3 else 5e-6)  # an ulp of log std is 1e-6


@pytest.mark.parametrize("by_pieces", [True, False])
@pytest.mark.parametrize("prior", ["gaussian", {"kind": "gaussian", "mean": 0.1}, "laplace"])
def test_natural_gradients_by_the_published_rule(prior, by_pieces):
    """m <- m - lr s^2 <dF/dm>, 1 / s^2 <- (1 + r G + (r G)^2 / 2) / s^2, with G = dF / dlog s and F in nats of all examples."""
    network = mlp()
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, prior, exclude=["2.bias"], seed=1)
    optimizer = IVON(model, lr=0.2, log_std_lr=0.05, betas=(0.7, 0.99), rest_lr=0.01, examples=N, by_pieces=by_pieces)
    oracle = Oracle(model, plain, examples=N, lr=0.0, kind=SGD)
    rest = [*oracle.plain.values(), *oracle.learned]
    adam, averages = torch.optim.Adam(rest, lr=0.01, betas=(0.7, 0.99)), dict.fromkeys(oracle.means, 0.0)
    for number, batch in enumerate(batches(4), 1):
        step(model, optimizer, oracle, batch)
        adam.step()
        with torch.no_grad():
            for name, mean in oracle.means.items():
                log_std = oracle.log_stds[name]
                averages[name] = 0.7 * averages[name] + 0.3 * mean.grad
                std = log_std.exp()
                mean -= std * (0.2 * N * std * averages[name] / (1 - 0.7**number)).clamp(-10, 10)
                change = (0.05 * N * log_std.grad).clamp(-1, 1)
                log_std -= 0.5 * (1 + change + change.square() / 2).log()
        assert_close(model, oracle, 1e-6)


# gradients that are not there


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(5, 3), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("by_pieces", [True, False])
@pytest.mark.parametrize("prior", ["gaussian", "laplace"])
def test_on_unused_parameters_the_kl_acts_alone(prior, by_pieces):
    model, optimizer, oracle = pair(Unused(), prior, by_pieces=by_pieces)
    before = model.network.unused.posterior["weight"].mean.detach().clone()
    for batch in batches():
        step(model, optimizer, oracle, batch)
        assert model.network.unused.weight.grad is None
    assert_close(model, oracle, 1e-6)
    assert not torch.equal(model.network.unused.posterior["weight"].mean, before)


@pytest.mark.parametrize("kind", [Adam, IVON, lambda model, **options: Variational(model, SGD, **options)])
def test_without_any_gradient_nothing_moves(kind):
    model = bitsback.bayesianize(mlp(), "laplace")
    optimizer = kind(model, lr=0.1, examples=N)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "prior", [{"kind": "gaussian"}, {"kind": "gaussian", "per": "model"}, {"kind": "laplace", "per": "model"}]
)
def test_what_was_frozen_since_is_left_alone_and_still_drawn(prior):
    network = mlp()
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, prior, seed=1)
    optimizer = Adam(model, examples=N, **RATES)
    frozen = model.weights[0]
    frozen.parameter.requires_grad_(False)
    oracle = Oracle(model, plain, examples=N, **RATES)
    mean, log_std, value = (t.detach().clone() for t in (*frozen.posterior.parameters(), frozen.parameter))
    for batch in batches():
        step(model, optimizer, oracle, batch)
    assert_close(model, oracle, 1e-6)
    assert torch.equal(frozen.posterior.mean, mean)
    assert torch.equal(frozen.posterior.log_std, log_std)
    assert not torch.equal(frozen.parameter, value)
    frozen.parameter.requires_grad_(True)
    optimizer.zero_grad()
    classify(model, *batches(1)[0]).backward()
    optimizer.step()
    assert not torch.equal(frozen.posterior.mean, mean)


# rates, groups, closures


def test_schedulers_move_both_rates():
    model, optimizer, oracle = pair()
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (optimizer, oracle.optimizer)]
    for batch in batches():
        step(model, optimizer, oracle, batch)
        for schedule in schedules:
            schedule.step()
    assert_close(model, oracle, 1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == [RATES["lr"] / 8, RATES["log_std_lr"] / 8]


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_groups_with_rates_of_their_own_and_weights_without_posterior(kind):
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, exclude=["2"], seed=1)
    groups = [
        {"params": network[0].parameters(), "lr": 3e-2, "log_std_lr": 1e-1},
        {"params": network[2].parameters(), "lr": 2e-2},
        {"params": list(network[4].named_parameters())},
    ]
    options = {"groups": groups, "examples": N, "lr": 5e-3, "log_std_lr": 4e-2}
    optimizer = Adam(model, **options) if kind == "adam" else Variational(model, SGD, momentum=0.9, **options)
    rates = {"0": (3e-2, 1e-1), "2": (2e-2, None), "4": (5e-3, 4e-2)}
    inner = {"kind": SGD, "momentum": 0.9} if kind == "sgd" else {}
    oracle = Oracle(model, plain, examples=N, rates=lambda name: rates[name[0]], **inner)
    before = [p.detach().clone() for p in network[2].parameters()]
    for batch in batches():
        step(model, optimizer, oracle, batch)
    assert_close(model, oracle, 1e-6)
    assert all(not torch.equal(p, old) for p, old in zip(network[2].parameters(), before, strict=True))
    assert set(oracle.plain) == {"2.weight", "2.bias"}


def test_a_framework_may_clear_the_gradients_of_the_network_alone():
    """What a prior learns has a gradient of the KL alone, which is gone after the step: it would add up from step to step."""
    model, optimizer, oracle = pair(prior="laplace")
    for batch in batches():
        oracle.step((model.state, lambda network, batch=batch: classify(network, *doubled(batch))))
        classify(model.network, *batch).backward()
        optimizer.step()
        model.network.zero_grad()
    assert_close(model, oracle, 1e-6)


def test_what_priors_learn_comes_with_the_weights_of_a_group():
    network = mlp()
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, "laplace", seed=1)
    groups = [{"params": network[0].parameters()}, {"params": network[2].parameters()}]
    optimizer = Adam(model, groups=groups, examples=N, **RATES)
    oracle = Oracle(model, plain, examples=N, **RATES)
    before = [float(prior.log_scale.detach()) for prior in model.priors]
    for batch in batches():
        step(model, optimizer, oracle, batch)
    assert_close(model, oracle, 1e-6)
    assert all(float(prior.log_scale.detach()) != old for prior, old in zip(model.priors, before, strict=True))


def test_a_group_may_come_later():
    network = mlp()
    model = bitsback.bayesianize(network, seed=1)
    optimizer = Adam(model, groups=[{"params": network[0].parameters()}], examples=N, **RATES)
    optimizer.add_param_group({"params": network[2].parameters(), "lr": 0.0, "log_std_lr": 1e-1})
    before = [p.detach().clone() for p in model.weights[2].posterior.parameters()]
    classify(model, *batches(1)[0]).backward()
    optimizer.step()
    assert torch.equal(model.weights[2].posterior.mean, before[0])
    assert not torch.equal(model.weights[2].posterior.log_std, before[1])


def test_a_rate_of_zero_for_stds_is_zero():
    model = bitsback.bayesianize(mlp())
    optimizer = Adam(model, lr=1e-2, log_std_lr=0.0, examples=N)
    before = [q.log_std.detach().clone() for q in model.posteriors()]
    classify(model, *batches(1)[0]).backward()
    optimizer.step()
    assert all(torch.equal(q.log_std, old) for q, old in zip(model.posteriors(), before, strict=True))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay is a Gaussian prior"),
        ({"moment": 0.1}, "knows no 'moment'"),
    ],
)
def test_unknown_settings_of_groups_are_refused(group, message):
    model = bitsback.bayesianize(mlp())
    with pytest.raises(LayerError, match=message):
        Adam(model, examples=N, groups=[{"params": model.network.parameters(), **group}])
    with pytest.raises(LayerError, match=message):
        Adam(model, examples=N, **group)
    optimizer = Adam(model, examples=N, groups=[{"params": model.network[0].parameters()}])
    with pytest.raises(LayerError, match=message):
        optimizer.add_param_group({"params": model.network[2].parameters(), **group})


def test_the_means_themselves_are_no_parameters_of_a_group():
    model = bitsback.bayesianize(mlp())
    with pytest.raises(LayerError, match="their means and log stds come with them"):
        Adam(model, examples=N, groups=[{"params": model.posterior.parameters()}])
    with pytest.raises(LayerError, match="at least 1"):
        Adam(model, examples=0)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_closures(kind):
    model, optimizer, oracle = pair()
    if kind == "sgd":
        optimizer, oracle = Variational(model, SGD, examples=N, **RATES), None
        twin = copy.deepcopy(model)
        other = Variational(twin, SGD, examples=N, **RATES)
    for batch in batches():

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = classify(model, *batch)
            loss.backward()
            return loss

        if oracle is not None:
            wanted = oracle.step((model.state, lambda network, batch=batch: classify(network, *doubled(batch))))
        else:
            other.zero_grad()
            wanted = classify(twin, *batch)
            wanted.backward()
            other.step()
        assert abs(optimizer.step(closure).item() - wanted.item()) < 1e-6
    if oracle is not None:
        assert_close(model, oracle, 1e-6)
    else:
        assert all(torch.equal(a, b) for a, b in zip(model.posterior.parameters(), twin.posterior.parameters(), strict=True))


def test_parameters_of_a_likelihood_and_the_weight_of_the_kl():
    network, log_std = mlp(), nn.Parameter(torch.zeros(3))
    plain, twin = copy.deepcopy(network), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model = bitsback.bayesianize(network, "cauchy", seed=1)
    optimizer = Adam(model, also=[log_std], beta=0.3, examples=N, **RATES)
    oracle = Oracle(model, plain, beta=0.3, examples=N, **RATES)
    oracle.optimizer.add_param_group({"params": [twin], "lr": RATES["lr"]})

    def gaussian(call, x, y, width):
        return (0.5 * ((call(x) - F.one_hot(y, 3)) / width.exp()).square() + width).sum(1).mean()

    for x, y in batches():
        oracle.step((model.state, lambda network, x=x, y=y: gaussian(network, x.double(), y, twin)))
        optimizer.zero_grad()
        gaussian(model, x, y, log_std).backward()
        optimizer.step()
    assert_close(model, oracle, 1e-6)
    assert torch.allclose(log_std.double(), twin, atol=1e-6)
    assert float(log_std.detach().abs().min()) > 1e-3


# files


def trainable(seed, kind, prior):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))
    model = bitsback.bayesianize(network, prior, exclude=["3"], seed=seed)
    return model, kind(model)


KINDS = {
    "Adam": lambda model: Adam(model, examples=N, prior_rate=0.3, **RATES),
    "Adam, next to no KL": lambda model: Adam(model, examples=N, beta=1e-9, **RATES),
    "Adam, clipped": lambda model: Adam(model, examples=N, max_grad_norm=0.1, **RATES),
    "IVON": lambda model: IVON(model, examples=N, prior_rate=0.3),
    "SGD": lambda model: Variational(model, SGD, examples=N, momentum=0.9, prior_rate=0.3, **RATES),
    "AdamW": lambda model: Variational(model, torch.optim.AdamW, examples=N, amsgrad=True, **RATES),
}


@pytest.mark.parametrize("share", [0.1, 1e-5])
@pytest.mark.parametrize("prior", ["gaussian", "laplace", "scale_mixture"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_bit_for_bit_from_the_states_of_network_and_optimiser(kind, prior, share):
    data = batches(9)

    def train(model, optimizer, data):
        for batch in data:
            optimizer.zero_grad()
            classify(model, *batch).backward()
            optimizer.step()

    model, optimizer = trainable(0, KINDS[kind], prior)
    for q in model.posteriors():
        q.set_std(share)
    train(model, optimizer, data[:5])
    file = io.BytesIO()
    torch.save([model.network.state_dict(), optimizer.state_dict()], file)
    train(model, optimizer, data[5:])
    other, resumed = trainable(7, KINDS[kind], prior)
    file.seek(0)
    network, state = torch.load(file, weights_only=True)
    other.network.load_state_dict(network)
    resumed.load_state_dict(state)
    train(other, resumed, data[5:])
    wanted = model.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_resumed_training_may_begin_with_another_forward():
    """The network's state alone is an edit; the optimiser's then brings the posterior."""
    model, optimizer = trainable(0, KINDS["Adam"], "gaussian")
    classify(model, *batches(1)[0]).backward()
    optimizer.step()
    other, resumed = trainable(7, KINDS["Adam"], "gaussian")
    other.network.load_state_dict(model.network.state_dict())
    other(torch.randn(3, 5))
    resumed.load_state_dict(optimizer.state_dict())
    for a, b in zip([*model.parameters()], [*other.parameters()], strict=True):
        assert torch.equal(a, b)


# ways through a step


@pytest.mark.parametrize("prior", ["gaussian", "laplace", "cauchy", {"kind": "group_gaussian"}])
def test_piece_by_piece_is_one_thing_after_the_other(prior):
    one, two = (pair(prior=prior, by_pieces=by_pieces) for by_pieces in (True, False))
    two[0].load_state_dict(one[0].state_dict())
    for batch in batches():
        for model, optimizer, _ in (one, two):
            optimizer.zero_grad()
            classify(model, *batch).backward()
            optimizer.step()
    for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("by_pieces", [True, False])
@pytest.mark.parametrize("prior", ["gaussian", "laplace", "student_t", {"kind": "group_gaussian", "learn": "gradient"}])
def test_tensors_of_several_pieces(prior, by_pieces):
    network = nn.Sequential(nn.Linear(301, 900), nn.Tanh(), nn.Linear(900, 3))
    assert network[0].weight.numel() > 2 * PIECE
    assert network[0].weight.numel() % PIECE
    model, optimizer, oracle = pair(network, prior, by_pieces=by_pieces, eps=1e-4)
    oracle = Oracle(model, oracle.network, examples=N, eps=1e-4, **RATES)
    for batch in batches(inputs=301, count=2):
        step(model, optimizer, oracle, batch)
    assert_close(model, oracle, 2e-6)


@pytest.mark.parametrize("by_pieces", [True, False])
@pytest.mark.parametrize("share", [0.03, 1e-6])
@pytest.mark.parametrize("laid_out", ["before", "network", "model", "lay_out"])
def test_filters_with_their_channels_last(laid_out, share, by_pieces):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    if laid_out == "before":
        network.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, "laplace", posterior={"std": share, "relative_to": "absolute"}, seed=1)
    optimizer = Adam(model, examples=N, by_pieces=by_pieces, **RATES)
    if laid_out in ("network", "model"):
        getattr(model, laid_out, model).to(memory_format=torch.channels_last)
    if laid_out == "lay_out":
        model.lay_out(channels_last=True)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    oracle = Oracle(model, plain, examples=N, **RATES)
    data = [(torch.randn(12, 3, 6, 6), torch.randint(3, (12,))) for _ in range(3)]
    for batch in data:
        step(model, optimizer, oracle, batch)
    assert_close(model, oracle, 1e-6 if share > 1e-3 else 5e-6)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("prior", ["gaussian", {"kind": "laplace"}, "horseshoe"])
def test_clipping_sees_the_kl(kind, prior):
    network = mlp()
    plain = copy.deepcopy(network)
    model = bitsback.bayesianize(network, prior, exclude=["0.bias"], seed=1)
    options = {"max_grad_norm": 0.02, "examples": N, **RATES}
    optimizer = Adam(model, **options) if kind == "adam" else Variational(model, SGD, **options)
    oracle = Oracle(model, plain, **options, kind=SGD if kind == "sgd" else torch.optim.Adam)
    for batch in batches():
        step(model, optimizer, oracle, batch)
        assert float(optimizer.grad_norm) == pytest.approx(float(oracle.grad_norm), rel=1e-4)
        assert float(optimizer.grad_norm) > 0.02
    assert_close(model, oracle, 1e-5 if prior == "horseshoe" else 2e-6)


@pytest.mark.parametrize("prior", ["gaussian", "laplace", {"kind": "group_gaussian"}])
def test_weights_of_the_kl_by_element(prior):
    model = bitsback.bayesianize(mlp().double(), prior, seed=1)
    shares = {weight.index: torch.rand_like(weight.posterior.mean) for weight in model.weights}
    optimizer = Variational(model, SGD, lr=1.0, examples=N, prior_rate=0.0)
    optimizer.kl_weights = shares
    before = [p.detach().clone() for p in model.posterior.parameters()]
    wanted = []
    for weight in model.weights:
        q = weight.posterior.requires_grad_(True)
        wanted += torch.autograd.grad((kl_each(q, weight.prior) * shares[weight.index]).sum() / N, [*q.parameters()])
        q.requires_grad_(False)
    (sum(p.sum() for p in model.network.parameters()) * 0).backward()
    optimizer.step()
    for old, new, slope in zip(before, model.posterior.parameters(), wanted, strict=True):
        assert torch.allclose(old - new, slope, rtol=1e-6, atol=1e-9)


def test_weights_without_posterior_may_have_sparse_gradients():
    network = nn.Sequential(nn.Embedding(9, 5, sparse=True), nn.Flatten(), nn.Linear(10, 3))
    data = [(torch.randint(9, (12, 2)), torch.randint(3, (12,))) for _ in range(3)]
    for clip in (None, 0.05):
        plain = copy.deepcopy(network)
        plain[0].sparse = False
        own = copy.deepcopy(network)
        model = bitsback.bayesianize(own, exclude=["0"], seed=1)
        optimizer = Adam(model, max_grad_norm=clip, examples=N, **RATES)
        oracle = Oracle(model, plain, max_grad_norm=clip, examples=N, **RATES)
        for batch in data:
            step(model, optimizer, oracle, batch)
        assert_close(model, oracle, 1e-6)


def test_decoupled_decay_leaves_widths_alone():
    """AdamW pulls means by its default; a log std that is pulled to zero is a std that is pulled to one."""
    model, optimizer, oracle = pair(
        kind=lambda model, **options: Variational(model, torch.optim.AdamW, **options),
        oracle={"kind": torch.optim.AdamW, "of_log_std": {"weight_decay": 0.0}},
    )
    for batch in batches():
        step(model, optimizer, oracle, batch)
    assert_close(model, oracle, 1e-6)
    assert errors(model, oracle)["std"] < 1e-6
