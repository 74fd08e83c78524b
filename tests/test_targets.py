"""Real targets as they come: their grid is found, the network sees mean 0 and std 1, and what is shown is in their units."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

import bitsback
from bitsback.config import Experiment
from bitsback.config.schema import Config
from bitsback.errors import DataError
from bitsback.likelihoods import GaussianLikelihood
from bitsback.likelihoods._resolution import resolution
from bitsback.testing import check_likelihood
from bitsback.training import TrainingSettings

torch.set_num_threads(1)
FINEST = 2.0**-16


def fitted(targets, **settings):
    likelihood = GaussianLikelihood(**settings)
    likelihood.fit(targets)
    return likelihood


# the grid


@pytest.mark.parametrize(
    ("targets", "step"),
    [
        ([1.0, 3.0, 8.0], 1.0),
        ([150.0, 2000.0], 10.0),
        ([256.0, 512.0], 256.0),
        ([0.1, 0.25, 3.0], 0.01),
        ([0.25, 0.5, 1.75], 0.25),
        ([1e-4, 3e-4], 1e-4),
        ([15.55, 15.55, 20.84], 0.01),
        ([1e6 + 0.25, 1e6 + 0.5], 0.25),
        ([19.99, 199.99], 0.01),
        ([-2.5, 2.5], 2.5 / 5),
        ([7.0, 7.0], 1.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_step_is_the_coarsest_power_of_ten_or_two_that_fits(targets, step, dtype):
    tensor = torch.tensor(targets, dtype=dtype)
    found = resolution(tensor, narrowest=FINEST, precision=torch.finfo(dtype).eps).step
    assert found == pytest.approx(step, rel=1e-12)
    assert torch.allclose((tensor.double() / found).round() * found, tensor.double(), rtol=1e-6)


def test_numbers_without_a_grid_get_a_16th_power_of_their_std_and_say_so():
    targets = torch.randn(500, generator=torch.Generator().manual_seed(0)).double() * 100
    likelihood = fitted(targets)
    std = float(targets.std(correction=0))
    assert std * FINEST <= likelihood.target_step < 2 * std * FINEST
    assert math.log2(likelihood.target_step).is_integer()
    assert "the finest is 2^-16 of their std" in likelihood.notes()[0]


def test_a_step_that_was_found_is_charged_and_one_that_was_given_is_not():
    targets = torch.arange(50.0)
    found = {charge.name: charge.bits for charge in fitted(targets).charges()}
    given = {charge.name: charge.bits for charge in fitted(targets, target_step=1.0).charges()}
    assert found == {"log_std": 10.0, "shift": 16.0, "scale": 16.0, "target_step": 8.0, "shift_bits": 1.0}
    assert given == {"log_std": 10.0, "shift": 16.0, "scale": 16.0, "shift_bits": 1.0}


# inside, mean 0 and std 1


@pytest.mark.parametrize("factor", [1e-9, 1e-4, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("shift", [0.0, 3.0, 1e5])
def test_bits_are_those_of_a_gaussian_in_the_targets_own_units(factor, shift):
    draw = np.random.default_rng(0)
    y = np.round((draw.normal(size=200) + shift) / 0.01) * 0.01 * factor
    likelihood = fitted(torch.from_numpy(y), target_step=0.01 * factor).double()
    outputs = torch.from_numpy(draw.normal(size=(200, 1)))
    std = float((likelihood.log_std.exp() * likelihood.scale).detach())
    mean = likelihood.predict(outputs)[:, 0].numpy()
    expected = -stats.norm(mean, std).logpdf(y) / math.log(2) - math.log2(0.01 * factor)
    assert np.allclose(likelihood.bits(outputs, torch.from_numpy(y)).detach().numpy(), expected, rtol=1e-6)
    assert std == pytest.approx(0.1 * y.std(), rel=0.02)  # the start of the noise
    assert abs(float(likelihood.shift) - y.mean()) <= y.std() / 8 + 1e-12
    assert float(likelihood.scale) == pytest.approx(y.std(), rel=2**-8)


def test_the_shift_takes_32_bits_only_where_16_are_too_coarse():
    near, far = fitted(torch.randn(50) + 3), fitted(torch.randn(50).double() + 1e5)
    assert [next(c.bits for c in each.charges() if c.name == "shift") for each in (near, far)] == [16.0, 32.0]


@pytest.mark.parametrize("noise", ["fixed", "learned", "predicted"])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_the_code_keeps_the_contract_for_targets_of_any_scale(noise, shape):
    draw = torch.Generator().manual_seed(1)
    targets = ((torch.randn(4, *shape, generator=draw).double() * 5 + 20) * 10).round() / 10
    likelihood = fitted(targets, noise=noise, target_step=0.1, std=1.0 if noise == "fixed" else None)
    width = math.prod(shape) * (2 if noise == "predicted" else 1)
    outputs = torch.randn(4, width, generator=draw).double() * 0.1
    if math.prod(shape) > 1:
        bits = likelihood.double().bits(outputs, targets)
        alone = [likelihood.bits(outputs[k : k + 1], targets[k : k + 1]) for k in range(4)]
        assert torch.allclose(bits, torch.cat(alone))
        assert likelihood.predict(outputs).shape == (4, *shape)
        return
    every = torch.arange(-3000, 3000).double().reshape(-1, *shape) * 0.1
    check_likelihood(likelihood, outputs, targets, every)


def test_several_targets_each_have_their_own_shift_and_scale():
    targets = torch.stack([torch.arange(100.0), torch.arange(100.0) * 1000 - 5e4], 1)
    likelihood = fitted(targets)
    centred = (targets - likelihood.shift) / likelihood.scale
    assert torch.allclose(centred.mean(0), torch.zeros(2), atol=0.13)
    assert torch.allclose(centred.std(0, correction=0), torch.ones(2), atol=0.01)
    answers = likelihood.answers(likelihood.predict(torch.zeros(1, 2)), likelihood.variance(torch.zeros(1, 2)).sqrt())
    assert answers[0]["mean"] == pytest.approx(likelihood.shift.tolist())
    assert answers[0]["std"] == pytest.approx((0.1 * likelihood.scale).tolist(), rel=1e-4)


def test_the_column_with_the_smallest_scale_keeps_its_digits():
    draw = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.cat([draw * 1000 + 5e5, draw * 1e-3], 1)
    likelihood = fitted(targets)
    assert likelihood.target_step <= 2 * FINEST * float(targets[:, 1].std(correction=0))


def test_std_and_step_are_given_in_the_targets_units():
    targets = torch.arange(1000.0) * 50
    likelihood = fitted(targets, std=700.0, target_step=50.0, standardise=True)
    assert likelihood.variance(torch.zeros(2, 1)).sqrt().flatten().tolist() == pytest.approx([700.0, 700.0], rel=1e-5)
    fixed = fitted(targets, std=700.0, target_step=50.0, noise="fixed", standardise=True)
    assert fixed.variance(torch.zeros(1, 1)).sqrt().item() == pytest.approx(700.0, rel=1e-5)


def test_a_likelihood_that_has_not_seen_its_targets_says_so():
    with pytest.raises(DataError, match=r"call likelihood\.fit\(targets\) before the loop"):
        GaussianLikelihood().bits(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(DataError, match=r"noise: fixed needs likelihood\.std"):
        GaussianLikelihood(noise="fixed")


# codes without a model


def test_the_marginal_code_is_a_gaussian_with_its_parameters_charged():
    y = np.random.default_rng(0).normal(150, 77, 353).round()
    likelihood = fitted(torch.from_numpy(y))
    best = -stats.norm(y.mean(), y.std()).logpdf(y).sum() / math.log(2)
    parameters = 10 + (2 * math.floor(math.log2(2 * round(8 * y.mean() / y.std()) + 1)) + 1) + 8
    assert best + parameters <= likelihood.marginal_bits(torch.from_numpy(y)) < best + parameters + 1.5


def test_the_uniform_code_counts_each_targets_own_levels():
    targets = torch.tensor([[0.0, 0.0], [3.0, 1023.0]])
    assert fitted(targets, target_step=1.0, std=1.0).uniform_bits(targets) == pytest.approx(2 * (2 + 10))


# training


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    """A table with raw inputs and raw targets: 400 houses, in whole thousands."""
    draw = np.random.default_rng(0)
    area, rooms, year = draw.uniform(40, 300, 400), draw.integers(1, 9, 400), draw.integers(1900, 2020, 400)
    price = 2000 * area + 15_000 * rooms + 800 * (year - 1900) + draw.normal(0, 20_000, 400)
    path = tmp_path_factory.mktemp("prices") / "prices.npz"
    np.savez(path, inputs=np.stack([area, rooms, year], 1), targets=price.round(-3))
    return path


def experiment(path, **sections):
    base = {"data": {"kind": "npz", "path": str(path)}, "likelihood": {"kind": "gaussian"}, "logging": {"report": False}}
    return Experiment.build(Config.model_validate({**base, "training": {"epochs": 300}, **sections}))


def test_a_raw_table_costs_less_than_no_model_and_errors_are_in_its_units(prices, tmp_path, run_command):
    run = experiment(prices)
    outcome = run.train(tmp_path / "run", progress=False)
    ledger = outcome.ledger
    assert run.likelihood.target_step == 1000.0
    assert ledger.net_bits < 0.75 * ledger.no_model_bits
    assert ledger.warnings == ()
    assert 15_000 < outcome.test_error < 30_000  # the noise is 20,000
    np.save(tmp_path / "asked.npy", np.array([[100.0, 4.0, 1950.0]]))
    (answer,) = json.loads(run_command("predict", tmp_path / "run", "--data", tmp_path / "asked.npy", "--json").out)
    assert answer["mean"] == pytest.approx(2000 * 100 + 15_000 * 4 + 800 * 50, rel=0.1)
    assert 15_000 < answer["std"] < 30_000
    again = bitsback.load_run(tmp_path / "run").experiment()
    taken = bitsback.take_ledger(again.model, again.likelihood, again.dataset.train, samples=50)
    assert taken.net_bits == pytest.approx(ledger.net_bits, rel=1e-9)
    for codec in ("quantised", "relative_entropy"):
        file = tmp_path / f"{codec}.bb"
        assert run_command("pack", tmp_path / "run", "-o", file, "--codec", codec).code == 0
        (packed,) = json.loads(run_command("predict", file, "--data", tmp_path / "asked.npy", "--json").out)
        assert packed["mean"] == pytest.approx(answer["mean"], rel=0.1)
        assert packed["std"] == pytest.approx(answer["std"], rel=0.2)
        loaded = bitsback.load(file)
        assert loaded.likelihood.target_step == 1000.0
        assert torch.equal(loaded.likelihood.scale, run.likelihood.scale)


def test_the_network_is_the_same_whatever_the_unit(prices, tmp_path):
    """Cents instead of thousands: standardised targets are the same, and each costs the same bits."""
    arrays = dict(np.load(prices))
    np.savez(tmp_path / "cents.npz", inputs=arrays["inputs"], targets=arrays["targets"] * 1e-3)
    ledgers = [
        experiment(path, training={"epochs": 30}).train(None, progress=False).ledger
        for path in (prices, tmp_path / "cents.npz")
    ]
    assert ledgers[0].net_bits == pytest.approx(ledgers[1].net_bits, rel=0.02)  # shift and scale are rounded


def test_training_from_python_fits_a_likelihood_that_is_not_yet(prices):
    arrays = np.load(prices)
    x = torch.from_numpy(arrays["inputs"]).float()
    x = (x - x.mean(0)) / x.std(0)
    data = bitsback.Dataset("prices", bitsback.Examples(x, torch.from_numpy(arrays["targets"])), None)
    model = bitsback.bayesianize(torch.nn.Sequential(torch.nn.Linear(3, 1)))
    outcome = bitsback.train(model, GaussianLikelihood(), data, training=TrainingSettings(epochs=300), progress=False)
    assert outcome.ledger.net_bits < 0.75 * outcome.ledger.no_model_bits


# a likelihood that is kept, copied, or used twice


def test_a_state_dict_holds_what_was_found():
    targets = torch.stack([torch.arange(100.0), torch.arange(100.0) * 50 + 1e6], 1)
    trained = fitted(targets)
    trained.log_std.data.fill_(-3.0)
    other = GaussianLikelihood()
    other.load_state_dict(trained.state_dict())
    other.fit(targets)  # as a ledger would: changes nothing
    outputs = torch.randn(100, 2)
    assert torch.equal(other.bits(outputs, targets), trained.bits(outputs, targets))
    assert [(c.name, c.bits) for c in other.charges()] == [(c.name, c.bits) for c in trained.charges()]


def test_a_state_of_before_has_no_shift_and_no_scale():
    old = {"log_std": torch.tensor(0.5)}
    likelihood = GaussianLikelihood(2.0, target_step=0.01)
    likelihood.load_state_dict(old)
    assert (float(likelihood.shift), float(likelihood.scale), likelihood.target_step) == (0.0, 1.0, 0.01)
    assert float(likelihood.log_std.detach()) == 0.5


def test_a_width_curve_before_any_ledger_leaves_a_fitted_likelihood(prices):
    arrays = np.load(prices)
    x = torch.from_numpy(arrays["inputs"]).float()
    examples = bitsback.Examples((x - x.mean(0)) / x.std(0), torch.from_numpy(arrays["targets"]))
    model, likelihood = bitsback.bayesianize(torch.nn.Linear(3, 1)), GaussianLikelihood()
    curve = bitsback.width_curve(model, likelihood, examples, factors=(1.0, 2.0), samples=3)
    again = bitsback.take_ledger(model, likelihood, examples, samples=3)
    assert again.data_bits == pytest.approx(curve[1.0].data_bits, rel=1e-6)


def test_a_likelihood_of_one_table_refuses_another():
    likelihood = fitted(torch.arange(100.0) * 1000)
    likelihood.fit(torch.arange(50.0) * 1000)  # a part of the same is fine
    with pytest.raises(DataError, match="fitted to other targets"):
        likelihood.fit(torch.arange(100.0) * 0.001)


def test_noise_starts_at_a_tenth_of_the_targets_std_without_standardising_too():
    targets = torch.randn(200, generator=torch.Generator().manual_seed(0)).double() * 1000
    likelihood = fitted(targets, standardise=False, target_step=1.0)
    assert float(likelihood.log_std.exp().detach()) == pytest.approx(0.1 * float(targets.std(correction=0)), rel=1e-5)


def test_codes_without_a_model_need_no_fit_and_see_the_same_grid():
    targets = torch.tensor([0.1, 0.25, 3.0] * 9)  # float32
    first, second = GaussianLikelihood(), fitted(targets)
    assert first.uniform_bits(targets) == pytest.approx(second.uniform_bits(targets))
    assert first.marginal_bits(targets) == pytest.approx(second.marginal_bits(targets))


def test_targets_beyond_every_grid_are_refused():
    with pytest.raises(DataError, match=r"std of .*e-31, beyond the grids"):
        fitted(torch.randn(20).double() * 1e-31)
    with pytest.raises(DataError, match="their squares overflow"):
        fitted(torch.randn(20).double() * 1e300)


# settings that find themselves


@pytest.mark.parametrize(("examples", "epochs"), [(100, 4000), (142, 2000), (1437, 334), (60_000, 30), (10**6, 30)])
def test_every_data_set_gets_enough_steps(examples, epochs):
    from bitsback.likelihoods import CategoricalLikelihood

    assert TrainingSettings().settled(examples, CategoricalLikelihood(3)).passes == epochs


def test_noise_that_is_found_gets_a_warm_up_and_nothing_else_does():
    from bitsback.likelihoods import CategoricalLikelihood, PoissonLikelihood

    ten = TrainingSettings(epochs=10)
    for likelihood, beta in (
        (GaussianLikelihood(), (1e-3, 3.0)),
        (GaussianLikelihood(noise="predicted"), (1e-3, 3.0)),
        (GaussianLikelihood(1.0, noise="fixed"), (1.0, 0.0)),
        (CategoricalLikelihood(3), (1.0, 0.0)),
        (PoissonLikelihood(), (1.0, 0.0)),
    ):
        assert ten.settled(50, likelihood).beta.numbers == pytest.approx(beta)
    given = TrainingSettings(epochs=10, beta={"start": 0.5, "warmup_epochs": 2}).settled(50, GaussianLikelihood())
    assert given.beta.numbers == (0.5, 2)
    budget = TrainingSettings(epochs=10, budget_bits=100).settled(50, GaussianLikelihood())
    assert budget.beta.numbers == (1.0, 0.0)
    assert ten.settled(50, GaussianLikelihood()).settled(70, CategoricalLikelihood(3)).epochs == 10
