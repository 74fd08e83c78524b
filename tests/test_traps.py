"""The traps that were found while the engine was designed: each test keeps one shut.

Comments say what the error was where a trap stood open.
"""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from oracle import RATES, N, Oracle, assert_close, batches, classify, doubled, mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

import bitsback
from bitsback.data import Examples
from bitsback.errors import LayerError
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import State
from bitsback.optim import IVON, Adam, Variational

SGD = torch.optim.SGD
ANOTHER = "hold another draw than in the forward"


def made(prior="gaussian", network=None, **options):
    return bitsback.bayesianize(mlp() if network is None else network, prior, seed=1, **options)


def held(model):
    """What the weights hold."""
    return {weight.name: weight.parameter.detach().clone() for weight in model.weights}


def means(model):
    return {weight.name: weight.posterior.mean.detach().clone() for weight in model.weights}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def wanted(model, state=None):
    """What a state says that the weights hold."""
    state = state or model.state
    values = {weight.name: model.value(weight, state) for weight in model.weights}
    return {w.name: w.posterior.mean.detach() if values[w.name] is None else values[w.name] for w in model.weights}


def trained(model, optimizer, data):
    for batch in data:
        optimizer.zero_grad()
        classify(model, *batch).backward()
        optimizer.step()


def ledger(model):
    return bitsback.take_ledger(model, CategoricalLikelihood(3), Examples(torch.randn(9, 5), torch.randint(3, (9,))), samples=2)


# the traps


@pytest.mark.parametrize("saved_in", ["train", "eval"])
@pytest.mark.parametrize("loaded_in", ["train", "eval"])
def test_a_checkpoint_with_its_posterior_is_no_edit(saved_in, loaded_in):
    """Taken for an edit, a loaded draw becomes the mean: off by a whole std times noise."""
    model = made()
    trained(model, Adam(model, examples=N, **RATES), batches())
    getattr(model, saved_in)()
    other = bitsback.bayesianize(mlp(), seed=9)
    getattr(other, loaded_in)()
    other.load_state_dict(model.state_dict())
    other.honour_edits(everywhere=True)
    assert same(means(other), means(model))
    getattr(model, loaded_in)()
    assert same(held(other), held(model))
    assert other.state == model.state
    other.train()
    model.train()
    other.draw()
    model.draw()
    assert same(held(other), held(model))


def test_a_plain_checkpoint_is_the_new_mean():
    model, plain = made(), mlp()
    stds = [q.log_std.detach().clone() for q in model.posteriors()]
    model.network.load_state_dict(plain.state_dict())
    model.draw()
    assert same(means(model), dict(plain.named_parameters()))
    assert all(torch.equal(q.log_std, old) for q, old in zip(model.posteriors(), stds, strict=True))


@pytest.mark.parametrize("through", ["clamp_", "data", "copy_"])
def test_an_edit_that_changes_nothing_moves_nothing(through):
    """Taken as a whole, the tensor with its noise becomes the mean: after 100 draws it had moved by 10 std."""
    model = made()
    before = means(model)
    for _ in range(100):
        with torch.no_grad():
            for weight in model.network.parameters():
                if through == "clamp_":
                    weight.clamp_(-10, 10)
                elif through == "data":
                    weight.data = weight.data.clamp(-10, 10)
                else:
                    weight.copy_(weight * 1.0)
        model.draw()
    assert same(means(model), before)


def test_an_edit_of_some_elements_is_of_those_alone():
    model = made()
    before = means(model)
    with torch.no_grad():
        model.network[0].weight[2, 1:3] = 7.0
    model.draw()
    after = means(model)
    before["0.weight"][2, 1:3] = 7.0
    assert same(after, before)


@pytest.mark.parametrize("how", ["sample", "draw", "mirror", "step", "ledger"])
def test_draws_in_one_autocast_region_differ(how):
    """With autocast's casts kept, three draws of a ledger in one region were one."""
    model, (x, y) = made(), batches(1)[0]
    optimizer, outputs = Adam(model, lr=0.0, log_std_lr=0.0, examples=N, prior_rate=0.0), []
    with torch.autocast("cpu", torch.bfloat16):
        for number in range(3):
            if how == "sample":
                with model.sample():
                    outputs.append(model(x))
            else:
                outputs.append(model(x))
            if how == "step":
                optimizer.zero_grad()
                F.cross_entropy(outputs[-1], y).backward()
                optimizer.step()
            elif how == "draw":
                model.draw()
            elif how == "mirror":
                model.mirror() if number % 2 == 0 else model.draw()
        if how == "ledger":
            bits = bitsback.evaluate(model, CategoricalLikelihood(3), Examples(x, y), samples=3).draws_bits
            assert len(set(bits)) == 3
            return
        assert model.network[0](x).dtype == torch.bfloat16
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


@pytest.mark.parametrize("clip", ["ours", "foreign"])
def test_clipping_keeps_the_exact_width(clip):
    """200 copies of N (w - 1)^2 / 2 under N(0, 1): the exact std is 1 / sqrt(199 + 1) = .0707; clipped elsewhere it was .453."""
    network = nn.Linear(200, 1, bias=False)
    prior = {"kind": "gaussian", "scale": 1.0, "learn": "none"}
    model = bitsback.bayesianize(network, prior, posterior={"std": 0.2, "relative_to": "absolute"}, seed=1)
    optimizer = Adam(model, lr=0.02, log_std_lr=0.02, examples=199, max_grad_norm=0.05 if clip == "ours" else None)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=1500)

    def step():
        optimizer.zero_grad()
        (0.5 * (network.weight - 1).square()).sum().backward()
        if clip == "foreign":
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.05)
        optimizer.step()
        schedule.step()

    if clip == "foreign":
        step()
        step()
        with pytest.warns(UserWarning, match=r"something clips them before the step.*max_grad_norm=0.05"):
            step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        for _ in range(1500):
            step()
    std = float(model.weights[0].posterior.std().square().mean().sqrt())
    if clip == "ours":
        assert std == pytest.approx(200**-0.5, rel=0.03)
        assert float(optimizer.grad_norm) > 0.1
        assert float(model.weights[0].posterior.mean.mean()) == pytest.approx(199 / 200, abs=0.01)
    else:
        assert std > 0.2


def test_modes_that_a_framework_assigns():
    """Lightning's sanity check sets ``training`` of every module: the draw has to be back before the first step."""
    model = made(network=nn.Sequential(nn.Linear(5, 7), nn.Dropout(), nn.Linear(7, 3)))
    draw, modes = held(model), {name: module.training for name, module in model.named_modules()}
    for module in model.modules():
        module.training = False
    assert model.holds == "mean"
    assert same(held(model), means(model))
    assert not model.network[1].training
    for name, module in model.named_modules():
        module.training = modes[name]
    assert model.holds == "draw"
    assert same(held(model), draw)
    model.eval()
    model.eval()
    assert same(held(model), means(model))
    model.train()
    assert same(held(model), draw)
    assert model.draw_number == 0


def test_a_step_while_the_means_are_held_raises():
    model = made()
    optimizer = Adam(model, examples=N)
    optimizer.eval()
    classify(model, *batches(1)[0]).backward()
    with pytest.raises(LayerError, match=r"gradients taken there teach no width: call model.train"):
        optimizer.step()
    optimizer.train()
    assert model.holds == "draw"


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.reentrant = nn.Linear(5, 7), nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 3)), reentrant

    def forward(self, x):
        return checkpoint(self.second, torch.tanh(self.first(x)), use_reentrant=self.reentrant)


MOVES = {
    "draw": lambda model: model.draw(),
    "mirror": lambda model: model.mirror(),
    "eval": lambda model: model.eval(),
    "means and back, another draw": lambda model: (model.eval(), model.draw(), model.train()),
    "loading": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict())),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(
    "network", [mlp, lambda: Checkpointed(True), lambda: Checkpointed(False)], ids=["plain", "True", "False"]
)
def test_a_draw_between_forward_and_backward_raises(network, move):
    """Checkpointing recomputes with the other draw and does not notice: gradients off by .13 to .40, without a word."""
    model = made(network=network())
    loss = classify(model, *batches(1)[0])
    MOVES[move](model)
    with pytest.raises(LayerError, match=ANOTHER):
        loss.backward()


@pytest.mark.parametrize(
    "network", [mlp, lambda: Checkpointed(True), lambda: Checkpointed(False)], ids=["plain", "True", "False"]
)
def test_a_backward_after_the_sample_of_its_forward_raises(network):
    """It was taken at the other draw: wrong by .80."""
    model = made(network=network())
    for context in (model.sample, model.mean, lambda: model.sample(seed=3)):
        with context():
            loss = classify(model, *batches(1)[0])
        with pytest.raises(LayerError, match=ANOTHER):
            loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_very_draw_of_the_forward_is_back_after_a_sample(reentrant):
    model, (x, y) = made(network=Checkpointed(reentrant)), batches(1)[0]
    classify(model, x, y).backward()
    gradients = [p.grad.clone() for p in model.network.parameters()]
    model.zero_grad()
    loss = classify(model, x, y)
    with model.sample():
        model(torch.randn(2, 5))
    loss.backward()
    assert all(torch.equal(p.grad, old) for p, old in zip(model.network.parameters(), gradients, strict=True))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("share", [0.1, 1e-2, 1e-3])
def test_weights_in_bfloat16(share, draws):
    """With w - m of such weights, the gradient of log std was wrong by .09 at std / |mean| = .01."""
    network = nn.Linear(50, 20, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.randn(20, 50).sign() * (1 + torch.rand(20, 50)))
    model = bitsback.bayesianize(network, posterior={"std": share, "relative_to": "absolute"}, seed=1)
    optimizer = Variational(model, SGD, lr=0.0, log_std_lr=1 / share, examples=N, beta=0.0)
    network.bfloat16()
    weight = model.weights[0]
    q, expected = weight.posterior, 0.0
    assert (q.mean.dtype, q.log_std.dtype) == (torch.float32, torch.float32)
    before = q.mean.detach().clone()
    for number in range(draws):
        if number:
            model.draw()
        slope = torch.randint(-8, 8, (20, 50)) / 8  # exact in bfloat16
        expected = expected + slope * q.std() * model.noise(weight, model.state)
        (network.weight * slope.bfloat16()).sum().backward()
    log_std = q.log_std.detach().clone()
    optimizer.step()
    assert (log_std - q.log_std - expected.detach() / share).abs().max() < 2e-5
    assert torch.equal(q.mean, before)
    assert network.weight.dtype == torch.bfloat16
    assert (network.weight.float() - q.mean).abs().max() < 0.02 + 5 * float(q.std().detach().max())


def test_bfloat16_rounding_is_no_edit():
    model = made()
    before = means(model)
    model.network.bfloat16()
    for _ in range(3):
        model.draw()
        model.honour_edits(everywhere=True)
    model.bfloat16()
    model.draw()
    model.honour_edits(everywhere=True)
    assert same(means(model), before)
    assert all(p.dtype == torch.float32 for p in model.posterior.parameters())


CLEARING = {
    "optimizer": lambda model, optimizer: optimizer.zero_grad(),
    "optimizer, in place": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "model": lambda model, optimizer: model.zero_grad(),
    "network": lambda model, optimizer: model.network.zero_grad(),
}


@pytest.mark.parametrize("clearing", CLEARING)
def test_after_a_skipped_step_nothing_is_left(clearing):
    """A scaler skips a step whose gradients overflow; what earlier draws of it left for the widths must go with them."""
    network = mlp()
    plain = copy.deepcopy(network)
    model = made("laplace", network)
    optimizer, oracle = Adam(model, examples=N, **RATES), Oracle(model, plain, examples=N, **RATES)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=100)
    for number, (one, two) in enumerate([batches(2) for _ in range(4)]):
        states, costs = [], []
        for batch in (one, two):
            if states:
                model.draw()
            states.append(model.state)
            costs.append(lambda network, batch=batch: classify(network, *doubled(batch)) / 2)
            scaler.scale(classify(model, *batch) / 2 * (float("inf") if number == 1 and len(states) == 2 else 1.0)).backward()
        if number != 1:
            oracle.step(*zip(states, costs, strict=True))
        before = model.draw_number
        scaler.step(optimizer)
        scaler.update()
        assert model.draw_number == before + (number != 1)
        CLEARING[clearing](model, optimizer)
        if clearing == "network":
            model.draw()
    assert scaler.get_scale() == 2.0**7
    assert_close(model, oracle, 1e-6)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_two_optimisers_that_own_weights_of_their_own(kind):
    network = mlp()
    plain = copy.deepcopy(network)
    model = made("laplace", network)

    def build(layer):
        groups = [{"params": layer.parameters()}]
        if kind == "adam":
            return Adam(model, groups=groups, examples=N, **RATES)
        return Variational(model, SGD, groups=groups, examples=N, **RATES)

    optimizers = [build(network[0]), build(network[2])]
    oracle = Oracle(model, plain, examples=N, kind=torch.optim.Adam if kind == "adam" else SGD, **RATES)
    for batch in batches():
        oracle.step((model.state, lambda network, batch=batch: classify(network, *doubled(batch))))
        classify(model, *batch).backward()
        for optimizer in optimizers:
            optimizer.step()  # the second finds another draw than its gradient was taken at
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert_close(model, oracle, 1e-6)
    assert model.draw_number == 6


def test_two_optimisers_that_own_the_same_weights_are_refused():
    """The second would take the gradient for one at the draw that the first has just made."""
    model = made()
    first, second = Adam(model, examples=N), IVON(model, examples=N)
    classify(model, *batches(1)[0]).backward()
    first.step()
    before = copy.deepcopy(model.state_dict())
    for optimizer in (second, first):
        with pytest.raises(LayerError, match=r"gradient of '0.weight' was used by a step before.*groups="):
            optimizer.step()
    assert same(before, model.state_dict())
    second.zero_grad()
    trained(model, second, batches())  # one after the other they may
    trained(model, first, batches())


# what is shown, and when (rule 2)


def test_model_and_network_show_what_the_weights_hold():
    model, x = made(), torch.randn(4, 5)
    assert torch.equal(model(x), model.network(x))
    assert torch.equal(model(x), model(x))
    before = model(x)
    model.draw()
    assert not torch.equal(model(x), before)
    assert torch.equal(model(x), model.network(x))
    model.network.eval()  # reaches nobody
    assert model.holds == "draw"
    assert model.training
    drawn = model(x)
    model.eval()
    plain = mlp()
    plain.load_state_dict(means(model))
    assert torch.equal(model(x), plain(x))
    model.network.train()
    assert model.holds == "mean"
    model.train()
    assert torch.equal(model(x), drawn)


def test_contexts_put_back_what_was_held_also_after_errors():
    model = made()
    draw = held(model)

    def fails(context):
        with pytest.raises(ValueError, match="inside"), context:
            raise ValueError("inside")

    fails(model.sample())
    assert same(held(model), draw)
    fails(model.mean())
    assert same(held(model), draw)
    fails(model.holding({name: torch.zeros_like(value) for name, value in draw.items()}))
    assert same(held(model), draw)
    assert (model.holds, model.draw_number) == ("draw", 0)
    model.eval()
    fails(model.sample())
    assert same(held(model), means(model))


def test_contexts_nest():
    model = made()
    draw = held(model)
    with model.sample():
        sample = held(model)
        assert not same(sample, draw)
        with model.mean():
            assert same(held(model), means(model))
            with model.sample(seed=5):
                fifth = held(model)
                assert not same(fifth, sample)
            assert same(held(model), means(model))
        assert same(held(model), sample)
        with model.sample():
            assert not same(held(model), sample)
        assert same(held(model), sample)
    assert same(held(model), draw)
    model.eval()
    with model.sample(seed=5):
        assert same(held(model), fifth)
    assert same(held(model), means(model))


def test_a_mode_that_changes_inside_a_context_counts_after_it():
    """Eval mode for dropout's sake must not turn a sample into the means."""
    model = made()
    draw = held(model)
    with model.sample(seed=5):
        sample = held(model)
        model.eval()
        assert same(held(model), sample)
        with model.mean():
            model.train()
            model.eval()
        assert same(held(model), sample)
    assert same(held(model), means(model))
    with model.mean():
        model.train()
        assert same(held(model), means(model))
    assert same(held(model), draw)


def test_draws_inside_a_sample_are_undone_with_it():
    model = made()
    draw = held(model)
    with model.sample():
        model.draw()
    assert same(held(model), draw)
    assert model.draw_number == 0


def test_sampling_and_evaluation_move_no_training_draw():
    data = batches(4)
    models = [bitsback.bayesianize(copy.deepcopy(network), seed=3) for network in [mlp()] * 2]
    optimizers = [Adam(model, examples=N, **RATES) for model in models]
    x, y = data[0]
    for batch in data:
        for model, optimizer in zip(models, optimizers, strict=True):
            trained(model, optimizer, [batch])
        model = models[1]
        draw, state = held(model), model.state
        with model.sample():
            model(x)
        model.eval()
        with model.sample(seed=1):
            model(x)
        bitsback.evaluate(model, CategoricalLikelihood(3), Examples(x, y), samples=3)
        model.train()
        bitsback.evaluate(model, CategoricalLikelihood(3), Examples(x, y), samples=0)
        model.kl_bits()
        assert same(held(model), draw)
        assert model.state == state
    assert same(models[0].network.state_dict(), models[1].network.state_dict())
    assert same(models[0].posterior.state_dict(), models[1].posterior.state_dict())


def test_samples_and_their_count_are_saved():
    model = made()
    with model.sample():
        first = held(model)
    twin = bitsback.bayesianize(mlp())
    twin.load_state_dict(model.state_dict())
    with model.sample(), twin.sample():
        assert same(held(model), held(twin))
        assert not same(held(model), first)


def test_draws_leave_the_generator_of_torch_alone():
    network = mlp()
    torch.manual_seed(0)
    wanted_number = torch.rand(())
    torch.manual_seed(0)
    model = bitsback.bayesianize(network, seed=1)
    optimizer = Adam(model, examples=N)
    x, y = torch.ones(4, 5), torch.zeros(4, dtype=torch.long)
    with model.sample():
        classify(model, x, y).backward()
    model.draw()
    model.mirror()
    optimizer.step()
    model.eval()
    bitsback.evaluate(model, CategoricalLikelihood(3), Examples(x, y), samples=2)
    assert torch.rand(()) == wanted_number


def test_the_seed_of_torch_governs_the_draws():
    network, seen = mlp(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seen.append(held(bitsback.bayesianize(copy.deepcopy(network))))
    assert same(seen[0], seen[1])
    assert not same(seen[0], seen[2])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.out = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3))

    def forward(self, x):
        return self.out(self.norm(x))


def test_samples_leave_buffers_as_they_were():
    model, x = made(network=Normed()), torch.randn(12, 5) + 3
    model(x)
    before = {name: buffer.clone() for name, buffer in model.network.named_buffers()}
    with model.sample():
        model(x)
    with pytest.raises(RuntimeError, match="shapes"), model.sample():
        model.network.out(model.network.norm(x)[:, :3])
    assert same(before, dict(model.network.named_buffers()))
    assert int(model.network.norm.num_batches_tracked) == 1
    model(x)
    assert int(model.network.norm.num_batches_tracked) == 2


# edits (rule 8)

EDITS = {
    "copy_": lambda weight: weight.copy_(torch.full_like(weight, 0.25)),
    "init": lambda weight: nn.init.constant_(weight, 0.25),
    "data": lambda weight: weight.data.copy_(torch.full_like(weight, 0.25)),
    "other data": lambda weight: setattr(weight, "data", torch.full_like(weight, 0.25)),
    "numpy": lambda weight: weight.detach().numpy().fill(0.25),
}
LOOKS = {
    "ledger": ledger,
    "state_dict": lambda model: model.state_dict(),
    "sample": lambda model: model.sample().__enter__(),
    "mean": lambda model: model.mean().__enter__(),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("posterior", ["gaussian", "point"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_edits_are_found(edit, look, posterior, mode):
    """A write into a weight was lost, or put the noise of the draw into all means."""
    model = made({"kind": "gaussian", "learn": "none"}, posterior=posterior)
    getattr(model, mode)()
    before = means(model)
    with torch.no_grad():
        EDITS[edit](model.network[0].weight)
    LOOKS[look](model)
    before["0.weight"].fill_(0.25)
    if posterior == "point" and look == "ledger":  # which rounds points to their grid
        assert (model.weights[0].posterior.mean - 0.25).abs().max() <= model.grid_step() / 2
        return
    assert same(means(model), before)


@pytest.mark.parametrize("edit", ["copy_", "init"])
@pytest.mark.parametrize("look", ["draw", "forward", "step", "mirror", "eval"])
def test_edits_that_move_a_version_are_found_at_once(edit, look):
    model, (x, y) = made(), batches(1)[0]
    optimizer = Adam(model, lr=0.0, examples=N)
    classify(model, x, y).backward()
    optimizer.step()
    with torch.no_grad():
        EDITS[edit](model.network[0].weight)
    {
        "draw": model.draw,
        "mirror": model.mirror,
        "eval": model.eval,
        "forward": lambda: model(x),
        "step": lambda: trained(model, optimizer, [(x, y)]),
    }[look]()
    assert bool((model.weights[0].posterior.mean == 0.25).all())


def fill_and_fail(weight):
    weight.fill_(3.0)
    raise ValueError("inside")


def test_arithmetic_inside_mean_is_kept():
    model = made()
    draw, before = held(model), means(model)
    with model.mean(), torch.no_grad():
        for weight in model.network.parameters():
            weight.clamp_(-0.1, 0.1)
    after = {name: mean.clamp(-0.1, 0.1) for name, mean in before.items()}
    assert same(means(model), after)
    assert same(held(model), wanted(model))
    assert not same(held(model), draw)
    with model.mean(), torch.no_grad():
        for weight in model.network.parameters():
            weight.data.mul_(0.5)
    assert same(means(model), {name: mean * 0.5 for name, mean in after.items()})
    with pytest.raises(ValueError, match="inside"), model.mean(), torch.no_grad():
        fill_and_fail(model.network[0].bias)
    assert bool((model.weights[1].posterior.mean == 3.0).all())


def test_arithmetic_inside_mean_after_a_backward_pass():
    """An average of weights is taken between backward and step, or after it, with gradients still there."""
    model, (x, y) = made(), batches(1)[0]
    optimizer = Adam(model, examples=N)
    for late in (False, True):
        optimizer.zero_grad()
        classify(model, x, y).backward()
        if late:
            optimizer.step()
        before = means(model)
        with model.mean(), torch.no_grad():
            for weight in model.network.parameters():
                weight.mul_(0.5)
        assert same(means(model), {name: mean * 0.5 for name, mean in before.items()})


def test_a_plain_state_may_be_loaded_while_old_gradients_lie_about():
    model = made()
    optimizer = Adam(model, examples=N)
    classify(model, *batches(1)[0]).backward()
    optimizer.step()
    plain = mlp()
    model.network.load_state_dict(plain.state_dict())
    ledger(model)
    assert same(means(model), dict(plain.named_parameters()))


MOVED = {
    "deepcopy": copy.deepcopy,
    "double": lambda thing: thing.double(),
    "float and back": lambda thing: thing.double().float(),
    "half": lambda thing: thing.half(),
    "channels_last": lambda thing: thing.to(memory_format=torch.channels_last),
    "cpu": lambda thing: thing.to("cpu"),
    "requires_grad": lambda thing: thing.requires_grad_(False),
}


@pytest.mark.parametrize("what", ["model", "network"])
@pytest.mark.parametrize("how", MOVED)
def test_moves_are_no_edits(how, what):
    model = made(network=nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 3)))
    before = means(model)
    moved = MOVED[how](model if what == "model" else model.network)
    for one in {model, moved} if isinstance(moved, bitsback.BayesianModel) else {model}:
        one.draw()
        one.honour_edits(everywhere=True)
        assert all(torch.equal(value.float(), before[name]) for name, value in means(one).items())
        one.draw()
        assert all(float((p - before[name]).abs().max()) < 2 for name, p in held(one).items())


def test_a_copy_has_edits_of_its_own():
    model = made()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.network[0].weight.fill_(0.25)
        model.network[2].weight.fill_(0.5)
    twin.draw()
    model.draw()
    assert bool((twin.weights[0].posterior.mean == 0.25).all())
    assert not bool((model.weights[0].posterior.mean == 0.25).any())
    assert bool((model.weights[2].posterior.mean == 0.5).all())
    assert not bool((twin.weights[2].posterior.mean == 0.5).any())


def test_a_copied_network_begins_with_the_means():
    model = made()
    again = bitsback.bayesianize(copy.deepcopy(model.network))
    assert same(means(again), means(model))
    model.draw()  # goes on
    taken = bitsback.bayesianize(model.network)
    assert same(means(taken), means(again))
    with pytest.raises(LayerError, match="given to another model"):
        model.draw()


# the common mistakes (rule 9), and other bad input


@pytest.mark.parametrize("call", [lambda model: model, lambda model: model.network], ids=["model", "network"])
@pytest.mark.parametrize("made_when", ["before", "after"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, lambda p: SGD(p, lr=0.1, momentum=0.9)], ids=["Adam", "SGD"])
def test_an_optimiser_that_knows_no_posterior(kind, made_when, call):
    """It moved the draws, and no width learned anything."""
    network = mlp()
    early = kind(network.parameters()) if made_when == "before" else None
    model = made(network=network)
    optimizer = early or kind(model.parameters())
    before = means(model)

    def loop():
        for x, y in batches():
            F.cross_entropy(call(model)(x), y).backward()
            optimizer.step()
            if call(model) is model:
                optimizer.zero_grad()
            else:
                model.draw()

    with pytest.raises(LayerError, match=r"train with bitsback.optim.Adam\(model, lr=1e-3, examples=N\)"):
        loop()
    assert same(means(model), before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.out.weight = self.table.weight


def test_parameters_that_were_replaced():
    model = made()
    model.network[0].weight = nn.Parameter(torch.zeros(7, 5))
    for call in (
        model.draw,
        model.eval,
        lambda: Adam(model, examples=N).step(),
        model.state_dict,
    ):
        with pytest.raises(LayerError, match=r"'0.weight' was replaced by another parameter since bayesianize"):
            call()
    model = made()
    optimizer = Adam(model, examples=N)
    model.network[2] = nn.Linear(7, 3)  # a whole layer
    for call in (model.draw, model.state_dict, lambda: Adam(model, examples=N), lambda: trained(model, optimizer, batches(1))):
        with pytest.raises(LayerError, match=r"no longer reads '2.weight' where it was at bayesianize"):
            call()
    model = bitsback.bayesianize(Tied())
    model.network.out.weight = nn.Parameter(torch.zeros(5, 4))  # no tie any more
    with pytest.raises(LayerError, match=r"no longer reads 'out.weight'"):
        model.draw()
    model = made()
    del model.network[0].bias
    with pytest.raises(LayerError, match=r"'0.bias' is gone"):
        model.draw()


def test_a_shape_that_changes():
    model = made()
    model.network[0].weight.data = torch.zeros(9, 5)
    with pytest.raises(LayerError, match=r"'0.weight' has changed its shape from \(7, 5\) to \(9, 5\)"):
        model.draw()


def test_a_count_of_bits_is_no_loss():
    model, (x, y) = made(), batches(1)[0]
    assert model.kl_bits().item() > 0
    with pytest.raises(LayerError, match="leave it out of the loss"):
        (classify(model, x, y) + model.kl_bits() / N).backward()


def test_a_loss_that_is_a_sum_is_noticed():
    for reduction in ("mean", "sum"):
        model, (x, y) = made(), batches(1)[0]
        optimizer = Adam(model, examples=N)
        F.cross_entropy(model(x), y, reduction=reduction).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if reduction == "mean":
                optimizer.step()
                continue
            with pytest.raises(UserWarning, match="looks like a sum over the batch"):
                optimizer.step()


def test_weight_decay_names_the_prior_that_does_it():
    with pytest.raises(LayerError, match=r"weight_decay is a Gaussian prior.*'learn': 'none'"):
        Adam(made(), examples=N, weight_decay=1e-2)


class Holder(nn.Module):
    def __init__(self, parameter):
        super().__init__()
        self.fine = nn.Linear(2, 2)
        self.odd = parameter

    def forward(self, x):
        return self.fine(x)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (lambda: nn.Parameter(torch.zeros(2, dtype=torch.complex64)), "'odd' is complex.*exclude='odd'"),
        (lambda: nn.Parameter(torch.zeros(0)), "'odd' of Holder is empty"),
        (lambda: nn.Parameter(torch.zeros(2, device="meta")), "'odd' is on the meta device"),
        (nn.UninitializedParameter, "'odd' of Holder has no shape yet"),
    ],
)
def test_parameters_that_can_have_no_posterior_are_named(parameter, message):
    with pytest.raises(LayerError, match=message):
        bitsback.bayesianize(Holder(parameter()))
    network = Holder(parameter())
    model = bitsback.bayesianize(network, exclude=["odd"])
    assert [weight.name for weight in model.weights] == ["fine.weight", "fine.bias"]
    model.draw()


def test_whole_numbers_stay_as_they_are_and_are_named():
    network = Holder(nn.Parameter(torch.arange(3), requires_grad=False))
    model = bitsback.bayesianize(network)
    trained(model, Adam(model, examples=N), [(torch.randn(4, 2), torch.randint(2, (4,)))])
    assert torch.equal(network.odd, torch.arange(3))
    assert "odd (3 frozen weights)" in model.not_charged()
    with pytest.raises(LayerError, match=r"matches only frozen weights \(odd\).*whole numbers cannot"):
        bitsback.bayesianize(Holder(nn.Parameter(torch.arange(3), requires_grad=False)), include=["odd"])


def test_what_is_no_model_is_refused():
    with pytest.raises(LayerError, match=r"give the model that bitsback.bayesianize makes, got Sequential"):
        Adam(mlp(), examples=N)
    with pytest.raises(LayerError, match="holds a BayesianModel already"):
        bitsback.bayesianize(nn.Sequential(made()))
    model = made()
    model.requires_grad_(False)
    with pytest.raises(LayerError, match="every weight is frozen"):
        Adam(model, examples=N)


def test_values_that_are_held_are_nobodys_edits():
    """A decoder puts weights of its own into the network for a while."""
    model, (x, y) = made(), batches(1)[0]
    before, draw = means(model), held(model)
    zeros = {name: torch.zeros_like(value) for name, value in draw.items()}
    optimizer = Variational(model, SGD, lr=1.0, examples=N, beta=0.0)
    classify(model, x, y).backward()
    with model.holding(zeros):
        assert same(held(model), zeros)
        model(x)
        model.honour_edits(everywhere=True)
        assert same(held(model), zeros)
    assert same(held(model), draw)
    expected = {w.name: w.parameter.grad * (w.parameter - w.posterior.mean) for w in model.weights}
    stds = {w.name: w.posterior.log_std.detach().clone() for w in model.weights}
    optimizer.step()
    for weight in model.weights:
        moved = stds[weight.name] - weight.posterior.log_std
        assert torch.allclose(moved, expected[weight.name], atol=1e-6)
        assert torch.allclose(weight.posterior.mean, before[weight.name] - weight.parameter.grad, atol=1e-6)


def test_a_draw_follows_from_seed_number_and_sign():
    model = made()
    draw = held(model)
    model.mirror()
    mirrored, centre = held(model), means(model)
    assert all(torch.allclose(draw[name] + mirrored[name], 2 * centre[name], atol=1e-6) for name in draw)
    model.draw()
    assert model.state == State("draw", 1, 1)
    with model.keeping():
        model.hold(State("draw", 1, 0))
        assert same(held(model), draw)
