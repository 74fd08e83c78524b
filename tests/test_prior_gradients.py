"""The gradient that training takes of each prior is, on average over draws, that of the ledger's KL."""

import copy
import math

import pytest
import torch
from test_priors import MEMBERS
from torch.distributions import Laplace, Normal

from bitsback.kl import Panels, kl, kl_each
from bitsback.posteriors import GaussianPosterior
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
from bitsback.priors._horseshoe import _table
from bitsback.priors.base import Prior, around
from bitsback.testing import check_prior
from bitsback.testing._priors import expected_kl_gradient

POSTERIORS = [
    (0.0, 1e-4), (0.1, 1e-3), (-0.7, 0.05), (2.0, 0.5), (0.3, 3.0), (1.0, 1e-6), (-1.0, 1.0), (1e-3, 1e-9), (40.0, 4e-5),
    (2.0, 30.0), (-60.0, 60.0), (0.0, 1.0),
]  # fmt: skip
"""Means and stds in units of the prior's width; std / |mean| goes down to 1e-6."""

KINDS = [prior for prior in MEMBERS if prior.kind != "horseshoe"]
SCALED = [prior for prior in MEMBERS if prior.kind in ("gaussian", "laplace", "horseshoe") and list(prior.parameters())]
TABLE_ERROR = 2e-4


def exactly(prior):
    return copy.deepcopy(prior).double()


def posteriors(prior):
    width = float(prior.typical_scale().detach())
    bounded = [(mean, std) for mean, std in POSTERIORS if std < 10 or "Gumbel" not in str(prior.values())]  # e^(-w) there
    mean, std = torch.tensor(bounded, dtype=torch.float64).T * width
    return GaussianPosterior(mean, std)


def ledgers_gradient(prior, q):
    """By autograd through the closed form or the exact quadrature: by mean, by log std, by each learned number."""
    return torch.autograd.grad(kl(q, prior).nats, [q.mean, q.log_std, *prior.parameters()])


def both(prior, function, *arguments):
    """What a function of a prior returns, and what it leaves for each learned number."""
    prior.zero_grad()
    found = function(*arguments)
    return [*(found if isinstance(found, tuple) else (found,)), *(number.grad for number in prior.parameters())]


def assert_close(found, wanted, *, rtol, atol=0.0):
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=rtol, atol=atol), f"{one} is not {other}"


@pytest.mark.parametrize("prior", KINDS, ids=lambda prior: prior.kind)
def test_average_over_draws_is_the_ledgers_gradient(prior):
    prior = exactly(prior)
    q = posteriors(prior)
    by_mean, by_log_std, *_ = ledgers_gradient(prior, q)
    found, found_std = expected_kl_gradient(prior, q.mean.detach(), q.log_std.detach())
    std = q.std().detach()
    rtol = 1e-4 if prior.kind == "adaptive_mixture" else 1e-5  # its components hand over between the quadrature's panels
    assert_close([found * std, found_std], [by_mean * std, by_log_std], rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("prior", SCALED, ids=lambda prior: prior.kind)
def test_without_a_draw_learned_numbers_get_the_ledgers_gradient(prior):
    """Closed forms and the table ignore the draw: a broken one is given."""
    prior = exactly(prior)
    q = posteriors(prior)
    *_, by_scale = ledgers_gradient(prior, q)
    mean, log_std = q.mean.detach(), q.log_std.detach()
    found = both(prior, prior.kl_gradient, mean, log_std, torch.full_like(mean, math.nan), 0.3)[2]
    assert float(found) == pytest.approx(0.3 * float(by_scale), rel=1e-4, abs=len(mean) * TABLE_ERROR)


@pytest.mark.parametrize("prior", MEMBERS, ids=lambda prior: prior.kind)
def test_slope_is_the_derivative_of_the_code_length(prior):
    prior = exactly(prior)
    width = float(prior.typical_scale().detach())
    weights = width * torch.cat([torch.linspace(-4, 4.1, 40, dtype=torch.float64), torch.tensor([1e-6, 1e-3, 14.0, -20.0])])
    found, wanted = both(prior, prior.slope, weights, 0.7), both(prior, Prior.slope.__get__(prior), weights, 0.7)
    if prior.kind == "horseshoe":
        assert_close(found, wanted, rtol=TABLE_ERROR, atol=1e-8)
    else:
        assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior", [p for p in KINDS if p.kind not in ("gaussian", "laplace")], ids=lambda prior: prior.kind)
def test_by_hand_and_by_autograd_agree_draw_by_draw(prior):
    """One draw, or a draw and its mirror image; a learned number's gradient is that at the draw."""
    prior = exactly(prior)
    q = posteriors(prior)
    mean, log_std = q.mean.detach(), q.log_std.detach()
    draw = mean + q.std().detach() * torch.randn_like(mean)
    by_autograd = Prior.slope.__get__(prior)
    slope, *learned = both(prior, by_autograd, draw, 0.7)
    other = by_autograd(2 * mean - draw, 0.0) if prior.mirrored else slope
    other_std = 2 * mean - draw - mean if prior.mirrored else draw - mean
    wanted = [(slope + other) / 2, (slope * (draw - mean) + other * other_std) / 2 - 1, *learned]
    assert_close(both(prior, prior.kl_gradient, mean, log_std, draw, 0.7), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prior", [p for p in MEMBERS if list(p.parameters())], ids=lambda prior: prior.kind)
def test_learned_numbers_get_their_gradient_on_average(prior):
    prior = exactly(prior)
    width, count = float(prior.typical_scale().detach()), 20_001
    q = GaussianPosterior(torch.tensor([0.4], dtype=torch.float64) * width, 0.3 * width)
    _, _, *wanted = ledgers_gradient(prior, q)
    mean, log_std = q.mean.detach().expand(count), q.log_std.detach().expand(count)
    spread = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    found = both(prior, prior.kl_gradient, mean, log_std, mean + log_std.exp() * spread, 1 / count)[2:]
    assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prior", MEMBERS, ids=lambda prior: prior.kind)
def test_single_precision_agrees_to_rounding(prior):
    width = float(prior.typical_scale().detach())
    mean = (width * torch.randn(1000)).float()
    log_std = torch.empty(1000).uniform_(-6, 1) + math.log(width)
    draw = mean + log_std.exp() * torch.randn(1000)
    single, double = copy.deepcopy(prior), exactly(prior)
    found = both(single, single.kl_gradient, mean, log_std, draw, 1e-3)
    wanted = both(double, double.kl_gradient, mean.double(), log_std.double(), draw.double(), 1e-3)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 2e-5 * (1 + other.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", MEMBERS, ids=lambda prior: prior.kind)
def test_extreme_weights_stay_finite(prior, dtype):
    prior = copy.deepcopy(prior).to(dtype)
    centre = float(prior.breakpoints().detach().median())
    far = [1e30, -1e30, 1e12, -1e12] if "Gumbel" not in str(prior.values()) else [1e30, 10.0]
    mean = torch.tensor([centre, centre, centre, *far], dtype=dtype)
    log_std = torch.tensor([0.0, -30.0, -85.0, *[-2.0] * len(far)], dtype=dtype)
    for part in (*prior.kl_gradient(mean, log_std, mean.clone(), 0.0), prior.slope(mean)):
        assert torch.isfinite(part).all(), part
    tiny = torch.tensor([0.0, 1e-38, -1e-30, 1e-20], dtype=dtype) + centre
    assert torch.isfinite(prior.slope(tiny, 1.0)).all()
    assert all(torch.isfinite(number.grad).all() for number in prior.parameters())


def test_a_far_weight_belongs_to_the_widest_component():
    prior = ScaleMixturePrior([0.001, 2.0], [0.999, 0.001])
    assert prior.slope(torch.tensor([1e25, -1e25])).tolist() == pytest.approx([2.5e24, -2.5e24])


@pytest.mark.parametrize("prior", MEMBERS, ids=lambda prior: prior.kind)
def test_pieces_of_a_tensor_are_the_tensor(prior):
    prior = exactly(prior)
    assert prior.is_elementwise
    mean, draw = torch.randn(2, 6, 50, dtype=torch.float64).unbind()
    whole = both(prior, prior.kl_gradient, mean, torch.zeros_like(mean), draw, 0.5)
    prior.zero_grad()
    pieces = [
        prior.kl_gradient(m, torch.zeros_like(m), w, 0.5)
        for m, w in zip(mean.flatten().split(77), draw.flatten().split(77), strict=True)
    ]
    joined = [torch.cat(parts).view(mean.shape) for parts in zip(*pieces, strict=True)]
    assert_close([*joined, *(number.grad for number in prior.parameters())], whole, rtol=1e-12, atol=1e-12)
    turned = prior.kl_gradient(mean.T, torch.zeros_like(mean).T, draw.T, 0.5)
    assert_close([part.T for part in turned], whole[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prior", MEMBERS, ids=lambda prior: prior.kind)
def test_results_are_new_and_arguments_stay(prior):
    prior = exactly(prior)
    mean, log_std, draw = torch.randn(3, 20, dtype=torch.float64).unbind()
    before = [mean.clone(), log_std.clone(), draw.clone()]
    for part in (*prior.kl_gradient(mean, log_std, draw, 1.0), prior.slope(draw, 1.0)):
        assert part.shape == mean.shape
        assert not part.requires_grad
        part.fill_(7.0)
    again = prior.kl_gradient(mean, log_std, draw, 0.0)
    assert all(torch.equal(one, other) for one, other in zip([mean, log_std, draw], before, strict=True))
    assert not (again[0] == 7).any()


def test_rate_scales_what_is_added_and_nothing_fixed_is_touched():
    mean, log_std, draw = torch.randn(3, 20)
    prior = LaplacePrior(0.2, learn="gradient")
    prior.kl_gradient(mean, log_std, draw)
    assert prior.log_scale.grad is None
    prior.kl_gradient(mean, log_std, draw, 1.0)
    once = float(prior.log_scale.grad)
    prior.kl_gradient(mean, log_std, draw, 0.5)
    assert float(prior.log_scale.grad) == pytest.approx(1.5 * once)
    prior.log_scale.requires_grad_(False)
    prior.kl_gradient(mean, log_std, draw, 1.0)
    assert float(prior.log_scale.grad) == pytest.approx(1.5 * once)


def test_a_gaussian_whose_scale_has_a_closed_form_gets_no_gradient():
    prior = GaussianPrior(0.3, learn="closed_form")
    prior.kl_gradient(*torch.randn(3, 20), 1.0)
    assert prior.log_scale.grad is None


@pytest.mark.parametrize("learn", ["none", "gradient"])
@pytest.mark.parametrize("make", [
    lambda learn: GroupGaussianPrior(torch.Size([3, 4]), 0, 0.5, learn=learn),
    lambda learn: GroupGaussianPrior(torch.Size([3, 4]), 1, 0.5, learn=learn),
    lambda learn: GroupGaussianPrior(torch.Size([3, 1, 4]), 1, 0.5, learn=learn),
    lambda learn: GroupGaussianPrior(torch.Size([12]), 1, 0.5, learn=learn),
    lambda learn: CheckpointPrior(torch.randn(3, 4), 0.1, source="earlier", learn=learn),
])  # fmt: skip
def test_whole_tensors_of_priors_with_many_numbers(make, learn):
    prior = make(learn).double()
    assert not prior.is_elementwise
    shape = (prior.mean if prior.kind == "checkpoint" else prior.log_scale).shape
    q = GaussianPosterior(torch.randn([3, 1, 4] if len(shape) == 3 else [12] if len(shape) == 1 else [3, 4]).double(), 0.2)
    wanted = ledgers_gradient(prior, q)
    found = both(prior, prior.kl_gradient, q.mean.detach(), q.log_std.detach(), q.mean.detach(), 1.0)
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(q.mean)
    found, wanted = both(prior, prior.slope, weights, 1.0), both(prior, Prior.slope.__get__(prior), weights, 1.0)
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_prior_over_vectors_averages_to_its_closed_form():
    """KL(N(m, s^2) || N(0, C)) has the gradient (C^-1 m, s^2 diag C^-1 - 1); four draws are exact for a quadratic."""
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    prior = PyroPrior("MultivariateNormal", {"loc": [0.0, 0.0], "covariance_matrix": covariance.tolist()}, learn="gradient")
    prior = prior.double()
    assert not prior.is_elementwise
    mean, std = torch.randn(3, 2, dtype=torch.float64), 0.4
    log_std = torch.full_like(mean, math.log(std))
    signs = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dtype=torch.float64)
    parts = [prior.kl_gradient(mean, log_std, mean + std * sign, 0.25) for sign in signs]
    by_mean, by_log_std = (torch.stack(part).mean(0) for part in zip(*parts, strict=True))
    inverse = covariance.inverse()
    second = ((mean @ inverse) * mean).sum() + 3 * std**2 * inverse.trace()
    assert_close(
        [by_mean, by_log_std, prior.log_scale.grad],
        [mean @ inverse, (std**2 * inverse.diagonal() - 1).expand(3, 2), 6 - second],
        rtol=1e-9,
    )


@pytest.mark.parametrize("prior", [StudentTPrior(1.0), CauchyPrior(1.0), LogisticPrior(1.0),
                                   ScaleMixturePrior([0.5, 3.0], [0.5, 0.5])], ids=lambda prior: prior.kind)  # fmt: skip
def test_the_mirror_image_lowers_the_noise(prior):
    torch.manual_seed(0)
    mean, log_std = torch.full((20_000,), 0.4), torch.full((20_000,), math.log(0.3))
    draw = mean + log_std.exp() * torch.randn(20_000)
    mirrored = prior.kl_gradient(mean, log_std, draw)
    slope = prior.slope(draw)
    assert mirrored[0].var() < 0.15 * slope.var()
    assert mirrored[1].var() < 0.9 * (slope * (draw - mean)).var()


class FineHorseshoe(HorseshoePrior):
    """Bends farther out: the ledger's leave its quadrature an error of 1e-3 in the gradient where std is 1e5 scales."""

    def breakpoints(self, fine=True):
        return around(self.mean, self.typical_scale(), (-52, 50))[..., ::2]


def table_errors(prior, log_r, ratio):
    """The table's errors by mean, in units of 1 / r, and by log std, at r and std / r."""
    scale = float(prior.typical_scale().detach())
    r = scale * log_r.exp()
    sign = torch.where(torch.arange(len(r)) % 2 == 0, 1.0, -1.0)
    q = GaussianPosterior(prior.mean + sign * r * (1 - ratio.square()).sqrt(), r * ratio)
    nats = kl_each(q, prior, panels=Panels.exact()).sum()
    by_mean, by_log_std = torch.autograd.grad(nats, [q.mean, q.log_std])
    found = prior.kl_gradient(q.mean.detach(), q.log_std.detach(), q.mean.detach())
    return float(((found[0] - by_mean) * r).abs().max()), float((found[1] - by_log_std).abs().max())


def test_the_horseshoes_table_keeps_its_error():
    """On a grid that falls between the table's entries, and at random; far beyond the table's end too."""
    torch.manual_seed(0)
    prior = FineHorseshoe(0.3).double()
    places = torch.cartesian_prod(
        torch.arange(-27.6, 14, 0.725).double(), torch.cat([torch.arange(0.0025, 1, 0.025), torch.tensor([1.0])]).double()
    )
    random = torch.rand(1_000, 2, dtype=torch.float64) * torch.tensor([42.0, 1.0]) - torch.tensor([28.0, 0.0])
    small = torch.stack([random[:500, 0], 10 ** (-9 * random[:500, 1])], dim=1)
    for log_r, ratio in (part.T for part in (*places.split(1000), *random.split(1000), small)):
        assert max(table_errors(prior, log_r, ratio)) < TABLE_ERROR


def test_the_horseshoes_table_agrees_with_the_ledger():
    prior = HorseshoePrior(0.3, mean=0.0).double()
    random = torch.rand(1_000, 2, dtype=torch.float64) * torch.tensor([32.0, 1.0]) - torch.tensor([27.0, 0.0])
    assert max(table_errors(prior, *random.T)) < TABLE_ERROR


def test_the_horseshoes_table_is_made_once_and_fits_a_cache():
    first = _table(torch.float32, torch.device("cpu"))
    assert first is _table(torch.float32, torch.device("cpu"))
    assert first.numel() * first.element_size() < 2**21
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("parent", [LaplacePrior, GaussianPrior, CauchyPrior, HorseshoePrior], ids=lambda parent: parent.kind)
def test_another_density_does_not_inherit_derivatives(parent):
    """Also where only the width is another's."""

    class Wide(parent):
        kind = "wide"

        def forward(self):
            return Normal(self.mean, 2 * self.log_scale.exp(), validate_args=False)

    class Broad(parent):
        kind = "broad"

        def typical_scale(self):
            return 2 * self.log_scale.exp()

    class Sloped(parent):
        kind = "sloped"

        def forward(self):
            return Normal(self.mean, 0.5 * self.log_scale.exp(), validate_args=False)

        def slope(self, weights, rate=0.0):
            return Prior.slope(self, weights, rate)

    weights = torch.linspace(-1, 1, 7) + 0.01
    check_prior(Sloped(0.3, learn="gradient"))
    assert torch.allclose(Wide(0.3, learn="gradient").slope(weights), weights / 0.36)
    assert torch.allclose(Broad(0.3).slope(weights), parent(0.6).slope(weights), rtol=1e-3)
    check_prior(Wide(0.3, learn="gradient"))


class WrongSlope(LaplacePrior):
    """A slope that forgot the scale."""

    def slope(self, weights, rate=0.0):
        return weights.sign()


class WrongStd(LaplacePrior):
    """The gradient by std, not by log std."""

    def kl_gradient(self, mean, log_std, draw, rate=0.0):
        by_mean, by_log_std = super().kl_gradient(mean, log_std, draw, rate)
        return by_mean, by_log_std / log_std.exp()


class WrongLearned(LaplacePrior):
    """A gradient by the scale, not by its logarithm."""

    def kl_gradient(self, mean, log_std, draw, rate=0.0):
        return super().kl_gradient(mean, log_std, draw, rate / 0.2)


@pytest.mark.parametrize("wrong", [WrongSlope, WrongStd, WrongLearned])
def test_the_contract_finds_wrong_gradients(wrong):
    with pytest.raises(AssertionError, match=r"laplace: (kl_gradient|slope)"):
        check_prior(wrong(0.2, learn="gradient"))


def test_a_users_prior_needs_a_density_only():
    class Plain(Prior):
        kind = "plain"

        def __init__(self):
            super().__init__()
            self._store("mean", 0.0, "none")
            self._store_scale(0.4, "gradient")

        def forward(self):
            return Laplace(self.mean, self.log_scale.exp(), validate_args=False)

        def typical_scale(self):
            return self.log_scale.exp()

        def values(self):
            return {"scale": float(self.typical_scale().detach())}

    check_prior(Plain())
    found, wanted = Plain().double(), LaplacePrior(0.4, learn="gradient").double()
    weights = torch.randn(9, dtype=torch.float64)
    assert_close(both(found, found.slope, weights, 1.0), both(wanted, wanted.slope, weights, 1.0), rtol=1e-6)
