"""The codecs: what is pushed comes back bit for bit, at the price of the stated probabilities; what is popped is a draw."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from bitsback.coding import elementary, relative_entropy
from bitsback.coding.ans import Stack, default_lanes_log2
from bitsback.coding.categorical import code_bits, frequencies, labels
from bitsback.coding.combinators import bits_back, categorical, dependent, metered, raw_bits, sequence, substack
from bitsback.coding.lattice import PriorCode, RoundedPosterior, under_posterior, under_prior
from bitsback.coding.philox import whiten
from bitsback.coding.relative_entropy import BlockCode
from bitsback.coding.tables import TOTAL_BITS, PriorTable, bucket_of, centre_of, start_of
from bitsback.errors import FileError, LayerError, PriorError
from bitsback.formats.model_file._device_scores import DeviceScores
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
    SpikeAndSlabPrior,
    StudentTPrior,
)
from bitsback.priors.exact_densities import density_of

COUNT = 90
SHAPE = (9, 10)


def group_prior():
    prior = GroupGaussianPrior(torch.Size(SHAPE), axis=1, scale=0.3)
    prior.log_scale.add_(torch.linspace(-1, 1, 10).reshape(1, 10))
    return prior


PRIORS = {
    "gaussian": lambda: GaussianPrior(0.3),
    "moved": lambda: GaussianPrior(0.3, mean=1.5),
    "laplace": lambda: LaplacePrior(0.2),
    "logistic": lambda: LogisticPrior(0.2),
    "student_t": lambda: StudentTPrior(0.3, df=4.0),
    "heavy_student_t": lambda: StudentTPrior(0.3, df=1.5),
    "cauchy": lambda: CauchyPrior(0.1),
    "horseshoe": lambda: HorseshoePrior(0.3),
    "scale_mixture": lambda: ScaleMixturePrior([0.02, 0.6], [0.75, 0.25]),
    "spike_and_slab": lambda: SpikeAndSlabPrior([0.02, 0.6], [0.75, 0.25]),
    "group_gaussian": group_prior,
    "checkpoint": lambda: CheckpointPrior(torch.linspace(-2, 2, COUNT).reshape(SHAPE), 0.1, source="an earlier run"),
    "pyro": lambda: PyroPrior("Laplace", {"loc": 0.0, "scale": 2.0}, scale=0.3),
}


def code_of(name, exponent=10):
    return PriorCode.build([density_of(PRIORS[name](), "w")], [SHAPE], exponent)


def full_stack(lanes=4, words=3000, seed=0):
    """A stack that holds random bits."""
    rng = np.random.default_rng(seed)
    return Stack(rng.integers(1 << 32, 1 << 64, lanes, dtype=np.uint64), rng.integers(0, 1 << 32, words, dtype=np.uint32))


def state(stack):
    return stack.heads.tolist(), stack.words.tolist()


def plain(value):
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return np.asarray(value).tolist()


# elementary functions: the truth is math and scipy's


@given(st.floats(-700, 700))
def test_exp_is_right_to_1e_15(x):
    assert float(elementary.exp(np.array([x]))[0]) == pytest.approx(math.exp(x), rel=1e-15 + 2e-16)  # math's own rounding


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_log_is_right_to_1e_15(x):
    assert float(elementary.log(np.array([x]))[0]) == pytest.approx(math.log(x), rel=1e-15, abs=1e-15)


def test_log_of_arguments_near_one():
    x = 1 + np.linspace(-0.3, 0.4, 20001)
    assert np.abs(elementary.log(x) - np.log(x)).max() < 1e-15


def test_normal_cdf_is_right_to_1e_15():
    x = np.concatenate([np.linspace(-9, 9, 40001), np.random.default_rng(0).normal(size=20000) * 3])
    assert np.abs(elementary.normal_cdf(x) - special.ndtr(x)).max() < 1e-15
    assert elementary.normal_cdf(np.array([-8.5, 8.5, -1e300, 1e300])).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_normal_cdf_never_falls_where_cells_are_cut():
    edges = np.arange(-9 * 64, 9 * 64 + 1) / 64.0
    assert (np.diff(elementary.normal_cdf(edges)) >= 0).all()


# tables: the truth is scipy's cdf


def mixture_cdf(scales, weights):
    return lambda x: sum(w * stats.norm.cdf(x, scale=s) for s, w in zip(scales, weights, strict=True))


def horseshoe_cdf(x):
    """Of the standard horseshoe: x | lambda ~ N(0, lambda^2), lambda half-Cauchy."""
    inside = lambda lam: stats.norm.cdf(x / lam) * 2 / (np.pi * (1 + lam * lam))  # noqa: E731
    return integrate.quad(inside, 0, 1, limit=200)[0] + integrate.quad(inside, 1, np.inf, limit=200)[0]


CDFS = {
    "gaussian": stats.norm(scale=0.3).cdf,
    "moved": stats.norm(scale=0.3).cdf,  # tables stand around the centre
    "laplace": stats.laplace(scale=0.2).cdf,
    "logistic": stats.logistic(scale=0.2).cdf,
    "student_t": stats.t(4.0, scale=0.3).cdf,
    "heavy_student_t": stats.t(1.5, scale=0.3).cdf,
    "cauchy": stats.cauchy(scale=0.1).cdf,
    "horseshoe": lambda x: np.vectorize(horseshoe_cdf)(np.asarray(x) / 0.3),
    "scale_mixture": mixture_cdf([0.02, 0.6], [0.75, 0.25]),
    "spike_and_slab": mixture_cdf([0.02, 0.6], [0.75, 0.25]),
    "checkpoint": stats.norm(scale=0.1).cdf,
    "pyro": stats.laplace(scale=0.6).cdf,
}


@pytest.mark.parametrize("exponent", [4, 12])
@pytest.mark.parametrize("name", CDFS)
def test_a_table_holds_the_mass_of_its_prior(name, exponent):
    (table,) = code_of(name, exponent).tables
    buckets = np.array([-2000, -700, -300, -128, -60, -20, -5, -1, 0, 1, 5, 20, 60, 128, 300, 700])
    buckets = buckets[np.abs(buckets + 0.5) < table.half]
    size, power = start_of(buckets)
    low, high = size - 0.5, size + (1 << power) - 0.5
    low, high = np.where(buckets < 0, -1 - high, low), np.where(buckets < 0, -1 - low, high)
    step = float(np.float64(2.0) ** -exponent)
    true = CDFS[name](high * step) - CDFS[name](low * step)
    place_of = buckets + table.half
    mass = (table.cumulative[place_of + 1] - table.cumulative[place_of]) / 2.0**TOTAL_BITS
    # 2^-28 for every bucket is added so that none is empty; the rest is quadrature, worst at the horseshoe's pole and a Laplace's kink
    rough = 0.08 if name == "horseshoe" else 5e-3
    assert np.abs(mass - true).max() < 2e-5 + rough * true.max()
    inner = true > 1e-4
    assert np.abs(np.log2(mass[inner] / true[inner])).max() < (0.1 if name == "horseshoe" else 0.02)


@pytest.mark.parametrize("name", PRIORS)
def test_no_bucket_is_empty_and_all_mass_is_given(name):
    for table in code_of(name).tables:
        assert table.cumulative[0] == 0
        assert table.cumulative[-1] == 1 << TOTAL_BITS
        assert (np.diff(table.cumulative) >= 1).all()
        assert len(table.cumulative) == 2 * table.half + 1


@given(st.lists(st.integers(-(2**40) + 1, 2**40 - 1), min_size=1, max_size=20))
def test_buckets_and_positions_name_every_point_once(points):
    index = np.array(points)
    bucket, exponent, position = bucket_of(index)
    size, again = start_of(bucket)
    assert (exponent == again).all()
    assert ((position >= 0) & (position < 1 << exponent)).all()
    assert (np.where(bucket < 0, -1 - size - position, size + position) == index).all()
    assert ((bucket < 0) == (index < 0)).all()


def test_quantiles_of_a_table_are_those_of_its_prior():
    (table,) = code_of("laplace", 16).tables
    level = (2 * np.arange(65536) + 1) / 2.0**17
    middle = (level > 1e-3) & (level < 1 - 1e-3)
    wanted = stats.laplace(scale=0.2).ppf(level[middle])
    assert np.abs(table.quantiles[middle] / 2.0**16 - wanted).max() < 0.005
    assert (np.diff(table.quantiles) >= 0).all()


def test_a_density_without_mass_is_refused():
    from bitsback.coding.densities import StandardDensity

    for density in (
        np.zeros_like,
        lambda z: np.full_like(z, np.nan),
        lambda z: -np.exp(-z * z),
        lambda z: np.full_like(z, np.inf),
    ):
        with pytest.raises(PriorError, match="no proper mass"):
            PriorTable.build(StandardDensity("wrong", density, 4), 0.01)
    with pytest.raises(PriorError, match=r"too fine: more than 2\^40 points"):
        code_of("cauchy", 47)


@pytest.mark.parametrize("steps", [2.0**52, -(2.0**52), math.nan, math.inf])
def test_a_location_that_no_lattice_point_is_near_to_is_refused(steps):
    with pytest.raises(PriorError, match=r"more than 2\^52 grid steps from zero"):
        centre_of(np.array([0.0, steps]))
    assert centre_of(np.array([2.0**52 - 1])).tolist() == [2**52 - 1]


# round trips


def table_of(probabilities, total_bits):
    counts = np.maximum(1, np.floor(np.array(probabilities) * 2**total_bits).astype(np.int64))
    counts[0] += 2**total_bits - counts.sum()
    return np.concatenate([[0], np.cumsum(counts)])


SKEW = table_of([0.7, 0.2, 0.05, 0.05], 16)
POSTERIOR = RoundedPosterior.of(np.linspace(-2, 2, COUNT), np.geomspace(0.003, 3, COUNT))


def categorical_bits(symbols):
    return float(16 * len(symbols) - np.log2(np.diff(SKEW)[symbols]).sum())


def prior_bits(name):
    """-log2 of a table's probability, from its public integers."""

    def bits(points):
        code = code_of(name)
        bucket, exponent, _ = bucket_of(points - code.centre)
        total = 0.0
        for table, b, e in zip((code.tables[k] for k in code.table_of), bucket, exponent, strict=True):
            total += TOTAL_BITS - math.log2(table.cumulative[table.half + b + 1] - table.cumulative[table.half + b]) + int(e)
        return total

    return bits


def posterior_bits(points):
    """-log2 of the mass of the cell that a point lies in, shared among its points, by scipy's cdf."""
    width = np.maximum(POSTERIOR.std_level // 32 + 10 - 5, 0)
    cell = points >> width
    low, high = ((edge << width) - 0.5 for edge in (cell, cell + 1))
    mean, std = POSTERIOR.mean * 2.0**10, POSTERIOR.std * 2.0**10
    return float((width - np.log2(stats.norm.cdf((high - mean) / std) - stats.norm.cdf((low - mean) / std))).sum())


def drawn_symbols(seed=0):
    return np.random.default_rng(seed).choice(4, COUNT, p=[0.7, 0.2, 0.05, 0.05])


def drawn_points(name, seed=0):
    prior = density_of(PRIORS[name](), "w")
    rng = np.random.default_rng(seed)
    return np.rint((prior.centre + prior.scale * rng.standard_t(3, SHAPE)) * 1024).astype(np.int64).ravel()


WIDTHS = np.arange(COUNT) % 49
LOGITS = np.random.default_rng(3).integers(-40000, 40000, (COUNT, 5))


def symbols_given(first):
    """Another table for every entry, by what the first value is."""
    return categorical(table_of(np.roll([0.6, 0.2, 0.1, 0.1], int(first[0])), 12), 12, count=7)


def dependent_bits(pair):
    counts = np.diff(table_of(np.roll([0.6, 0.2, 0.1, 0.1], int(pair[0][0])), 12))
    return categorical_bits(pair[0]) + float(12 * 7 - np.log2(counts[pair[1]]).sum())


CODECS = {
    "raw_bits": (lambda: raw_bits(WIDTHS), lambda: np.random.default_rng(1).integers(0, 1 << WIDTHS), lambda value: int(WIDTHS.sum())),
    "categorical": (lambda: categorical(SKEW, 16, COUNT), drawn_symbols, categorical_bits),
    "certain": (lambda: categorical(np.array([0, 16, 16]), 4, 3), lambda: np.zeros(3, dtype=int), lambda value: 0.0),
    "sequence": (
        lambda: sequence([categorical(SKEW, 16, COUNT), raw_bits(WIDTHS)]),
        lambda: [drawn_symbols(), np.random.default_rng(1).integers(0, 1 << WIDTHS)],
        lambda value: categorical_bits(value[0]) + int(WIDTHS.sum()),
    ),
    "dependent": (
        lambda: dependent(categorical(SKEW, 16, COUNT), symbols_given),
        lambda: (drawn_symbols(), np.array([0, 3, 1, 2, 2, 0, 1])),
        dependent_bits,
    ),
    "substack": (lambda: substack(categorical(SKEW, 16, COUNT), lanes=2), drawn_symbols, categorical_bits),
    "metered": (lambda: metered(categorical(SKEW, 16, COUNT), {}, "x"), drawn_symbols, categorical_bits),
    "labels": (lambda: labels(LOGITS), lambda: np.random.default_rng(2).integers(0, 5, COUNT), lambda value: code_bits(LOGITS, value)),
    "under_posterior": (
        lambda: under_posterior(POSTERIOR, 10),
        lambda: np.rint((POSTERIOR.mean + POSTERIOR.std * np.random.default_rng(4).standard_normal(COUNT)) * 1024).astype(np.int64),
        posterior_bits,
    ),
    **{
        f"under_prior {name}": (lambda name=name: under_prior(code_of(name)), lambda name=name: drawn_points(name), prior_bits(name))
        for name in PRIORS
    },
}  # fmt: skip


@pytest.mark.parametrize("lanes", [1, 4, 128])
@pytest.mark.parametrize("name", CODECS)
def test_value_and_stack_come_back_and_the_price_is_minus_log_p(name, lanes):
    make, value, declared = CODECS[name]
    codec, value = make(), value()
    if name == "substack" and lanes == 1:
        lanes = 2
    stack = full_stack(lanes)
    before, bits = state(stack), stack.bits
    codec.push(stack, value)
    assert stack.bits - bits == pytest.approx(declared(value), abs=0.2)
    found = codec.pop(stack)
    assert plain(found) == plain(value)
    assert state(stack) == before


@pytest.mark.parametrize("name", [name for name in CODECS if name != "certain"])
def test_a_popped_value_is_a_draw_that_gives_its_bits_back(name):
    make, _, declared = CODECS[name]
    codec, stack = make(), full_stack(4, seed=7)
    before, bits = state(stack), stack.bits
    value = codec.pop(stack)
    assert bits - stack.bits == pytest.approx(declared(value), abs=0.2)
    codec.push(stack, value)
    assert state(stack) == before


@given(st.integers(1, 9), st.integers(0, 60), st.integers(0, 2**32 - 1), st.data())
def test_any_sequence_of_symbols_under_any_table(lanes, count, seed, data):
    rng = np.random.default_rng(seed)
    total_bits = data.draw(st.integers(4, 28))
    cumulative = table_of(rng.dirichlet(np.ones(5)) * 0.9, total_bits)
    stack = full_stack(lanes, words=int(rng.integers(0, 3)), seed=seed)
    before, symbols = state(stack), rng.integers(0, 5, count)
    codec = categorical(cumulative, total_bits, count)
    codec.push(stack, symbols)
    again = Stack.from_bytes(stack.to_bytes(), lanes)
    assert state(again) == state(stack)
    assert codec.pop(again).tolist() == symbols.tolist()
    assert state(again) == before


def test_a_meter_counts_what_its_codec_takes_and_gives():
    meters, stack = {}, full_stack()
    codec = metered(categorical(SKEW, 16, COUNT), meters, "symbols")
    before, symbols = stack.bits, drawn_symbols()
    codec.push(stack, symbols)
    assert meters["symbols"] == pytest.approx(stack.bits - before)
    codec.pop(stack)
    assert meters["symbols"] == pytest.approx(0.0, abs=1e-9)


def test_a_stack_that_runs_out_is_refused_and_a_borrowing_one_counts():
    with pytest.raises(FileError, match="the message ends too early"):
        under_posterior(POSTERIOR, 20).pop(Stack.empty(4))
    stack = Stack(words=np.zeros(2, dtype=np.uint32), borrows=True)
    under_posterior(POSTERIOR, 20).pop(stack)
    assert 1000 < stack.borrowed_bits < 40 * COUNT
    assert stack.borrowed_bits % 32 == 0


@pytest.mark.parametrize(
    ("weights", "net_bits", "lanes"),
    [(0, 0.0, 0), (2048, 1e6, 1), (2048, 1000.0, 1), (2048, 999.0, 0), (10**9, 1e9, 10), (10**9, 1e4, 4), (10**9, 1.0, 0)],
)
def test_lanes_cost_at_most_a_hundredth(weights, net_bits, lanes):
    assert default_lanes_log2(weights, net_bits) == lanes


# blocks


def blocks(names=("gaussian", "laplace"), sizes=(30, 21)):
    """Tensors under several priors, dealt out among three blocks of 2^6 candidates."""
    placed = [density_of(PRIORS[name](), "w") for name in names]
    shapes = [prior.standard for prior in placed]
    centre, scale = (
        [np.full(n, float(getattr(p, what))) for n, p in zip(sizes, placed, strict=True)] for what in ("centre", "scale")
    )
    return BlockCode(
        np.concatenate(centre), np.concatenate(scale), shapes, np.repeat(np.arange(len(sizes)), sizes), sizes, 3, 6, key=5
    )


def log_q_over_p(code, block, mean, std):
    """Of every candidate of a block, by scipy's densities; the first thirty weights are normal, the others Laplace."""
    members, found = code.members(block), []
    for index in range(1 << code.index_bits):
        w = code.values(block, index).astype(np.float64)
        p = np.where(members < 30, stats.norm.logpdf(w, 0, 0.3), stats.laplace.logpdf(w, 0, 0.2))
        found.append(float((stats.norm.logpdf(w, mean, std) - p).sum()))
    return np.array(found)


def test_blocks_share_every_tensor_evenly_and_hold_every_weight_once():
    code = blocks()
    members = [code.members(block) for block in range(3)]
    assert sorted(np.concatenate(members).tolist()) == list(range(51))
    assert [(part < 30).sum() for part in members] == [10, 10, 10]
    for block, part in enumerate(members):
        assert (code.block_of()[part] == block).all()


@pytest.mark.parametrize("at_once", [1 << 22, 100])
def test_the_candidate_of_a_block_has_the_largest_q_over_p(at_once, monkeypatch):
    monkeypatch.setattr(relative_entropy, "SCORES_AT_ONCE", at_once)  # 100: all candidates in dozens of parts
    code, draw = blocks(), np.random.default_rng(1)
    chosen = []
    for block in range(3):
        n = len(code.members(block))
        mean, std = draw.normal(0, 0.2, n), draw.uniform(0.05, 0.4, n)
        scores = log_q_over_p(code, block, mean, std)
        chosen.append(code.choose(block, mean, std))
        assert scores[chosen[-1]] == pytest.approx(scores.max(), abs=0.01)
        by_torch = code.choose(block, mean, std, DeviceScores(code, torch.device("cpu")))  # as on a GPU
        assert scores[by_torch] == pytest.approx(scores.max(), abs=0.01)
    assert len(set(chosen)) > 1


def test_candidates_are_draws_of_the_priors_of_their_weights():
    code = blocks()
    drawn = np.concatenate([code.values(block, index) for block in range(3) for index in range(64)])
    members = np.concatenate([code.members(block) for block in range(3) for _ in range(64)])
    assert drawn.dtype == np.float32
    assert stats.kstest(drawn[members < 30], stats.norm(scale=0.3).cdf).pvalue > 1e-3
    assert stats.kstest(drawn[members >= 30], stats.laplace(scale=0.2).cdf).pvalue > 1e-3


# bits back


def quantities(count, seed=0):
    """A posterior and a prior code of many weights."""
    rng = np.random.default_rng(seed)
    std = np.exp(rng.uniform(-4, -1, count))
    q = RoundedPosterior.of(rng.normal(0, 0.3, count), std)
    code = PriorCode.build([density_of(GaussianPrior(0.3), "w")], [(count,)], 12)
    return q, code


def net_of_the_drawn(q, points, exponent=12, scale=0.3):
    w = np.ldexp(points.astype(np.float64), -exponent)
    nats = stats.norm.logpdf(w, q.mean, q.std) - stats.norm.logpdf(w, 0, scale)
    return nats.sum() / math.log(2)


def test_bits_back_over_many_weights_costs_log_q_over_p():
    count = 40_000
    q, code = quantities(count)
    drawn = []
    data = np.random.default_rng(5).choice(4, 1000, p=[0.7, 0.2, 0.05, 0.05])

    def likelihood(points):
        drawn.append(points)
        return categorical(SKEW, 16, 1000)

    codec = bits_back(under_prior(code), likelihood, lambda x: under_posterior(q, 12))
    stack = full_stack(64, words=40_000)
    before, bits = state(stack), stack.bits
    codec.push(stack, data)
    net = stack.bits - bits - categorical_bits(data)
    assert net == pytest.approx(net_of_the_drawn(q, drawn[0]), rel=1e-3)
    assert codec.pop(stack).tolist() == data.tolist()
    assert state(stack) == before


@pytest.mark.parametrize("payload", [bytes(200_000), b"all the same words " * 11_000, bytes(range(256)) * 800],
                         ids=["zeros", "text", "ramp"])  # fmt: skip
def test_draws_with_a_whitened_payload_are_draws(payload):
    count = 20_000
    q, _ = quantities(count)
    words = np.frombuffer(whiten(payload)[: len(payload) // 4 * 4], dtype="<u4").astype(np.uint32)
    points = under_posterior(q, 12).pop(Stack(np.full(16, 1 << 40, dtype=np.uint64), words))
    z = (np.ldexp(points.astype(np.float64), -12) - q.mean) / q.std
    assert abs(z.mean()) < 4 / math.sqrt(count)
    assert z.std() == pytest.approx(1, abs=4 / math.sqrt(2 * count))
    assert stats.kstest(z, "norm").pvalue > 1e-4


def test_gross_grows_by_one_bit_per_halving_and_net_stays():
    count = 8000
    q, _ = quantities(count)
    prior = density_of(GaussianPrior(0.3), "w")
    exponents = np.arange(4, 21, 4)
    gross, refund, ledger = [], [], []
    for m in exponents.tolist():
        code = PriorCode.build([prior], [(count,)], m)
        stack = full_stack(16, words=20_000, seed=1)
        start = stack.bits
        points = under_posterior(q, m).pop(stack)
        refund.append(start - stack.bits)
        middle = stack.bits
        under_prior(code).push(stack, points)
        gross.append(stack.bits - middle)
        ledger.append(net_of_the_drawn(q, points, m))
    slope = np.diff(gross) / count / 4
    assert slope[1:] == pytest.approx(1.0, abs=0.01)
    assert np.diff(refund)[1:] / count / 4 == pytest.approx(1.0, abs=0.01)
    net = np.array(gross) - refund
    assert net[1:] == pytest.approx(np.array(ledger)[1:], rel=5e-3)
    assert net[2:] == pytest.approx(net[2], rel=0.05)  # each grid draws other weights


# posteriors in whole numbers


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-6, 1e3)), min_size=1, max_size=30))
def test_rounding_moves_a_posterior_by_less_than_a_hundredth(moments):
    mean, std = (np.array(column) for column in zip(*moments, strict=True))
    q = RoundedPosterior.of(mean, std)
    assert (np.abs(np.log2(q.std / std)) <= 1 / 64 + 1e-9).all()
    assert (np.abs(q.mean - mean) <= q.std / 128 * (1 + 1e-9) + 1e-12 * np.abs(mean)).all()
    again = RoundedPosterior.of(q.mean, q.std)
    assert (again.std_level == q.std_level).all()
    assert (again.mean_steps == q.mean_steps).all()
    assert 2.0 ** -q.default_exponent() <= q.std.min() < 2.0 ** -q.default_exponent() * 4


def test_last_bits_do_not_change_the_digest_and_others_do():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=5000), np.exp(rng.normal(size=5000))
    q = RoundedPosterior.of(mean, std)
    noise = lambda: 1 + 1e-12 * rng.standard_normal(5000)  # noqa: E731
    for _ in range(5):
        assert RoundedPosterior.of(mean * noise(), std * noise()).digest(4) == q.digest(4)
    mean[77] += q.std[77] / 32
    assert RoundedPosterior.of(mean, std).digest(4) != q.digest(4)


@pytest.mark.parametrize(("mean", "std"), [(0, 0), (0, -1), (0, np.nan), (np.nan, 1), (np.inf, 1), (0, np.inf)])
def test_moments_that_make_no_sense_are_refused(mean, std):
    with pytest.raises(LayerError, match="NaN, infinite or not above zero; train it again"):
        RoundedPosterior.of(np.array([0.0, mean]), np.array([1.0, std]))


def test_a_weight_that_was_not_drawn_from_q_is_refused():
    points = np.zeros(COUNT, dtype=np.int64)
    points[0] = 1 << 30
    with pytest.raises(LayerError, match="it was not drawn from this q"):
        under_posterior(POSTERIOR, 10).push(full_stack(), points)
    points[0] = 1 << 50
    with pytest.raises(LayerError, match="beyond the reach of its prior's table; train with a wider prior"):
        under_prior(code_of("gaussian")).push(full_stack(), points)


# labels


def test_frequencies_of_labels_are_the_softmax():
    counts = frequencies(LOGITS)
    assert (counts >= 1).all()
    assert (counts.sum(1) == 1 << 24).all()
    truth = special.softmax(LOGITS / 4096.0, axis=1)
    assert np.abs(counts / 2.0**24 - truth).max() < 1e-6
    y = np.random.default_rng(0).integers(0, 5, COUNT)
    likely = truth[np.arange(COUNT), y] > 1e-4
    real = -np.log2(truth[np.arange(COUNT), y])[likely].sum()
    assert code_bits(LOGITS[likely], y[likely]) == pytest.approx(real, rel=1e-3)


def test_labels_beyond_all_belief_still_have_a_code():
    logits = np.array([[10**9, -(10**9), 0]])
    stack = full_stack()
    before = state(stack)
    labels(logits).push(stack, np.array([1]))
    assert labels(logits).pop(stack).tolist() == [1]
    assert state(stack) == before
