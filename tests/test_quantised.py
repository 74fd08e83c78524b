"""The two-part code gives its levels back bit for bit, at the price it states; the order of hidden units pays part of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitsback.nn
from bitsback.coding import grid as lattice
from bitsback.coding.ans import Stack
from bitsback.coding.grid import TensorGrid, power, scale_level, step_of
from bitsback.coding.permutation import (
    UnitGroup,
    arrangement,
    arrangement_bits,
    canonicalise,
    pop_network,
    push_network,
    rearranged,
)
from bitsback.coding.quantised import QuantisedTensor, choose_levels, quantise, step_level_for, tensor_codec
from bitsback.config.build_network import Network
from bitsback.errors import FileError, LayerError, PriorError
from bitsback.formats.model_file.hidden_units import exchangeable_groups
from bitsback.model import bayesianize
from bitsback.priors import (
    CauchyPrior,
    CheckpointPrior,
    GaussianPrior,
    GroupGaussianPrior,
    HorseshoePrior,
    LaplacePrior,
    LogisticPrior,
    PyroPrior,
    ScaleMixturePrior,
    StudentTPrior,
)
from bitsback.priors.exact_densities import density_of

SHAPE = (7, 30, 3)


def group_prior():
    prior = GroupGaussianPrior(torch.Size(SHAPE), axis=1, scale=0.3)
    prior.log_scale.add_(torch.linspace(-1, 1, 30).reshape(1, 30, 1))
    return prior


PRIORS = {
    "gaussian": lambda: GaussianPrior(0.3),
    "moved": lambda: GaussianPrior(0.3, mean=1.0),
    "laplace": lambda: LaplacePrior(0.2),
    "logistic": lambda: LogisticPrior(0.2),
    "student_t": lambda: StudentTPrior(0.3, df=2.5),
    "cauchy": lambda: CauchyPrior(0.1),
    "horseshoe": lambda: HorseshoePrior(0.3),
    "scale_mixture": lambda: ScaleMixturePrior([0.02, 0.6], [0.75, 0.25]),
    "group_gaussian": group_prior,
    "checkpoint": lambda: CheckpointPrior(torch.randn(SHAPE), 0.1, source="an earlier run"),
    "pyro": lambda: PyroPrior("Normal", {"loc": 0.1, "scale": 2.0}, scale=0.3),
}


def placed(name="gaussian"):
    return density_of(PRIORS[name](), "w")


def drawn(prior, shape=SHAPE, seed=0):
    """Means like the prior's own draws, a few far out."""
    rng = np.random.default_rng(seed)
    return (prior.centre + prior.scale * rng.standard_t(3, shape)).astype(np.float32)


def full_stack(lanes, words=500, seed=1):
    rng = np.random.default_rng(seed)
    return Stack(rng.integers(1 << 32, 1 << 64, lanes, dtype=np.uint64), rng.integers(0, 1 << 32, words, dtype=np.uint32))


def state(stack):
    return stack.heads.tolist(), stack.words.tolist()


@pytest.mark.parametrize("step_level", [-40, -14, -6])
@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_gives_its_levels_back_at_the_stated_price(name, step_level):
    prior = placed(name)
    tensor = quantise(drawn(prior), 0.1, prior, step_level)
    stack, codec = full_stack(8), tensor_codec(SHAPE, prior)
    before, bits = state(stack), stack.bits
    codec.push(stack, tensor)
    assert abs(stack.bits - bits - tensor.bits()) < 1
    found = codec.pop(stack)
    assert state(stack) == before
    assert (found.levels == tensor.levels).all()
    assert found.levels.shape == SHAPE
    assert (found.step_level, found.stretch_level) == (step_level, tensor.stretch_level)
    assert found.values().dtype == np.float32
    assert (found.values() == tensor.values()).all()
    assert np.abs(found.values() - drawn(prior)).max() <= 0.5001 * tensor.step


@pytest.mark.parametrize("name", ["gaussian", "group_gaussian", "checkpoint"])
def test_chunks_are_joined_without_a_seam(name, monkeypatch):
    prior = placed(name)
    whole = quantise(drawn(prior), 0.2, prior, -20, trade_off=1.0)
    monkeypatch.setattr(lattice, "CHUNK", 64)
    parts = quantise(drawn(prior), 0.2, prior, -20, trade_off=1.0)
    assert (parts.levels == whole.levels).all()
    assert parts.bits() == pytest.approx(whole.bits())
    stack = full_stack(4)
    before = state(stack)
    tensor_codec(SHAPE, prior).push(stack, parts)
    assert (tensor_codec(SHAPE, prior).pop(stack).levels == whole.levels).all()
    assert state(stack) == before


def test_a_popped_tensor_is_a_draw_that_can_be_pushed_back():
    stack, codec = full_stack(2, words=4000), tensor_codec((50,), placed("horseshoe"))
    stack.push_raw(np.array([128 - 20, 32]), np.array([8, 6]))  # a sane grid
    before = state(stack)
    codec.push(stack, codec.pop(stack))
    assert state(stack) == before


@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=60), st.integers(-60, 20), st.integers(1, 9))
def test_any_levels_in_reach(levels, step_level, lanes):
    prior = placed("cauchy")
    array = np.array(levels)
    try:
        stretch = TensorGrid(array.shape, prior, step_level).best_stretch(array)
    except PriorError:
        assert abs(array).max() * step_of(step_level) > 1000 * float(prior.scale)
        return
    tensor = QuantisedTensor(array, step_level, stretch, prior)
    stack = full_stack(lanes)
    before, bits = state(stack), stack.bits
    tensor_codec(array.shape, prior).push(stack, tensor)
    assert abs(stack.bits - bits - tensor.bits()) < 0.1
    assert tensor_codec(array.shape, prior).pop(stack).levels.tolist() == levels
    assert state(stack) == before


def test_steps_and_scales_are_the_nearest_powers():
    levels = np.arange(-300, 300)
    assert [step_of(k) for k in range(-128, 128)] == pytest.approx([2 ** (k / 4) for k in range(-128, 128)], rel=1e-15)
    assert scale_level(np.array([power(k) for k in levels.tolist()])).tolist() == levels.tolist()
    assert scale_level(2.0 ** ((levels + 0.49) / 16)).tolist() == levels.tolist()
    assert scale_level(2.0 ** ((levels - 0.49) / 16)).tolist() == levels.tolist()


@pytest.mark.parametrize("name", ["gaussian", "laplace", "scale_mixture", "group_gaussian"])
def test_the_stretch_is_the_best_of_all(name):
    prior = placed(name)
    tensor = quantise(0.2 * drawn(prior), 0.1, prior, -12)
    ways = [QuantisedTensor(tensor.levels, -12, stretch, prior).bits() for stretch in range(-32, 32)]
    assert tensor.bits() == pytest.approx(min(ways), rel=1e-12)


def test_the_trade_off_buys_bits_with_distortion():
    prior, std = placed(), np.full(SHAPE, 0.2)
    mean = drawn(prior)
    tensors = [quantise(mean, std, prior, -8, trade_off) for trade_off in (0.0, 0.5, 1.0, 2.0)]
    bits = [tensor.bits() for tensor in tensors]
    distortion = [float(((tensor.values() - mean) ** 2 / (2 * std**2) / math.log(2)).sum()) for tensor in tensors]
    assert bits == sorted(bits, reverse=True)
    assert distortion == sorted(distortion)
    assert bits[2] + distortion[2] < bits[0] + distortion[0]
    assert (tensors[0].levels == np.rint(mean / step_of(-8))).all()


def test_choice_is_the_best_of_the_three_by_brute_force():
    prior, step = placed("moved"), step_of(-7)
    mean = np.linspace(-0.5, 2.0, 40)
    code = TensorGrid(mean.shape, prior, -7).code(0)
    centre = round(1.0 / step)
    found = choose_levels(mean, 0.3, step, code, 0.7)
    everything = slice(0, 40)
    for place_, (m, level) in enumerate(zip(mean, found, strict=True)):
        nearest = round(m / step)
        candidates = {nearest, nearest - int(np.sign(nearest - centre)), centre}
        costs = {
            c: (m - c * step) ** 2 / (2 * 0.3**2) / math.log(2)
            + 0.7 * float(code.bits_at(np.full(40, c - centre), everything)[place_])
            for c in candidates
        }
        assert costs[int(level)] == pytest.approx(min(costs.values()))


def test_the_step_follows_the_precision_but_no_single_weight():
    assert step_of(step_level_for(np.full(1000, 0.1))) == pytest.approx(0.346, rel=0.1)
    mixed = np.r_[np.full(500, 0.1), np.full(500, 100.0)]
    assert step_of(step_level_for(mixed)) == pytest.approx(0.346 * math.sqrt(2), rel=0.1)
    assert step_level_for(np.r_[np.full(9999, 0.1), 1e-9]) == step_level_for(0.1)
    assert step_level_for(1e-30) == -128
    assert step_level_for(0.1, steps_per_std=6.92) == step_level_for(0.1) + 4


@pytest.mark.parametrize(
    ("mean", "std", "step_level", "message"),
    [
        ([math.nan], 0.1, 0, "NaN or infinite"),
        ([1.0], 0.0, 0, "not above zero"),
        ([1.0], 0.1, 128, "cannot be written"),
        ([1e6], 0.1, -40, "beyond the reach"),
    ],
)
def test_what_has_no_code_is_refused(mean, std, step_level, message):
    with pytest.raises(PriorError, match=message):
        quantise(np.array(mean), std, placed(), step_level)


def test_a_cut_message_is_refused():
    prior = placed()
    stack = Stack.empty(2)
    tensor_codec(SHAPE, prior).push(stack, quantise(drawn(prior), 0.1, prior, -14))
    cut = Stack(stack.heads, stack.words[len(stack.words) // 2 :])
    with pytest.raises(FileError, match="too early"):
        tensor_codec(SHAPE, prior).pop(cut)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(sum))
def test_an_arrangement_draws_what_it_gives_back(counts):
    codec, stack = arrangement(np.array(counts)), full_stack(3, words=200)
    before, bits = state(stack), stack.bits
    kinds = codec.pop(stack)
    assert np.bincount(kinds, minlength=len(counts)).tolist() == counts
    assert bits - stack.bits == pytest.approx(arrangement_bits(counts), abs=0.01)
    codec.push(stack, kinds)
    assert state(stack) == before


@given(st.permutations(list("aaabbcddde")))
def test_any_arrangement_can_be_written(letters):
    kinds = np.array([ord(letter) - ord("a") for letter in letters])
    codec, stack = arrangement(np.bincount(kinds)), Stack.empty()
    codec.push(stack, kinds)
    assert stack.bits == pytest.approx(arrangement_bits(np.bincount(kinds)), abs=0.1)
    assert (codec.pop(stack) == kinds).all()


def test_arrangements_are_all_alike_likely():
    counts, stack = np.array([2, 1]), full_stack(1, words=2000)
    seen = [tuple(arrangement(counts).pop(stack).tolist()) for _ in range(3000)]
    assert sorted(set(seen)) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert min(seen.count(way) for way in set(seen)) > 900


MLP = [nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3)]
CONV = [
    nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 9, 2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(),
    nn.Dropout(), nn.Linear(9 * 4, 20), nn.BatchNorm1d(20), nn.Linear(20, 4),
]  # fmt: skip
INPUT = {"mlp": (5, 6), "conv": (5, 1, 12, 12)}


def network(kind, *, prior="gaussian", **options):
    torch.manual_seed(3)
    parts = [type(part)(*arguments(part)) for part in {"mlp": MLP, "conv": CONV}[kind]]
    for module in parts:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight)
            nn.init.uniform_(module.bias)
    return bayesianize(Network(*parts), prior, **options).eval()


def arguments(module):
    names = ("in_features", "out_features", "in_channels", "out_channels", "num_features", "kernel_size")
    return [getattr(module, name) for name in names if hasattr(module, name)]


def quantised(model):
    tensors = {}
    for weight in model.weights:
        mean = weight.posterior.mean.detach().numpy()
        tensors[weight.name] = quantise(mean, 0.01, density_of(weight.prior, weight.name), -24)
    return tensors


def specs(tensors):
    return {name: (tensor.shape, tensor.prior) for name, tensor in tensors.items()}


def outputs(model, tensors, x, groups=(), orders=()):
    """Outputs with these weights; what is not coded is moved along first."""
    with torch.no_grad():
        for weight in model.weights:
            weight.posterior.mean.copy_(torch.from_numpy(tensors[weight.name].values()))
        for name, value in [*model.deterministic(), *model.statistics()]:
            value.copy_(torch.from_numpy(rearranged(name, value.numpy(), groups, orders)))
        with model.mean():
            return model(x)


@pytest.mark.parametrize("without", ["nothing", "biases", "a layer"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("words", [0, 300])
def test_a_network_comes_back_in_canonical_order(kind, words, without):
    exclude = {"nothing": [], "biases": ["*.bias"], "a layer": [{"mlp": "2", "conv": "4"}[kind]]}[without]
    model = network(kind, exclude=exclude)
    groups = exchangeable_groups(model.network, input_axes=len(INPUT[kind]))
    tensors = quantised(model)
    x = torch.randn(INPUT[kind])
    expected = outputs(model, tensors, x)
    canonical, orders = canonicalise(tensors, groups)
    assert torch.allclose(outputs(model, canonical, x, groups, orders), expected, atol=1e-4)
    assert any((order != np.arange(len(order))).any() for order in orders)

    stack = full_stack(3, words=words)
    before, bits = state(stack), stack.bits
    refunds = push_network(stack, canonical, groups)
    assert len(refunds) == len(groups) - (without == "a layer")
    grown = stack.bits - bits
    wanted = sum(tensor.bits() for tensor in tensors.values()) - sum(refund.bits for refund in refunds) + len(refunds)
    assert grown == pytest.approx(wanted, rel=1e-3)
    for refund in refunds:
        assert refund.is_taken
        assert refund.bits == pytest.approx(arrangement_bits([1] * refund.group.units), rel=0.01)

    stack = Stack.from_bytes(stack.to_bytes(), lanes=3)
    found = pop_network(stack, specs(tensors), groups)
    assert state(stack) == before
    assert list(found) == list(tensors)
    for name, tensor in canonical.items():
        assert (found[name].levels == tensor.levels).all()


def test_the_order_of_the_units_does_not_show_in_the_file():
    model = network("mlp")
    groups, tensors = exchangeable_groups(model.network), quantised(model)
    shuffled = dict(tensors)
    for group in groups:
        order = np.random.default_rng(0).permutation(group.units)
        for name, tensor in shuffled.items():
            shuffled[name] = QuantisedTensor(group.moved(name, tensor.levels, order), -24, tensor.stretch_level, tensor.prior)
    written = []
    for one in (tensors, shuffled):
        stack = Stack.empty(2)
        push_network(stack, canonicalise(one, groups)[0], groups)
        written.append(stack.to_bytes())
    assert written[0] == written[1]


def test_units_that_cannot_be_told_apart_are_one_kind():
    model = network("mlp")
    groups, tensors = exchangeable_groups(model.network), quantised(model)
    for name in ("0.weight", "0.bias"):
        tensors[name].levels[5:25] = 0  # twenty dead units, whose outgoing weights differ
    canonical, _ = canonicalise(tensors, groups)
    stack = Stack.empty()
    refunds = push_network(stack, canonical, groups)
    assert refunds[0].bits == pytest.approx(arrangement_bits([20] + [1] * 20), rel=0.01)
    assert refunds[0].bits == pytest.approx(math.log2(math.factorial(40) / math.factorial(20)), rel=0.01)
    found = pop_network(stack, specs(tensors), groups)
    assert all((found[name].levels == canonical[name].levels).all() for name in found)
    assert stack.bits == 0


def test_a_stack_that_holds_too_little_is_left_alone():
    torch.manual_seed(0)
    model = bayesianize(nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1)))
    groups, tensors = exchangeable_groups(model.network), quantised(model)
    tensors["2.weight"].levels[:] = 0
    canonical, _ = canonicalise(tensors, groups)
    stack = Stack.empty(2)
    (refund,) = push_network(stack, canonical, groups)
    assert (refund.is_taken, refund.bits) == (False, 0.0)
    found = pop_network(stack, specs(tensors), groups)
    assert all((found[name].levels == canonical[name].levels).all() for name in found)
    assert state(stack) == state(Stack.empty(2))


def test_units_out_of_order_are_refused():
    model = network("mlp")
    groups = exchangeable_groups(model.network)
    with pytest.raises(LayerError, match="canonical order"):
        push_network(full_stack(1), quantised(model), groups)


@pytest.mark.parametrize("group", ["input", "output"])
def test_a_prior_that_tells_units_apart_keeps_its_order(group):
    model = network("mlp", prior={"kind": "group_gaussian", "group": group})
    for prior in model.priors:
        prior.log_scale.add_(torch.randn_like(prior.log_scale))
    groups, tensors = exchangeable_groups(model.network), quantised(model)
    canonical, orders = canonicalise(tensors, groups)
    assert all((order == np.arange(len(order))).all() for order in orders)
    stack = Stack.empty()
    assert push_network(stack, canonical, groups) == []
    found = pop_network(stack, specs(tensors), groups)
    assert all((found[name].levels == tensors[name].levels).all() for name in found)


def test_groups_of_a_dense_and_of_a_convolutional_chain():
    assert exchangeable_groups(nn.Sequential(*MLP)) == [
        UnitGroup(40, ("0.weight", "0.bias"), "2.weight"),
        UnitGroup(30, ("2.weight", "2.bias"), "4.weight"),
    ]
    normed = tuple(f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    assert exchangeable_groups(nn.Sequential(*CONV)) == [
        UnitGroup(12, ("0.weight", "0.bias", *normed), "4.weight"),
        UnitGroup(9, ("4.weight", "4.bias"), "9.weight", block=4),
        UnitGroup(20, ("9.weight", "9.bias", *(name.replace("1.", "10.") for name in normed)), "11.weight"),
    ]


def test_groups_are_the_same_with_posteriors_and_without():
    plain = exchangeable_groups(Network(*MLP))
    assert exchangeable_groups(network("mlp").network) == plain
    assert exchangeable_groups(network("mlp", exclude=["2"]).network) == plain
    made = nn.Sequential(bitsback.nn.Linear(6, 40), nn.ReLU(), bitsback.nn.Linear(40, 30), nn.Tanh(), bitsback.nn.Linear(30, 3))
    assert exchangeable_groups(made) == plain
    assert exchangeable_groups(bayesianize(made).network) == plain


def test_nested_chains_have_dotted_names():
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), nn.Sequential(nn.Identity(), nn.Linear(4, 1)))
    assert exchangeable_groups(nested) == [UnitGroup(4, ("0.0.weight", "0.0.bias"), "1.1.weight")]


class Backwards(nn.Sequential):
    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


class Odd(nn.Linear):
    def forward(self, x):
        return super().forward(x.flip(-1))


def hooked():
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda module, inputs, output: output.flip(-1))
    return layer


TIED = nn.Linear(8, 8)


def tied_weights():
    one, two = nn.Linear(8, 8), nn.Linear(8, 8)
    two.weight = one.weight
    return nn.Sequential(one, two)


@pytest.mark.parametrize(
    "chain",
    [
        nn.Linear(8, 8),
        *(nn.Sequential(nn.Linear(8, 8), middle, nn.Linear(8, 8)) for middle in (nn.LayerNorm(8), nn.Softmax(-1), nn.GLU())),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3)),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.LocalResponseNorm(3), nn.Conv2d(8, 2, 3)),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=2)),
        nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.Conv2d(8, 8, 3)),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Linear(8, 8)),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(2), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.MaxPool1d(2), nn.Linear(4, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Linear(24, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 8, 1)),
        nn.Sequential(nn.GRU(8, 8), nn.Linear(8, 8)),
        nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.Bilinear(8, 8, 1)),
        nn.Sequential(Odd(8, 8), nn.Linear(8, 8)),
        nn.Sequential(hooked(), nn.Linear(8, 8)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)),
        nn.Sequential(TIED, nn.ReLU(), TIED),
        tied_weights(),
        Backwards(nn.Linear(8, 8), nn.Linear(8, 8)),
        nn.TransformerEncoderLayer(8, 2),
    ],
    ids=lambda chain: type(chain).__name__,
)
def test_no_group_where_the_order_may_mean_something(chain):
    assert exchangeable_groups(chain, input_axes=3) == []


def test_batch_norm_after_a_dense_layer_needs_to_know_the_batch():
    chain = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 8))
    assert exchangeable_groups(chain) == []
    names = ("0.weight", "0.bias", "1.running_mean", "1.running_var")
    assert exchangeable_groups(chain, input_axes=2) == [UnitGroup(8, names, "2.weight")]
    assert len(exchangeable_groups(nn.Sequential(nn.Flatten(), *chain))) == 1


def test_a_second_flatten_changes_nothing():
    chain = nn.Sequential(nn.Conv1d(2, 8, 3), nn.Flatten(), nn.Flatten(), nn.Linear(24, 2))
    assert exchangeable_groups(chain) == [UnitGroup(8, ("0.weight", "0.bias"), "3.weight", block=3)]


def test_a_level_out_of_reach_is_refused_and_leaves_the_stack_as_it_was():
    prior = density_of(GaussianPrior(0.3), (3,))
    code = TensorGrid((3,), prior, -8).code(0)
    stack = Stack.empty()
    code.push(stack, np.array([0, 1, -2]))
    before = stack.to_bytes()
    with pytest.raises(PriorError, match="beyond the reach"):
        code.push(stack, np.array([0, 1, 1 << 50]))
    assert stack.to_bytes() == before


def test_canonical_order_is_canonical_already():
    prior = density_of(GaussianPrior(0.3), ())
    rng = np.random.default_rng(2)
    tensors = {
        "0.weight": QuantisedTensor(rng.integers(-5, 5, (6, 4)), -8, 0, prior),
        "1.weight": QuantisedTensor(rng.integers(-5, 5, (3, 6)), -8, 0, prior),
    }
    group = UnitGroup(6, ("0.weight",), "1.weight")
    once, _ = canonicalise(tensors, [group])
    again, orders = canonicalise(once, [group])
    assert orders[0].tolist() == list(range(6))
    for name, tensor in once.items():
        np.testing.assert_array_equal(again[name].levels, tensor.levels)
