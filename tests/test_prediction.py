"""A prediction is a mixture over draws: every number of it against enumeration, scipy, or a sum by hand."""

import copy
import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bitsback
from bitsback.data import Examples
from bitsback.errors import DataError, FileError, LayerError
from bitsback.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    TokensLikelihood,
)
from bitsback.likelihoods._uncertainty import COUNTS_AT_ONCE, CountMixture, NormalMixture
from bitsback.model import Prediction, bayesianize, evaluate

torch.set_num_threads(1)


def entropy_of(p):
    """Of probabilities on the last axis, in bits."""
    return stats.entropy(p, base=2, axis=-1)


# labels


def test_two_classes_by_hand():
    """Draws that say 1/4 and 3/4: the mixture is a coin of 1 bit, either draw has 2 - 3/4 log2 3 bits."""
    draws = [torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.75, 0.25]]).log()]
    found = Prediction.of(CategoricalLikelihood(2), draws, torch.tensor([1]))
    each = 2 - 0.75 * math.log2(3)
    assert found.mean.tolist() == [pytest.approx([0.5, 0.5])]
    assert found.entropy_bits.item() == pytest.approx(1.0, abs=1e-6)
    assert found.mutual_information_bits.item() == pytest.approx(1 - each, abs=1e-6)
    assert found.bits.item() == pytest.approx(1.0, abs=1e-6)
    assert found.std is None
    assert found.samples == 2


@pytest.mark.parametrize("likelihood", [CategoricalLikelihood(5), BernoulliLikelihood()])
@pytest.mark.parametrize("draws", [1, 7])
def test_entropy_and_information_of_labels_by_brute_force(likelihood, draws):
    """Information from the joint distribution of weights and label: sum p(w, y) log2 p(w, y) / (p(w) p(y))."""
    outputs = 3 * torch.randn(draws, 6, 5).double()
    found = Prediction.of(likelihood, outputs)
    p = likelihood.predict(outputs).numpy()
    p = p if isinstance(likelihood, CategoricalLikelihood) else np.stack([1 - p, p], -1)
    joint = p / draws
    apart = joint.sum(0, keepdims=True) / draws
    assert np.allclose(found.entropy_bits, entropy_of(p.mean(0)), atol=1e-12)
    assert np.allclose(found.mutual_information_bits, (joint * np.log2(joint / apart)).sum((0, -1)), atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_positions_have_an_entropy_each(shape):
    outputs = torch.randn(3, 2, *shape)
    found = Prediction.of(BernoulliLikelihood(), outputs)
    assert found.mean.shape == found.entropy_bits.shape == found.mutual_information_bits.shape == (2, *shape)
    position = Prediction.of(BernoulliLikelihood(), outputs.flatten(2)[..., -1])
    assert np.allclose(found.entropy_bits.flatten(1)[:, -1], position.entropy_bits)
    assert np.shape(found.records()[0]["entropy_bits"]) == shape


@pytest.mark.parametrize(
    ("likelihood", "axis", "shape"),
    [(CategoricalLikelihood(4), 1, (2, 3)), (CategoricalLikelihood(4), 2, (6,)), (TokensLikelihood(4), 2, (6,))],
)
def test_every_position_has_its_distribution_of_classes(likelihood, axis, shape):
    """Wherever the outputs have the axis of the classes: as the likelihood of one label for each position says."""
    logits = torch.randn(3, 5, *shape, 4)
    found = Prediction.of(likelihood, logits.movedim(-1, axis + 1))
    flat = Prediction.of(CategoricalLikelihood(4), logits.reshape(3, -1, 4))
    assert found.mean.shape == (5, *shape, 4)
    assert found.entropy_bits.shape == found.mutual_information_bits.shape == (5, *shape)
    assert torch.allclose(found.mean.flatten(0, -2), flat.mean)
    assert torch.allclose(found.entropy_bits.flatten(), flat.entropy_bits)
    assert torch.allclose(found.mutual_information_bits.flatten(), flat.mutual_information_bits)
    record = found.records()[0]
    assert np.shape(record["class"]) == np.shape(record["entropy_bits"]) == shape


def test_draws_that_agree_tell_nothing_and_rounding_does_not_make_it_negative():
    logits = torch.randn(200, 10)
    draws = [logits + 1e-7 * torch.randn(200, 10) for _ in range(9)]
    found = Prediction.of(CategoricalLikelihood(10), draws)
    assert bool((found.mutual_information_bits >= 0).all())
    assert float(found.mutual_information_bits.max()) < 1e-6


def test_labels_have_no_interval():
    found = Prediction.of(CategoricalLikelihood(3), [torch.zeros(1, 3)])
    with pytest.raises(DataError, match="labels have probabilities, not intervals"):
        found.interval()
    assert not found.has_intervals
    assert "low" not in found.arrays()


# real targets


def normals(means, stds, step=0.25):
    """A prediction of one number, whose draws have these means and noise stds."""
    likelihood = GaussianLikelihood(noise="predicted", target_step=step, standardise=False)
    outputs = [torch.tensor([[mean, math.log(std)]], dtype=torch.float64) for mean, std in zip(means, stds, strict=True)]
    return likelihood, outputs


MIXTURES = [
    ([0.0], [1.0]),
    ([0.0, 0.0], [1.0, 4.0]),
    ([-1.0, 0.5, 2.0], [0.5, 1.0, 0.7]),
    ([0.0, 100.0, 1000.0], [1.0, 3.0, 0.5]),
    ([0.0, 0.1, 0.2], [0.3, 10.0, 80.0]),
]


@pytest.mark.parametrize(("means", "stds"), MIXTURES)
def test_entropy_of_a_mixture_of_normals_by_quadrature(means, stds):
    likelihood, outputs = normals(means, stds)
    found = Prediction.of(likelihood, outputs)

    def integrand(y):
        p = stats.norm.pdf(y, means, stds).mean()
        return -p * math.log2(p) if p > 0 else 0.0

    ends = np.unique([mean + k * std for mean, std in zip(means, stds, strict=True) for k in range(-9, 10)])
    pieces = [integrate.quad(integrand, *pair, epsabs=1e-12, epsrel=1e-10)[0] for pair in itertools.pairwise(ends)]
    whole = math.fsum(pieces) - math.log2(0.25)
    each = np.mean([math.log2(std * math.sqrt(2 * math.pi * math.e)) for std in stds]) - math.log2(0.25)
    assert found.entropy_bits.item() == pytest.approx(whole, abs=1e-6)
    assert found.mutual_information_bits.item() == pytest.approx(whole - each, abs=1e-6)


def test_entropy_of_real_targets_is_that_of_their_grid():
    """Summed over grid points, as the likelihood codes them."""
    likelihood, outputs = normals([-1.0, 0.5, 2.0], [0.5, 1.0, 0.7])
    grid = torch.arange(-80, 81).double()[:, None] / 4
    found = Prediction.of(likelihood, [each.expand(len(grid), 2) for each in outputs], grid)
    assert float(torch.exp2(-found.bits).sum()) == pytest.approx(1.0, abs=1e-9)
    assert float((torch.exp2(-found.bits) * found.bits).sum()) == pytest.approx(found.entropy_bits[0].item(), abs=1e-6)


@pytest.mark.parametrize(("means", "stds"), MIXTURES)
@pytest.mark.parametrize("level", [0.5, 0.9, 0.999])
def test_interval_of_a_mixture_of_normals_by_root_finding(means, stds, level):
    likelihood, outputs = normals(means, stds)
    found = Prediction.of(likelihood, outputs).interval(level)
    for end, q in zip(found, ((1 - level) / 2, (1 + level) / 2), strict=True):
        root = optimize.brentq(lambda y, q=q: stats.norm.cdf(y, means, stds).mean() - q, -1e4, 1e4, xtol=1e-12)
        assert end.shape == (1, 1)
        # between two far components the distribution function is flat, and any point of the plain is a quantile
        assert stats.norm.cdf(end.item(), means, stds).mean() == pytest.approx(q, abs=1e-12)
        assert end.item() == pytest.approx(root, rel=1e-6, abs=1e-6) or max(means) > 100 * min(stds)


def test_intervals_far_from_zero_keep_their_width():
    likelihood = GaussianLikelihood(150.0, noise="fixed", target_step=1.0, standardise=True)
    likelihood.fit(torch.linspace(-500, 500, 101).double() + 1_700_000_384.0)
    low, high = Prediction.of(likelihood, torch.zeros(3, 1, 1)).interval(0.9)
    assert (high - low).item() == pytest.approx(2 * stats.norm.ppf(0.95) * 150, rel=1e-4)


def test_several_targets_have_intervals_and_entropies_in_their_own_units():
    likelihood = GaussianLikelihood(noise="learned", target_step=0.1, standardise=True)
    likelihood.fit(torch.randn(50, 3) * torch.tensor([1.0, 10.0, 100.0]))
    found = Prediction.of(likelihood, torch.zeros(2, 4, 3))
    low, high = found.interval()
    expected = 2 * stats.norm.ppf(0.95) * found.std.numpy()
    assert np.allclose(high - low, expected)
    assert found.entropy_bits.shape == (4, 3)
    assert found.entropy_bits[0, 2] - found.entropy_bits[0, 1] == pytest.approx(math.log2(10), rel=0.2)


def test_many_numbers_are_worked_off_in_parts(monkeypatch):
    outputs = torch.randn(3, 50, 2).double()
    likelihood = GaussianLikelihood(noise="predicted", target_step=0.01, standardise=False)
    whole = Prediction.of(likelihood, outputs)
    expected = (whole.entropy_bits, *whole.interval())
    monkeypatch.setattr("bitsback.likelihoods._uncertainty.NUMBERS_AT_ONCE", 1000)
    parts = Prediction.of(likelihood, outputs)
    for one, other in zip(expected, (parts.entropy_bits, *parts.interval()), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


# counts

RATES = [[0.0], [0.01], [3.0], [0.5, 2.0, 9.0], [1.0, 400.0], [700.0, 720.0, 800.0], [20_000.0, 25_000.0]]


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_poisson_mixtures_by_summation(rates):
    mixture = CountMixture()
    for rate in rates:
        mixture.add(torch.tensor([rate]).double(), torch.tensor([rate]).double())
    counts = np.arange(0, int(max(rates) + 12 * math.sqrt(max(rates)) + 40))
    pmf = np.stack([stats.poisson.pmf(counts, rate) for rate in rates])
    total, each = mixture.entropies_bits()
    assert total.item() == pytest.approx(entropy_of(pmf.mean(0)), abs=1e-8)
    assert each.item() == pytest.approx(entropy_of(pmf).mean(), abs=1e-8)
    cumulated = np.cumsum(pmf.mean(0))
    for level in (0.001, 0.05, 0.4, 0.8, 0.95, 0.999):
        assert mixture.quantile(level).item() == np.searchsorted(cumulated, level)


@pytest.mark.parametrize("dispersion", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("means", [[0.2], [0.5, 2.0, 9.0], [30.0, 600.0]], ids=str)
def test_negative_binomial_mixtures_by_summation(dispersion, means):
    mixture = CountMixture(dispersion)
    for mean in means:
        m = torch.tensor([mean]).double()
        mixture.add(m, m + m * m / dispersion)
    counts = np.arange(150_000)
    pmf = np.stack([stats.nbinom.pmf(counts, dispersion, dispersion / (dispersion + mean)) for mean in means])
    total, each = mixture.entropies_bits()
    assert total.item() == pytest.approx(entropy_of(pmf.mean(0)), abs=1e-8)
    assert each.item() == pytest.approx(entropy_of(pmf).mean(), abs=1e-8)
    for level in (0.05, 0.5, 0.95):
        assert mixture.quantile(level).item() == np.searchsorted(np.cumsum(pmf.mean(0)), level)


def test_a_negative_binomial_likelihood_predicts_with_its_dispersion():
    likelihood, means = NegativeBinomialLikelihood(2.5), torch.tensor([4.0, 9.0]).double()
    found = Prediction.of(likelihood, means.log().reshape(2, 1))
    pmf = np.stack([stats.nbinom.pmf(np.arange(2000), 2.5, 2.5 / (2.5 + mean)) for mean in means.tolist()])
    assert found.mean.item() == pytest.approx(6.5)
    assert found.std.item() == pytest.approx(math.sqrt(pmf.mean(0) @ np.arange(2000.0) ** 2 - 6.5**2), rel=1e-6)
    assert found.entropy_bits.item() == pytest.approx(entropy_of(pmf.mean(0)), abs=1e-5)
    assert found.mutual_information_bits.item() == pytest.approx(entropy_of(pmf.mean(0)) - entropy_of(pmf).mean(), abs=1e-5)
    low, high = found.interval(0.8)
    cumulated = np.cumsum(pmf.mean(0))
    assert (low.item(), high.item()) == (np.searchsorted(cumulated, 0.1), np.searchsorted(cumulated, 0.9))


def test_counts_beside_each_other_may_differ_much():
    """One number needs a single block of counts, the other many, from another start."""
    rates = torch.tensor([[0.1, 5000.0], [2000.0, 1.0]]).double()
    mixture = CountMixture()
    mixture.add(rates, rates)
    assert stats.poisson.isf(1e-14, 5000) - stats.poisson.ppf(1e-14, 5000) > COUNTS_AT_ONCE
    assert mixture.quantile(0.5).tolist() == stats.poisson.ppf(0.5, rates.numpy()).tolist()
    expected = [[stats.poisson(rate).entropy() / math.log(2.0) for rate in row] for row in rates.tolist()]
    assert np.allclose(mixture.entropies_bits()[0], expected, atol=1e-6)


def test_rates_and_their_interval():
    found = Prediction.of(PoissonLikelihood(), torch.tensor([1.0, 4.0]).log().reshape(2, 1))
    assert found.std.item() == pytest.approx(math.sqrt(2.5 + 1.5**2))  # mean of the variances, variance of the means
    record = found.records(level=0.8)[0]
    both = stats.poisson.cdf(np.arange(20)[:, None], [1.0, 4.0]).mean(1)
    assert (record["low"], record["high"]) == (np.searchsorted(both, 0.1), np.searchsorted(both, 0.9))
    assert set(record) == {"rate", "low", "high", "entropy_bits", "mutual_information_bits"}


@pytest.mark.parametrize("rate", [1e15, math.inf])
def test_rates_beyond_all_sums_are_refused(rate):
    found = Prediction.of(PoissonLikelihood(), [torch.tensor([rate]).double().log()])
    with pytest.raises(DataError, match=r"a predicted rate is .*; entropies and intervals need smaller rates"):
        _ = found.entropy_bits


# bits of targets


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets"),
    [
        (CategoricalLikelihood(4), torch.randn(5, 8, 4), torch.randint(4, (8,))),
        (BernoulliLikelihood(), torch.randn(5, 8, 3), torch.randint(2, (8, 3)).float()),
        (GaussianLikelihood(0.5, noise="fixed", target_step=0.01), torch.randn(5, 8, 1), torch.randn(8, 1)),
        (PoissonLikelihood(), torch.randn(5, 8), torch.randint(5, (8,))),
        (NegativeBinomialLikelihood(2.0), torch.randn(5, 8, 2), torch.randint(5, (8, 2))),
        (
            CategoricalLikelihood(4, ignore=-100),
            torch.randn(5, 8, 4, 6),
            torch.randint(4, (8, 6)).where(torch.rand(8, 6) < 0.5, -100),
        ),
        (TokensLikelihood(5), torch.randn(5, 8, 3, 5), torch.randint(5, (8, 3))),
    ],
)
def test_bits_of_targets_are_those_of_the_mean_probability(likelihood, outputs, targets):
    found = Prediction.of(likelihood, outputs, targets)
    probability = np.mean([2.0 ** -likelihood.bits(each, targets).detach().double().numpy() for each in outputs], 0)
    assert found.bits.shape == (8,)
    assert np.allclose(found.bits, -np.log2(probability), rtol=1e-6)


def test_bits_beyond_the_range_of_probabilities():
    outputs = torch.tensor([[0.0, 5000.0]]), torch.tensor([[0.0, 6000.0]])
    found = Prediction.of(CategoricalLikelihood(2), outputs, torch.tensor([0]))
    assert found.bits.item() == pytest.approx(5000 / math.log(2.0) + 1, rel=1e-6)


def test_targets_that_do_not_fit():
    with pytest.raises(DataError, match="3 targets were given for 2 inputs; give one for each"):
        Prediction.of(CategoricalLikelihood(2), [torch.zeros(2, 2)], torch.tensor([0, 1, 1]))
    with pytest.raises(DataError, match="labels must be whole numbers from 0 to 1"):
        Prediction.of(CategoricalLikelihood(2), [torch.zeros(2, 2)], torch.tensor([0, 2]))


# models


def model_of(posterior="gaussian", **prior):
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    return bayesianize(network, {"kind": "gaussian", **prior}, posterior=posterior, seed=3)


def test_a_model_predicts_with_the_draws_of_evaluate():
    model, likelihood = model_of(), CategoricalLikelihood(3)
    inputs, targets = torch.randn(1100, 4), torch.randint(3, (1100,))
    found = model.predict(inputs, 12, likelihood=likelihood, targets=targets, seed=5)
    paid = evaluate(model, likelihood, Examples(inputs, targets), samples=12, seed=5)
    assert found.samples == 12
    assert likelihood.error(found.mean, targets).mean().item() == pytest.approx(paid.error, abs=2e-3)
    each = [
        model.predict(inputs, 1, likelihood=likelihood, targets=targets, seed=5).bits.sum().item(),
        paid.draws_bits[0],
    ]
    assert each[0] == pytest.approx(each[1], rel=1e-5)
    assert found.bits.sum().item() < paid.data_bits  # a mixture codes better than its components on average


def test_predicting_changes_nothing():
    model, likelihood = model_of(), CategoricalLikelihood(3)
    model.network[1].eval()
    modes = [module.training for module in model.modules()]
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one = model.predict(torch.ones(2, 4), likelihood=likelihood)
    with pytest.raises(DataError, match="labels must be"):
        model.predict(torch.ones(2, 4), likelihood=likelihood, targets=torch.tensor([7, 0]))
    with pytest.raises(DataError, match="3 targets"):
        model.predict(torch.ones(2, 4), likelihood=likelihood, targets=torch.tensor([1, 0, 1]))
    assert torch.equal(generator, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(one.mean, model.predict(torch.ones(2, 4), likelihood=likelihood).mean)
    assert not torch.equal(one.mean, model.predict(torch.ones(2, 4), likelihood=likelihood, seed=1).mean)


def test_a_point_estimate_has_one_draw():
    model, inputs = model_of("point", learn="none"), torch.randn(5, 4)
    found = model.predict(inputs, likelihood=CategoricalLikelihood(3))
    assert found.samples == 1
    assert float(found.mutual_information_bits.abs().max()) == 0.0
    model.eval()
    assert torch.allclose(found.mean, model(inputs).softmax(-1).double(), atol=1e-6)


def test_the_likelihood_of_the_training_is_known_and_no_part_of_the_state():
    model = model_of()
    with pytest.raises(LayerError, match=r"knows no likelihood; give one: model.predict"):
        model.predict(torch.randn(2, 4))
    names, modules = set(model.state_dict()), len(list(model.modules()))
    data = bitsback.Dataset("toy", Examples(torch.randn(40, 4), torch.randint(3, (40,))), None, 3)
    run = bitsback.train(model, CategoricalLikelihood(3), data, training={"epochs": 1}, progress=False)
    assert model.likelihood is run.experiment.likelihood
    assert set(model.state_dict()) == names
    assert len(list(model.modules())) == modules
    assert all("likelihood" not in name for name, _ in model.named_parameters())
    assert model.predict(torch.randn(2, 4)).mean.shape == (2, 3)
    other = GaussianLikelihood(1.0, noise="learned", target_step=0.1)
    bitsback.take_ledger(model, other, Examples(torch.randn(9, 4), torch.randn(9, 3)))
    assert model.likelihood is other
    assert set(model.state_dict()) == names


def test_networks_of_several_inputs_and_outputs_and_grey_levels_predict():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, a, b):
            return {"hidden": b, "logits": self.layer(a + b)}

    model, whole = bayesianize(Two(), seed=1), torch.randint(256, (600, 4), dtype=torch.uint8)
    found = model.predict({"a": whole, "b": torch.zeros(600, 4)}, 3, likelihood=CategoricalLikelihood(3))
    plain = bayesianize(nn.Sequential(nn.Linear(4, 3)), seed=1)
    plain.network[0].load_state_dict(model.network.layer.state_dict())
    plain.load_state_dict({name.replace("layer.", "0."): value for name, value in model.state_dict().items()}, strict=False)
    other = plain.predict(whole.float() / 255, 3, likelihood=CategoricalLikelihood(3))
    assert torch.allclose(found.mean, other.mean, atol=1e-6)


def test_the_inputs_of_examples_predict_as_tensors_do():
    x, likelihood = torch.randn(700, 4), CategoricalLikelihood(3)
    model, rows = model_of(), Examples({"input": x}, torch.zeros(700)).inputs
    assert not isinstance(rows, dict | torch.Tensor)
    whole = model.predict(x, 3, likelihood=likelihood)
    assert torch.allclose(model.predict(rows, 3, likelihood=likelihood).mean, whole.mean, atol=1e-6)


class Two(nn.Module):
    """Two inputs, the second of which counts double; anything else is refused by Python."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, also):
        return self.layer(x) + 2 * self.layer(also)


def test_a_tuple_is_several_inputs_and_a_dict_leaves_its_targets_out():
    x, likelihood = torch.randn(6, 4), CategoricalLikelihood(3)
    model = bitsback.bayesianize(Two())
    wanted = model.predict((x, x.flip(0)), 3, likelihood=likelihood).mean
    for given in (
        (x.numpy(), x.flip(0).numpy()),
        (x, x.flip(0).tolist()),
        {"x": x, "also": x.flip(0).numpy(), "labels": torch.zeros(6).long()},
        {"x": x, "also": x.flip(0), "y": torch.zeros(5)},
        TensorDataset(x, x.flip(0), torch.zeros(6)),
    ):
        assert torch.allclose(model.predict(given, 3, likelihood=likelihood).mean, wanted, atol=1e-6)
    for given in ({"labels": x}, ()):
        with pytest.raises(DataError, match="the inputs are empty"):
            model.predict(given, 3, likelihood=likelihood)
    with pytest.raises(DataError, match="an input is a single number"):
        model.predict((1.0, 2.0), 3, likelihood=likelihood)


def test_targets_are_a_tensor_an_array_or_a_list():
    x, y, likelihood = torch.randn(6, 4), torch.arange(6) % 3, CategoricalLikelihood(3)
    model = model_of()
    wanted = model.predict(x, 3, likelihood=likelihood, targets=y).bits
    for given in (y.numpy(), y.tolist(), y.numpy().astype(np.uint8)):
        assert torch.allclose(model.predict(x, 3, likelihood=likelihood, targets=given).bits, wanted)
    with pytest.raises(DataError, match="the targets are texts, and their bits are those of numbers"):
        model.predict(x, 3, likelihood=likelihood, targets=["a"] * 6)


def test_outputs_of_batches_that_are_padded_differently_cannot_be_joined():
    lengths = [2 + (number >= 512) for number in range(600)]
    items = [(torch.zeros(length, 4), torch.zeros(length).long()) for length in lengths]

    def padding(items):
        pad = nn.utils.rnn.pad_sequence
        return pad([x for x, _ in items], batch_first=True), pad([y for _, y in items], batch_first=True, padding_value=-100)

    loader = DataLoader(items, batch_size=4, collate_fn=padding)
    with pytest.raises(DataError, match="every batch is padded to its own longest example; predict batch by batch, or pad"):
        bitsback.bayesianize(nn.Linear(4, 3)).predict(loader, 2, likelihood=CategoricalLikelihood(3, ignore=-100))


def test_text_labels_are_saved_with_the_network(tmp_path):
    x = torch.randn(12, 4)
    model = bitsback.bayesianize(nn.Sequential(nn.Linear(4, 2)))
    data = bitsback.data.source(x, ["cat", "dog"] * 6)
    bitsback.train(model, None, data, training={"epochs": 1}, progress=False)
    assert {answer["class"] for answer in model.predict(x, 2).answers} <= {"cat", "dog"}
    bitsback.save(model, tmp_path / "m.bb", data, progress=False)
    assert bitsback.load(tmp_path / "m.bb").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("inputs", "samples", "said"),
    [(torch.zeros(0, 4), 3, "give at least one example"), (torch.zeros(2, 4), 0, "needs one draw at least")],
)
def test_a_prediction_needs_inputs_and_draws(inputs, samples, said):
    with pytest.raises(DataError, match=said):
        model_of().predict(inputs, samples, likelihood=CategoricalLikelihood(3))


class Laplace(Likelihood):
    """A likelihood of one's own, as it was written before there were mixtures."""

    kind = "own"

    def bits(self, outputs, targets):
        return ((outputs - targets).abs() + math.log(2.0)) / math.log(2.0)

    def predict(self, outputs):
        return outputs

    def error(self, predicted, targets):
        return (predicted - targets).abs()

    def uniform_bits(self, targets):
        return 0.0

    marginal_bits = uniform_bits

    def check_targets(self, targets, where):
        return

    def outputs(self, targets):
        return 1

    def answers(self, predicted, std=None):
        return [{"value": value} for value in predicted.tolist()]


def test_a_likelihood_of_ones_own_predicts_what_it_can():
    found = Prediction.of(Laplace(), torch.tensor([[0.0], [2.0]]), torch.tensor([1.0]))
    assert found.records() == [{"value": 1.0, "bits": pytest.approx(1 / math.log(2.0) + 1)}]
    assert found.entropy_bits is None
    assert found.mutual_information_bits is None
    with pytest.raises(DataError, match="a 'own' likelihood has no quantiles"):
        found.interval()


# files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs of labels that are texts, and of counts, with their data."""
    from bitsback.config import load_config

    place, draw = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    inputs = draw.normal(size=(60, 4))
    names = np.array(["no", "perhaps", "yes"])[np.arange(60) % 3]
    for kind, targets in (("categorical", names), ("poisson", np.arange(60) % 7), ("gaussian", draw.normal(size=60).round(2))):
        np.savez(place / f"{kind}.npz", inputs=inputs, targets=targets)
        (place / f"{kind}.yaml").write_text(
            f"data: {{kind: npz, path: {place / f'{kind}.npz'}}}\nlikelihood: {{kind: {kind}}}\ntraining: {{epochs: 3}}\n"
            "logging: {report: false}\n"
        )
        bitsback.train(load_config(place / f"{kind}.yaml"), out=place / kind, report=False, progress=False)
    return place


@pytest.mark.parametrize("kind", ["categorical", "poisson", "gaussian"])
def test_all_files_hold_the_same_numbers(run, tmp_path, run_command, kind):
    data = run / f"{kind}.npz"
    for suffix in ("csv", "json", "npz", "npy"):
        to = tmp_path / f"p.{suffix}"
        said = run_command("predict", run / kind, "--data", data, "--samples", 5, "--interval", 0.5, "--out", to)
        bits = float(bitsback.predict(run / kind, data, draws=5).bits.sum())
        assert (said.code, said.out) == (0, f"60 predictions are in {to}; the targets cost {bits:,.1f} bits\n")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    records = json.loads((tmp_path / "p.json").read_text())
    assert [list(row) for row in rows] == [list(record) for record in records]
    assert all({name: str(value) for name, value in record.items()} == row for row, record in zip(rows, records, strict=True))
    with np.load(tmp_path / "p.npz") as arrays:
        found = dict(arrays)
    assert np.array_equal(found["mean"], np.load(tmp_path / "p.npy"))
    for name in set(found) - {"mean", "std"}:
        assert np.allclose(found[name].reshape(60), [record[name] for record in records], rtol=1e-9, atol=1e-12)
    expected = bitsback.predict(run / kind, data, draws=5)
    low, high = expected.interval(0.5) if kind != "categorical" else (None, None)
    assert ("low" in found) == (low is not None)
    assert low is None or (np.array_equal(found["low"], low) and np.array_equal(found["high"], high))
    assert np.array_equal(found["bits"], expected.bits)


def test_texts_are_classes_and_unknown_ones_are_refused(run, tmp_path):
    with np.load(run / "categorical.npz") as arrays:
        inputs, targets = arrays["inputs"], arrays["targets"]
    found = bitsback.predict(run / "categorical", run / "categorical.npz", draws=3)
    index = np.searchsorted(["no", "perhaps", "yes"], targets)
    loaded = bitsback.load_run(run / "categorical").experiment()
    prepared = loaded.dataset.preprocessing(torch.from_numpy(inputs.astype(np.float32)))
    by_hand = loaded.model.predict(prepared, 3, targets=torch.from_numpy(index), seed=loaded.config.seed)
    assert torch.allclose(found.bits, by_hand.bits)
    for wrong in (np.where(index == 1, "never", targets), index):
        np.savez(tmp_path / "wrong.npz", inputs=inputs, targets=wrong)
        with pytest.raises(DataError, match=r"a target is ('never'|0), which is none of the labels .'no', 'perhaps', 'yes'"):
            bitsback.predict(run / "categorical", tmp_path / "wrong.npz")
    np.savez(tmp_path / "texts.npz", inputs=inputs, targets=targets)
    with pytest.raises(DataError, match="the targets are of type <U7, and a 'poisson' likelihood takes numbers"):
        bitsback.predict(run / "poisson", tmp_path / "texts.npz")


def test_labels_that_are_not_coded_are_left_out(tmp_path):
    """A label at each of three positions, some hidden: by number, or by an empty text."""
    from bitsback.analysis.predict import _as_targets

    numbers = np.array([[7, 3, -100], [-100, 5, 7]])
    found = _as_targets(numbers, CategoricalLikelihood(3, [3, 5, 7], ignore=-100))
    assert found.tolist() == [[2, 0, -100], [-100, 1, 2]]
    texts = np.array([["b", ""], ["a", "b"]])
    assert _as_targets(texts, CategoricalLikelihood(2, ["b", "a"], ignore=-1)).tolist() == [[0, -1], [1, 0]]
    with pytest.raises(DataError, match="a target is -100, which is none of the labels"):
        _as_targets(numbers, CategoricalLikelihood(3, [3, 5, 7]))


def test_a_file_answers_with_one_draw_and_knows_bits(run, tmp_path):
    bitsback.pack(run / "poisson", tmp_path / "m.bb", codec="quantised", progress=False)
    found = bitsback.predict(tmp_path / "m.bb", run / "poisson.npz")
    assert found.samples == 1
    assert found.bits.shape == (60,)
    assert float(found.mutual_information_bits.max()) == 0.0


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory):
    """A run on standardised 8-bit rows, whose targets are a column with a mask, under names of their own."""
    from bitsback.config import load_config

    place, draw = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    arrays = {"x": draw.integers(0, 256, (40, 4), dtype=np.uint8), "k": np.arange(40)[:, None] % 2, "m": np.ones((40, 1))}
    arrays["m"][::4] = 0
    np.savez(place / "d.npz", **arrays)
    (place / "c.yaml").write_text(
        f"data: {{kind: npz, path: {place / 'd.npz'}, inputs: x, targets: k, mask: m, scaling: standard, test_fraction: 0}}\n"
        "likelihood: {kind: categorical, ignore: -100}\ntraining: {epochs: 2}\nlogging: {report: false}\n"
    )
    bitsback.train(load_config(place / "c.yaml"), out=place / "run", report=False, progress=False)
    bitsback.pack(place / "run", place / "m.bb", codec="quantised", progress=False)
    return place, arrays


def test_the_names_and_the_mask_of_the_data_are_those_of_the_training(grey_run):
    place, _ = grey_run
    found = bitsback.predict(place / "run", place / "d.npz", draws=3)
    e = bitsback.load_run(place / "run").experiment()
    wanted = e.model.predict(e.dataset.train.inputs, 3, targets=e.dataset.train.targets, seed=e.config.seed)
    assert torch.allclose(found.mean, wanted.mean, atol=1e-6)
    assert torch.allclose(found.bits, wanted.bits, atol=1e-5)
    assert found.bits[::4].abs().max() < 1e-12
    assert found.bits[1::4].min() > 0


@pytest.mark.parametrize("source", ["run", "m.bb"])
def test_inputs_of_any_kind_are_prepared_as_those_of_the_training(grey_run, source, tmp_path, monkeypatch):
    place, arrays = grey_run
    x = arrays["x"]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", inputs=x)
    wanted = bitsback.predict(place / source, torch.from_numpy(x).float(), draws=3).mean
    column = torch.zeros(len(x)).long()
    for given in (
        torch.from_numpy(x),
        x,
        x.tolist(),
        Examples(torch.from_numpy(x), column),
        DataLoader(TensorDataset(torch.from_numpy(x), column)),
        tmp_path / "x.npy",
        tmp_path / "x.npz",
    ):
        assert torch.allclose(bitsback.predict(place / source, given, draws=3).mean, wanted, atol=1e-6)
    monkeypatch.setattr("bitsback.data._arrays.READY_BYTES", 0)
    monkeypatch.setattr("bitsback.data._rows.BYTES_AT_ONCE", 40)
    for name in ("x.npy", "x.npz"):  # read in batches
        assert torch.allclose(bitsback.predict(place / source, tmp_path / name, draws=3).mean, wanted, atol=1e-6)


def test_a_run_on_several_inputs_predicts_for_a_dict():
    x = torch.randint(0, 256, (6, 4), dtype=torch.uint8)
    model = bitsback.bayesianize(Two())
    run = bitsback.train(model, None, ({"x": x, "also": x}, torch.arange(6) % 3), training={"epochs": 1}, progress=False)
    found = bitsback.predict(run, {"x": x.numpy(), "also": x, "labels": x[:, 0]}, draws=3)
    real = x.float() / 255
    assert torch.allclose(found.mean, model.predict({"x": real, "also": real}, 3, seed=run.config.seed).mean, atol=1e-6)


def test_a_parquet_file_of_inputs_and_targets(grey_run, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    place, arrays = grey_run
    x = arrays["x"]
    frame = pandas.DataFrame({f"c{place}": x[:, place] for place in range(4)} | {"label": arrays["k"][:, 0]})
    frame.to_parquet(tmp_path / "x.parquet")
    found = bitsback.predict(place / "run", tmp_path / "x.parquet", draws=3)
    wanted = bitsback.predict(place / "run", torch.from_numpy(x).float(), draws=3)
    assert torch.allclose(found.mean, wanted.mean, atol=1e-6)
    assert found.bits.min() > 0


@pytest.mark.parametrize("name", ["p.txt", "p", "p.CSV"])
def test_another_suffix_is_refused_before_anything_is_read(run_command, tmp_path, name):
    said = run_command("predict", tmp_path / "gone", "--data", tmp_path / "gone.npy", "-o", tmp_path / name)
    assert said.code == 1
    assert "predictions are written as .csv, .tsv, .parquet, .json, .npz, .npy, by the suffix, and" in said.err
    with pytest.raises(FileError, match="by the suffix"):
        Prediction.of(BernoulliLikelihood(), [torch.zeros(1)]).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_interval_is_a_probability(run_command, tmp_path):
    said = run_command("predict", "gone", "--data", "gone.npy", "--interval", "90")
    assert "--interval is a probability between 0 and 1, got 90" in said.err
    with pytest.raises(DataError, match=r"between 0 and 1, got 1\.0"):
        Prediction.of(PoissonLikelihood(), [torch.zeros(1)]).interval(1.0)
    with pytest.raises(DataError, match="a quantile has a level between 0 and 1, got 0"):
        NormalMixture(1.0).quantile(0.0)


def test_csv_of_targets_with_axes_has_lists():
    found = Prediction.of(BernoulliLikelihood(), [torch.zeros(2, 3)])
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert json.loads(rows[1]["probability"]) == [0.5, 0.5, 0.5]
    assert json.loads(rows[1]["entropy_bits"]) == [1.0, 1.0, 1.0]
