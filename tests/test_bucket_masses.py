"""A point estimate is charged what the coder of its prior pays on its grid; buckets never cost more than the divergence."""

import json
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

import bitsback
from bitsback.coding.ans import Stack
from bitsback.coding.lattice import PriorCode, under_prior
from bitsback.coding.tables import TOTAL_BITS, PriorTable, bucket_of, start_of
from bitsback.config import Config, Experiment
from bitsback.errors import LedgerError, PriorError
from bitsback.formats.side_information import densities_of
from bitsback.kl import kl_each
from bitsback.ledger import Entry, Ledger
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize, take_ledger
from bitsback.posteriors import GaussianPosterior, GaussianPosteriorSettings, PointPosteriorSettings
from bitsback.priors import (
    AdaptiveMixturePrior,
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
    registry,
)
from bitsback.priors.exact_densities import density_of
from bitsback.priors.point_code import point_bits
from bitsback.testing import check_prior
from bitsback.testing._priors import bucket_masses, masses_between
from bitsback.training import TrainingSettings, train
from bitsback.units import nats_to_bits

SHAPE = torch.Size([2, 3])


def group_prior():
    prior = GroupGaussianPrior(SHAPE, axis=1, scale=0.3)
    prior.log_scale.add_(torch.tensor([[-1.0, 0.0, 1.0]]))
    return prior


PRIORS = {
    "gaussian": lambda: GaussianPrior(0.3),
    "gaussian off centre": lambda: GaussianPrior(0.3, mean=1.1),
    "laplace": lambda: LaplacePrior(0.3),
    "logistic": lambda: LogisticPrior(0.3),
    "student_t": lambda: StudentTPrior(0.3),
    "student_t of df 1.5": lambda: StudentTPrior(0.3, df=1.5),
    "cauchy": lambda: CauchyPrior(0.3),
    "horseshoe": lambda: HorseshoePrior(0.3),
    "horseshoe off the grid": lambda: HorseshoePrior(0.3, mean=0.4),
    "scale_mixture": lambda: ScaleMixturePrior([0.05, 0.6], [0.75, 0.25]),
    "scale_mixture narrower than the grid": lambda: ScaleMixturePrior([0.001, 1.0], [0.75, 0.25]),
    "adaptive_mixture": lambda: AdaptiveMixturePrior([0.15, 0.01, 0.15], [0.3, 0.4, 0.3], [-0.3, 0.02, 0.3]),
    "spike_and_slab": lambda: SpikeAndSlabPrior([0.02, 0.6], [0.75, 0.25]),
    "spike_and_slab narrower than the grid": lambda: SpikeAndSlabPrior([0.002, 0.6], [0.75, 0.25]),
    "group_gaussian": group_prior,
    "checkpoint": lambda: CheckpointPrior(torch.linspace(-1.3, 1.4, 6).reshape(SHAPE), 0.1, source="an earlier run"),
    "pyro normal": lambda: PyroPrior("Normal", {"loc": 0.1, "scale": 2.0}, scale=0.3),
    "pyro asymmetric": lambda: PyroPrior("AsymmetricLaplace", {"loc": 0.0, "scale": 1.0, "asymmetry": 2.0}, scale=0.3),
}
STEPS = (2.0**-2, 2.0**-4, 2.0**-8)
each_prior = pytest.mark.parametrize("name", PRIORS)
each_step = pytest.mark.parametrize("step", STEPS)


def buckets_of(prior, step):
    """For every weight with numbers of its own: its place, the first point of every bucket, and how many points that holds."""
    placed = density_of(prior, "w")
    centres, scales = np.broadcast_arrays(placed.centre, placed.scale)
    for at in np.ndindex(centres.shape):
        half = PriorTable.build(placed.standard, step / scales[at]).half
        bucket = np.arange(-half, half)
        size, exponent = start_of(bucket)
        yield at, np.where(bucket < 0, -1 - size, size) + round(centres[at] / step), 2.0**exponent


def bits_at(prior, points, step, at):
    """Of points under the prior of the weight at a place of the tensor."""
    return point_bits(prior, "w", torch.from_numpy(points * step).reshape(-1, *[1] * len(at)), step)[(slice(None), *at)]


# what is charged is a code


@each_step
@each_prior
def test_the_probabilities_of_all_points_sum_to_one(name, step):
    prior = PRIORS[name]()
    for at, points, counts in buckets_of(prior, step):
        bits = bits_at(prior, points, step, at)
        assert (bits >= 0).all()
        assert 1 - 1e-6 <= math.fsum(counts * 2.0**-bits) <= 1 + 1e-9


@each_step
@each_prior
def test_points_beyond_the_table_add_next_to_nothing(name, step):
    """Each takes a share of 2^-28 of its bucket's mass at most, and never less than an infinite number of bits."""
    prior = PRIORS[name]()
    for at, points, _ in buckets_of(prior, step):
        size = int(np.abs(points).max())
        beyond = np.array([-4 * size, 4 * size + 1, 9 * size])
        edges = step * (beyond[:, None] + np.array([-0.5, 0.5]))
        masses = torch.stack([masses_between(prior, torch.from_numpy(pair))[(0, *at)] for pair in edges]).numpy()
        bits = bits_at(prior, beyond, step, at)
        assert np.isfinite(bits).all()
        assert (2.0**-bits <= 2.0**-TOTAL_BITS * masses * (1 + 1e-6) + 1e-300).all()


@pytest.mark.parametrize(("step", "density_bits"), [(2.0**-4, -4.2), (2.0**-2, -6.2)])
def test_a_component_narrower_than_the_grid_costs_what_its_table_spends_and_never_less_than_nothing(step, density_bits):
    prior = PRIORS["scale_mixture narrower than the grid"]().double()
    zero = torch.zeros((), dtype=torch.float64)
    assert float(-nats_to_bits(prior().log_prob(zero)) - math.log2(step)) == pytest.approx(density_bits, abs=0.05)
    least = -math.log2(float(bucket_masses(prior, step, 0, 0)))
    assert (
        0.3 < least < point_bits(prior, "w", zero, step) < 6.0
    )  # four points of the density miss the spike: dearer, not wrong


@each_step
@pytest.mark.parametrize("name", [name for name in PRIORS if "narrower" not in name and name != "adaptive_mixture"])
def test_elsewhere_the_table_holds_the_masses_of_the_buckets(name, step):
    """In expectation under the masses, what the table takes more: next to nothing, and more near a pole. Its centre is on the grid."""
    if (name, step) == ("spike_and_slab", 2.0**-2):
        return  # a spike of .02 on a grid of .25
    rough = 4e-3 if "horseshoe" in name else 1e-4
    prior = PRIORS[name]()
    for at, points, _ in buckets_of(prior, step):
        middle, centre = points[len(points) // 2], float(np.broadcast_to(density_of(prior, "w").centre, SHAPE)[at or (0, 0)])
        edges = torch.from_numpy(centre + step * (np.arange(-2000, 2002) - 0.5))
        masses = masses_between(prior, edges)[(slice(None), *at)].numpy()
        bits = bits_at(prior, np.arange(middle - 2000, middle + 2001), step, at)
        seen = masses > 1e-12
        assert float((masses * (np.log2(masses, where=seen, out=np.zeros_like(masses)) + bits))[seen].sum()) < rough


# the coder pays it


def model_of(kind, tmp_path, grid_step):
    settings = {"kind": kind, "learn": "none"}
    if kind == "pyro":
        settings |= {
            "distribution": "AsymmetricLaplace",
            "arguments": {"loc": 0.1, "scale": 1.0, "asymmetry": 2.0},
            "scale": 0.3,
        }
    if kind == "checkpoint":
        earlier = bayesianize(nn.Linear(600, 7), "gaussian")
        train(earlier, CategoricalLikelihood(7), bitsback.Dataset("toy", examples(), None, 7), directory=tmp_path / "earlier",
              training=TrainingSettings(epochs=1), progress=False)  # fmt: skip
        settings["run"] = str(tmp_path / "earlier")
    return bayesianize(nn.Linear(600, 7), settings, posterior=PointPosteriorSettings(grid_step=grid_step))


def examples():
    torch.manual_seed(0)
    return bitsback.Examples(torch.randn(40, 600), torch.randint(7, (40,)))


def coded_bits(model, exponent):
    """By the table entries that a message codes the weights with, and the growth of a stack that they are pushed onto."""
    code = PriorCode.build(densities_of(model), [tuple(weight.posterior.mean.shape) for weight in model.weights], exponent)
    weights = torch.cat([q.mean.detach().double().flatten() for q in model.posteriors()]).numpy()
    points = np.rint(weights * 2.0**exponent).astype(np.int64)
    bucket, low_bits, _ = bucket_of(points - code.centre)
    tables = [code.tables[number] for number in code.table_of]
    entries = [table.cumulative[table.half + b : table.half + b + 2] for table, b in zip(tables, bucket, strict=True)]
    rng = np.random.default_rng(0)
    stack = Stack(rng.integers(1 << 32, 1 << 64, 4, dtype=np.uint64), np.zeros(0, dtype=np.uint32))
    before = stack.bits
    under_prior(code).push(stack, points)
    return float((TOTAL_BITS - np.log2(np.diff(entries).ravel()) + low_bits).sum()), stack.bits - before


@pytest.mark.parametrize("exponent", [1, 4, 8])
@pytest.mark.parametrize("kind", sorted(registry))
def test_the_ledger_of_a_point_is_what_the_coder_pays(kind, exponent, tmp_path):
    torch.manual_seed(3)
    model = model_of(kind, tmp_path, 2.0**-exponent)
    ledger = take_ledger(model, CategoricalLikelihood(7), examples())
    assert {entry.method for entry in ledger.entries} == {"point"}
    assert ledger.grid_step == 2.0**-exponent
    by_tables, by_stack = coded_bits(model, exponent)
    assert ledger.gross_weight_bits == pytest.approx(by_tables, rel=1e-6)
    # the integer division of the coder takes up to 1.1e-3 bits more of a symbol that is neither rare nor a power of two
    assert abs(by_stack - ledger.gross_weight_bits) < 1.5e-3 * ledger.weights
    assert float(model.kl_bits(exact=True)) == pytest.approx(ledger.net_weight_bits, rel=1e-6)
    assert all(0 < entry.gross_bits == entry.net_bits for entry in ledger.entries)


def test_a_grid_need_not_be_a_power_of_two():
    model = bayesianize(
        nn.Linear(600, 7), {"kind": "gaussian", "learn": "none"}, posterior=PointPosteriorSettings(grid_step=0.1)
    )
    entry = take_ledger(model, CategoricalLikelihood(7), examples()).entries[0]
    level = np.rint(model.weights[0].posterior.mean.detach().double().numpy() / 0.1)
    masses = stats.norm.cdf((level + 0.5) * 0.1, scale=0.3) - stats.norm.cdf((level - 0.5) * 0.1, scale=0.3)
    assert entry.gross_bits == pytest.approx(float(-np.log2(masses).sum()), rel=1e-4)


def test_a_grid_too_fine_for_a_table_takes_the_lower_bits_as_they_are():
    prior, weights = CauchyPrior(64.0), torch.tensor([-3.0, 3.0, 1.0 + 2.0**-24, 500.0], dtype=torch.float64)
    with pytest.raises(PriorError, match="too fine"):
        PriorTable.build(density_of(prior, "w").standard, 2.0**-24 / 64)
    wanted = -nats_to_bits(prior().log_prob(weights)).detach().numpy() + 24
    assert point_bits(prior, "w", weights, 2.0**-24) == pytest.approx(wanted, abs=0.02)


# buckets lose nothing


def posteriors(width):
    """Means and stds in widths of the prior, from far narrower than a grid to wider than the prior."""
    for mean in (0.0, 0.003, 0.4, -1.3):
        for std in (1e-4, 0.01, 0.2, 1.5):
            yield mean * width, std * width


@each_step
@each_prior
def test_the_code_of_buckets_is_never_dearer_than_the_divergence(name, step):
    """Sum of Q_k log2 Q_k / P_k <= KL (data processing), whatever the step; stds below and above it."""
    prior = PRIORS[name]().double()
    widths, centres = (
        prior.typical_scale().broadcast_to(SHAPE),
        torch.as_tensor(getattr(prior, "mean", 0.0)).broadcast_to(SHAPE),
    )
    compared = 0
    for mean, std in posteriors(float(widths[0, 0])):
        mean = mean + float(centres[0, 0])
        q = GaussianPosterior(torch.full(SHAPE, mean, dtype=torch.float64), std)
        divergence = float(nats_to_bits(kl_each(q, prior).detach()[0, 0]))
        first, last = math.floor((mean - 9 * std) / step), math.ceil((mean + 9 * std) / step)
        if last - first > 20_000:
            continue
        masses = bucket_masses(prior, step, first, last).reshape(last - first + 1, -1)[:, 0].numpy()
        edges = (step * (np.arange(first, last + 2) - 0.5) - mean) / std
        given = np.where(edges[1:] > 0, special.ndtr(-edges[:-1]) - special.ndtr(-edges[1:]), np.diff(special.ndtr(edges)))
        kept = given > 0
        assert given.sum() == pytest.approx(1, abs=1e-12)
        bits = float((given[kept] * np.log2(given[kept] / masses[kept])).sum())
        assert -1e-9 < bits <= divergence + 1e-6
        compared += 1
    assert compared >= 12


# guards


@pytest.mark.parametrize("method", ["point", "float32", "closed_form", "quadrature"])
def test_weights_below_nothing_are_refused(method):
    with pytest.raises(LedgerError, match=r"entry 'w' costs -2,232 bits, but no weights cost less than nothing; .*--recompute"):
        Entry.of("w", weights=650, net_bits=-2232.0, refund_bits=0.0, method=method)


def test_rounding_and_the_error_of_draws_may_fall_below_zero_a_little():
    """A divergence of zero comes out as -1e-10, or within some standard errors of zero when it is drawn."""
    assert Entry.of("w", weights=650, net_bits=-1e-8, refund_bits=0.0).net_bits == -1e-8
    drawn = {"weights": 650, "refund_bits": 0.0, "method": "monte_carlo"}
    assert Entry.of("w", net_bits=-2.9, stderr=0.5, **drawn).gross_bits == -2.9
    with pytest.raises(LedgerError, match="less than nothing"):
        Entry.of("w", net_bits=-3.1, stderr=0.5, **drawn)
    with pytest.raises(LedgerError, match="less than nothing"):
        Entry.of("w", weights=650, net_bits=-1e-8, refund_bits=0.0, method="point")


def test_gross_bits_and_refund_may_have_any_sign_where_the_net_holds():
    assert Entry.of("w", weights=2, net_bits=3.0, refund_bits=-10.0).gross_bits == -7.0


def test_posteriors_that_equal_their_prior_cost_nothing_and_are_not_refused():
    """The same Gaussian twice, as a mixture: the quadrature of nothing lies within the rounding that is allowed."""
    layer = nn.Linear(600, 7)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    prior = {"kind": "scale_mixture", "scales": [0.3, 0.3], "weights": [0.5, 0.5], "learn": "none"}
    model = bayesianize(layer, prior, posterior=GaussianPosteriorSettings(std=0.3, relative_to="absolute"))
    ledger = take_ledger(model, CategoricalLikelihood(7), examples(), samples=1)
    assert {entry.method for entry in ledger.entries} == {"quadrature"}
    assert abs(ledger.net_weight_bits) < 1e-7 * ledger.weights


def test_a_ledger_of_an_earlier_version_with_bits_below_zero_is_not_read():
    ledger = Ledger((Entry.of("w", weights=2, net_bits=3.0, refund_bits=0.0, method="point"),), 2, 20.0, 100.0, 30)
    facts = ledger.to_dict()
    facts["entries"][0] |= {"net_bits": -3.0, "gross_bits": -3.0}
    with pytest.raises(LedgerError, match="bitsback ledger RUN --recompute"):
        Ledger.from_json(json.dumps(facts))


def test_a_prior_that_codes_several_weights_at_once_is_refused_before_training():
    prior = {"kind": "pyro", "distribution": "MultivariateNormal", "learn": "none",
             "arguments": {"loc": [0.0, 0.0], "covariance_matrix": [[1.0, 0.5], [0.5, 1.0]]}}  # fmt: skip
    model = bayesianize(nn.Linear(2, 3, bias=False), prior, posterior="point")
    data = bitsback.Dataset("toy", bitsback.Examples(torch.randn(4, 2), torch.tensor([0, 1, 2, 0])), None, 3)
    with pytest.raises(PriorError, match="'weight' does not code its weights one by one; choose another prior"):
        train(model, CategoricalLikelihood(3), data, progress=False)


# contract for priors of one's own


class Heavier(torch.distributions.Laplace):
    """More than one, by less than an integral with a tolerance of 1e-7 sees."""

    def log_prob(self, value):
        return super().log_prob(value) + 5e-8


class HeavierPrior(LaplacePrior):
    def forward(self):
        return Heavier(self.mean, self.typical_scale(), validate_args=False)


def test_the_contract_adds_the_masses_of_buckets_up():
    check_prior(LaplacePrior(0.3))
    with pytest.raises(AssertionError, match=r"laplace: its mass on a grid of step .* adds up to 1\.00000005"):
        check_prior(HeavierPrior(0.3))


# what was seen: bits below zero, and a verdict in favour of a network that knows nothing


def test_weights_that_decay_to_nothing_under_a_peaked_prior_cost_bits(tmp_path):
    config = Config.model_validate(
        {
            "data": {"kind": "digits"},
            "network": {"kind": "sequential", "layers": ["Flatten", {"Linear": {"bias": False}}]},
            "prior": {"kind": "scale_mixture", "scales": [0.001, 1.0], "weights": [0.9, 0.1], "learn": "none"},
            "posterior": {"kind": "point"},
            "training": {"epochs": 30, "optimizer": {"name": "AdamW", "lr": 0.01, "arguments": {"weight_decay": 80}}},
        }
    )
    outcome = Experiment.build(config).train(tmp_path / "run", progress=False)
    ledger = outcome.ledger
    assert outcome.test_error > 0.8
    assert ledger.net_weight_bits > 0
    assert ledger.net_bits > ledger.uniform_bits  # a network that knows nothing is a loss, and the sentence says so
    assert ledger.sentence().startswith("The labels cost ")


# and scipy says the same


@pytest.mark.parametrize("step", [2.0**-3, 2.0**-6, 2.0**-10])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student_t", "cauchy", "logistic"])
def test_points_are_recomputed_from_the_file_alone(kind, step, tmp_path, monkeypatch, capsys):
    data = bitsback.Dataset("toy", bitsback.Examples(torch.randn(40, 30), torch.randint(7, (40,))), None, 7)
    prior = {"kind": kind, "scale": 0.1, "mean": 0.3, "learn": "none"}
    layer = nn.Linear(30, 7)
    nn.init.constant_(layer.bias, 9.0)  # far out: beyond the table of a Gaussian
    model = bayesianize(layer, prior, posterior=PointPosteriorSettings(grid_step=step))
    settings = TrainingSettings(epochs=2)
    ledger = train(model, CategoricalLikelihood(7), data, directory=tmp_path / "run", training=settings, progress=False).ledger
    monkeypatch.setattr("sys.argv", ["recompute_ledger.py", str(tmp_path / "run")])
    runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "recompute_ledger.py"), run_name="__main__")
    stated, recomputed = map(float, re.findall(r"[\d.]+(?= bits)|(?<=recomputed )[\d.]+", capsys.readouterr().out))
    assert stated == pytest.approx(ledger.net_weight_bits, rel=1e-6)
    assert recomputed == pytest.approx(stated, rel=5e-3 if step > 0.1 else 5e-4)  # a step wider than a prior with a kink
