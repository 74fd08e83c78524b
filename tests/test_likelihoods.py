"""Every likelihood keeps the contract; one line each."""

import math

import pytest
import torch

from bitsback.errors import DataError
from bitsback.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    TokensLikelihood,
    registry,
)
from bitsback.testing import check_likelihood

torch.manual_seed(0)
pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # all values of targets of two labels
answers = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).double()
several = torch.tensor([0.0, 3.0, 1.0, 7.0]).double()
wide = torch.arange(-6000, 6000).double() * 0.01
CASES = [
    (CategoricalLikelihood(3), torch.randn(5, 3).double(), torch.tensor([0, 1, 2, 0, 1]), torch.arange(3)),
    (BernoulliLikelihood(), torch.randn(4, 1).double(), torch.tensor([0.0, 1.0, 1.0, 0.0]).double(), torch.tensor([0.0, 1.0])),
    (PoissonLikelihood(), torch.randn(4, 1).double(), torch.tensor([0.0, 3.0, 1.0, 7.0]).double(), torch.arange(200).double()),
    (CategoricalLikelihood(3, ignore=-100), torch.randn(5, 3, 2).double(), pairs[3:8], pairs),
    (CategoricalLikelihood(3, ignore=-1, class_axis=-1), torch.randn(5, 2, 3).double(), pairs[3:8], pairs),
    (
        TokensLikelihood(3),
        torch.randn(4, 3, 3).double(),
        torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 0], [1, 1, 2]]),
        torch.cat([torch.zeros(9, 1).long(), pairs], 1),
    ),
    (BernoulliLikelihood(ignore=-100), torch.randn(4, 2).double(), answers, answers),
    (PoissonLikelihood(ignore=-100), torch.randn(4).double(), several, torch.arange(200).double()),
    (NegativeBinomialLikelihood(), torch.randn(4, 1).double(), several, torch.arange(200).double()),
    (NegativeBinomialLikelihood(2.5, learn="none", ignore=-1), torch.randn(4).double(), several, torch.arange(900).double()),
    (GaussianLikelihood(0.5, noise="fixed", target_step=0.01), torch.randn(4, 1).double(), torch.randn(4).double(), wide),
    (GaussianLikelihood(0.5, noise="learned", target_step=0.01), torch.randn(4, 1).double(), torch.randn(4).double(), wide),
    (GaussianLikelihood(noise="predicted", target_step=0.01), torch.randn(4, 2).double(), torch.randn(4).double(), wide),
]


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "every"), CASES, ids=[f"{c[0].kind}-{i}" for i, c in enumerate(CASES)]
)
def test_every_likelihood_keeps_the_contract(likelihood, outputs, targets, every):
    check_likelihood(likelihood, outputs, targets, every)


def test_every_registered_likelihood_is_under_contract():
    assert {case[0].kind for case in CASES} == set(registry)


def test_the_noise_never_falls_below_the_targets_step():
    """Otherwise density times step would be more than one, and the code no code."""
    likelihood = GaussianLikelihood(0.01, noise="learned", target_step=0.01)
    likelihood.log_std.data.fill_(-20.0)
    every = torch.arange(-100, 100).double()[:, None] * 0.01
    total = (2.0 ** -likelihood.double().bits(torch.zeros(200, 1).double(), every[:, 0])).sum()
    assert float(total) == pytest.approx(1.0, abs=1e-6)


def test_learned_noise_below_the_floor_can_rise_again():
    likelihood = GaussianLikelihood(0.01, noise="learned", target_step=0.01)
    likelihood.log_std.data.fill_(-20.0)
    likelihood.bits(torch.zeros(3, 1), torch.ones(3)).sum().backward()
    assert likelihood.log_std.grad < 0


def test_targets_are_coded_on_their_grid():
    likelihood = GaussianLikelihood(1.0, noise="fixed", target_step=0.5)
    near, on = (likelihood.bits(torch.zeros(1, 1), torch.tensor([value])) for value in (1.1, 1.0))
    assert torch.equal(near, on)
    assert "rounded" in likelihood.notes()[0]


def test_uniform_codes():
    assert CategoricalLikelihood(8).uniform_bits(torch.zeros(5)) == 15.0
    assert BernoulliLikelihood().uniform_bits(torch.zeros(5, 2)) == 10.0
    assert PoissonLikelihood().uniform_bits(torch.tensor([0.0, 7.0])) == 6.0
    assert GaussianLikelihood(target_step=1.0).uniform_bits(torch.tensor([0.0, 3.0])) == pytest.approx(4.0)


def test_only_learned_noise_is_charged():
    for noise, bits in (("learned", [10.0]), ("fixed", []), ("predicted", [])):
        assert [charge.bits for charge in GaussianLikelihood(1.0, noise=noise, target_step=0.01).charges()] == bits


def test_errors():
    label = CategoricalLikelihood(2).error(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    assert label.tolist() == [0.0, 1.0]
    assert GaussianLikelihood().summary(0.25) == 0.5
    assert math.isclose(PoissonLikelihood().error(torch.tensor([[2.0]]), torch.tensor([4.0])).item(), 4.0)


@pytest.mark.parametrize(
    ("likelihood", "targets", "message"),
    [
        (CategoricalLikelihood(3), torch.tensor([0, 3]), "example 1 is 3; labels must be whole numbers from 0 to 2"),
        (CategoricalLikelihood(3), torch.tensor([0, -1]), "is -1"),
        (CategoricalLikelihood(3), torch.tensor([0.0, 0.5]), "is 0.5"),
        (TokensLikelihood(3), torch.zeros(2), "needs token ids"),
        (TokensLikelihood(3), torch.zeros(2, 1), "a row of two or more"),
        (NegativeBinomialLikelihood(), torch.tensor([1.0, 0.5]), "whole numbers from 0 up"),
        (BernoulliLikelihood(), torch.tensor([0.0, 2.0]), "must be 0 or 1"),
        (PoissonLikelihood(), torch.tensor([1.0, -2.0]), "whole numbers from 0 up"),
        (GaussianLikelihood(), torch.tensor([0.0, math.nan]), "must be finite"),
    ],
)
def test_targets_without_a_code_are_refused(likelihood, targets, message):
    with pytest.raises(DataError, match=message):
        likelihood.check_targets(targets, "training")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CategoricalLikelihood(3).bits(torch.zeros(2, 4), torch.zeros(2).long()), "3 classes need"),
        (lambda: BernoulliLikelihood().bits(torch.zeros(2, 4), torch.zeros(2, 3)), "change the last layer"),
        (
            lambda: GaussianLikelihood(noise="predicted", target_step=0.01).bits(torch.zeros(2, 3), torch.zeros(2)),
            "even number",
        ),
        (lambda: GaussianLikelihood(target_step=0.0), "target_step must be above zero"),
        (lambda: CategoricalLikelihood(1), "two or more classes"),
        (lambda: GaussianLikelihood(0.001, target_step=0.01), "noise cannot be finer than the grid"),
    ],
)
def test_wrong_shapes_and_settings_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
