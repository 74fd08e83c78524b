"""Every prior keeps the contract; one line each."""

import math

import pytest
import torch
from scipy import special, stats

from bitsback.errors import BitsbackError, PriorError
from bitsback.kl import has_closed_form, kl, kl_each
from bitsback.posteriors import GaussianPosterior, PointPosterior
from bitsback.posteriors.base import Posterior
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
    WeightInfo,
    registry,
)
from bitsback.priors._horseshoe import scaled_exp1
from bitsback.testing import check_prior

MEMBERS = [
    GaussianPrior(0.3, learn="gradient"),
    GaussianPrior(0.3, mean=1.0),
    LaplacePrior(0.2, learn="gradient"),
    StudentTPrior(0.3, df=2.5, learn="gradient"),
    CauchyPrior(0.1, learn="gradient"),
    LogisticPrior(0.3, learn="gradient"),
    ScaleMixturePrior([0.02, 0.6], [0.75, 0.25], learn="gradient"),
    ScaleMixturePrior([0.02, 0.2, 1.0], [0.5, 0.3, 0.2]),
    AdaptiveMixturePrior([0.05, 0.1, 0.15], [0.3, 0.3, 0.4], [-0.5, 0.0, 0.5], learn="gradient", learn_means=True),
    SpikeAndSlabPrior([0.001, 1.0], [0.5, 0.5], learn="gradient"),
    HorseshoePrior(0.3, learn="gradient"),
    PyroPrior("Normal", {"loc": 0.1, "scale": 2.0}, scale=0.3, learn="gradient"),
    PyroPrior("AsymmetricLaplace", {"loc": 0.0, "scale": 1.0, "asymmetry": 2.0}, scale=0.3),
    PyroPrior("Gumbel", {"loc": 0.0, "scale": 1.0}, scale=0.3),
    PyroPrior("StudentT", {"df": 3.0, "loc": 0.1, "scale": 1.0}, scale=0.3, learn="gradient", learned=["df", "loc"]),
    PyroPrior("AsymmetricLaplace", {"loc": 0.0, "scale": 0.3, "asymmetry": 2.0}, learned=["scale", "asymmetry"]),
]


@pytest.mark.parametrize("prior", MEMBERS, ids=lambda prior: prior.kind)
def test_every_prior_keeps_the_contract(prior):
    check_prior(prior)


def test_every_registered_prior_is_under_contract():
    elementwise = {prior.kind for prior in MEMBERS}
    assert elementwise | {"group_gaussian", "checkpoint"} == set(registry)


SCIPY = [
    (GaussianPrior(0.3, mean=0.1), stats.norm(0.1, 0.3)),
    (LaplacePrior(0.3, mean=0.1), stats.laplace(0.1, 0.3)),
    (StudentTPrior(0.3, df=2.5), stats.t(2.5, 0, 0.3)),
    (CauchyPrior(0.3), stats.cauchy(0, 0.3)),
    (LogisticPrior(0.3), stats.logistic(0, 0.3)),
]


@pytest.mark.parametrize(("prior", "reference"), SCIPY, ids=lambda x: getattr(x, "kind", ""))
def test_density_agrees_with_scipy(prior, reference):
    x = torch.linspace(-9, 9, 101, dtype=torch.float64)
    assert torch.allclose(prior.double()().log_prob(x), torch.from_numpy(reference.logpdf(x.numpy())), atol=1e-6)


def test_exponential_integral_agrees_with_scipy():
    x = torch.logspace(-14, 2.5, 300, dtype=torch.float64)
    wanted = torch.from_numpy(special.exp1(x.numpy()) * x.exp().numpy())
    assert torch.allclose(scaled_exp1(x), wanted, rtol=1e-12)
    assert torch.autograd.gradcheck(
        scaled_exp1, (torch.tensor([0.1, 1.9, 2.1, 30.0], dtype=torch.float64, requires_grad=True),)
    )


def test_horseshoe_is_the_marginal_of_its_hierarchy():
    """p(w) = integral of N(w; 0, (lambda s)^2) over a half-Cauchy lambda, by brute force."""
    scale, w = 0.5, 0.8
    angle = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * math.pi / 2  # lambda = tan(angle)
    std = scale * angle.tan()
    wanted = float((torch.exp(-0.5 * (w / std) ** 2) / (std * math.sqrt(2 * math.pi))).mean())
    found = float(HorseshoePrior(scale).double()().log_prob(torch.tensor(w, dtype=torch.float64)).exp())
    assert found == pytest.approx(wanted, rel=1e-6)


def test_closed_form_scale_is_the_best_scale():
    q = GaussianPosterior(torch.randn(50), 0.2)
    prior = GaussianPrior(1.0, learn="closed_form")
    prior.update([(q.mean.detach(), q.std().detach())])
    best = float(kl(q, prior).nats.detach())
    for nearby in (0.9, 0.99, 1.01, 1.1):
        other = GaussianPrior(math.exp(float(prior.log_scale)) * nearby)
        assert float(kl(q, other).nats.detach()) > best


def test_closed_form_pools_the_weights_that_share_a_scale():
    a, b = torch.full((3,), 2.0), torch.full((1,), 4.0)
    prior = GaussianPrior(1.0, learn="closed_form")
    prior.update([(a, None), (b, None)])
    assert prior.values()["scale"] == pytest.approx(math.sqrt((3 * 4 + 16) / 4), rel=1e-6)


@pytest.mark.parametrize(("group", "shape"), [("output", (4, 1, 1)), ("input", (1, 3, 1))])
def test_group_gaussian_has_a_scale_per_unit(group, shape):
    info = WeightInfo("w", torch.Size([4, 3, 2]))
    prior = registry["group_gaussian"](group=group).build(info)
    assert prior().batch_shape == shape
    mean = torch.randn(4, 3, 2)
    prior.update([(mean, None)])
    rest = [axis for axis in range(3) if shape[axis] == 1]
    assert torch.allclose(prior.typical_scale(), mean.square().mean(rest, keepdim=True).sqrt())
    assert [charge.numbers for charge in prior.charges()] == [max(shape)]


def test_group_gaussian_kl_is_the_sum_over_groups():
    q = GaussianPosterior(torch.randn(2, 3), 0.3)
    prior = GroupGaussianPrior(torch.Size([2, 3]), axis=0, scale=0.5)
    prior.log_scale.copy_(torch.tensor([[0.1], [-0.7]]))
    rows = [
        kl(GaussianPosterior(q.mean[row], q.std()[row]), GaussianPrior(math.exp(float(prior.log_scale[row, 0])))).nats
        for row in range(2)
    ]
    assert float(kl(q, prior).nats.detach()) == pytest.approx(float(sum(rows).detach()), rel=1e-5)


def test_checkpoint_prior_costs_only_the_difference():
    old = torch.randn(5)
    prior = CheckpointPrior(old, 0.1, source="runs/old")
    same, moved = GaussianPosterior(old, 0.1), GaussianPosterior(old + 0.2, 0.1)
    assert float(kl(same, prior).nats) == pytest.approx(0.0, abs=1e-5)
    assert float(kl(moved, prior).nats) == pytest.approx(5 * 2.0, rel=1e-4)
    assert prior.given() == "the run 'runs/old'"


@pytest.mark.parametrize(
    ("kind", "norm"), [(GaussianPrior, lambda w: w.square() / (2 * 0.3**2)), (LaplacePrior, lambda w: w.abs() / 0.3)]
)
def test_penalty_of_a_point_is_l2_or_l1_in_bits(kind, norm):
    """-log2 p(w) is the L2 (Gaussian) or L1 (Laplace) penalty in bits, up to a constant per weight."""
    w = torch.randn(20, dtype=torch.float64)
    prior = kind(0.3).double()
    bits = kl(PointPosterior(w), prior).bits - kl(PointPosterior(torch.zeros_like(w)), prior).bits
    assert float(bits) == pytest.approx(float(norm(w).sum()) / math.log(2), rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(PriorError, match="positive, finite scale"):
        GaussianPrior(scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PyroPrior("Exponential", {"rate": 1.0}), "all reals as support"),
        (lambda: PyroPrior("Normall", {}), "did you mean 'Normal'"),
        (lambda: PyroPrior("Normal", {"loc": 0.0, "sale": 1.0}), "refuses"),
        (lambda: PyroPrior("Normal", {"loc": 0.0, "scale": -1.0}), "refuses"),
        (lambda: ScaleMixturePrior([0.1, 1.0], [0.5, 0.6]), "sum to one"),
        (lambda: ScaleMixturePrior([0.1], [1.0]), "two or more components"),
        (lambda: StudentTPrior(df=0.0), "degrees of freedom"),
        (lambda: LaplacePrior(learn="closed_form"), "has no closed form"),
        (lambda: PyroPrior("Normal", {"loc": "abc", "scale": 1.0}), "refuses"),
        (lambda: PyroPrior("Normal", {"loc": [0.0, 1.0], "scale": 1.0}).check(torch.Size([2])), "does not fit a weight"),
        (lambda: PyroPrior("TorchDistribution", {}), "refuses|does not say"),
    ],
)
def test_what_is_no_code_is_refused(make, message):
    with pytest.raises(PriorError, match=message):
        make()


def test_methods_that_do_not_exist_are_refused():
    q = GaussianPosterior(torch.zeros(2), 1.0)
    with pytest.raises(BitsbackError, match="no closed form"):
        kl(q, CauchyPrior(1.0), method="closed_form")
    several = PyroPrior("Normal", {"loc": [0.0, 1.0], "scale": 1.0})
    with pytest.raises(BitsbackError, match=r"one-dimensional density for all weights, got batch \(2,\)"):
        kl(q, several, method="quadrature")
    with pytest.raises(BitsbackError, match=r"got batch \(\) and event \(2,\)"):
        kl(q, vectors(), method="quadrature")
    with pytest.raises(BitsbackError, match="the prior 'pyro' does not code its weights one by one"):
        kl_each(q, vectors())
    with pytest.raises(BitsbackError, match="no KL is known for Uniform; use a Gaussian or a point posterior"):
        kl(Uniform(), GaussianPrior(1.0))


class Uniform(Posterior):
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(2))

    def draw(self, noise=None):
        return self.mean + torch.rand(2)

    def std(self):
        return torch.full((2,), 12**-0.5)


def vectors():
    matrix = [[1.0, 0.5], [0.5, 1.0]]
    return PyroPrior("MultivariateNormal", {"loc": [0.0, 0.0], "covariance_matrix": matrix})


@pytest.mark.parametrize(
    "prior", [GaussianPrior(0.5, mean=0.2), LaplacePrior(0.5), StudentTPrior(0.5)], ids=lambda prior: prior.kind
)
def test_the_kl_of_each_weight_adds_up_to_the_kl_of_all(prior):
    q = GaussianPosterior(torch.randn(3, 5), 0.2)
    each = kl_each(q, prior)
    alone = [kl(GaussianPosterior(mean.reshape(1), 0.2), prior).nats.item() for mean in q.mean.detach().flatten()]
    assert each.shape == (3, 5)
    assert each.flatten().tolist() == pytest.approx(alone, rel=1e-5)
    assert each.sum().item() == pytest.approx(kl(q, prior).nats.item(), rel=1e-5)


def test_what_is_known_in_closed_form():
    assert has_closed_form(GaussianPrior(0.5))
    assert has_closed_form(LaplacePrior(0.5)) == (
        kl(GaussianPosterior(torch.zeros(2), 1.0), LaplacePrior(0.5)).method == "closed_form"
    )
    assert not has_closed_form(StudentTPrior(0.5))
    assert not has_closed_form(vectors())


def test_one_draw_says_nothing_of_its_error():
    found = kl(GaussianPosterior(torch.zeros(2), 1.0), GaussianPrior(1.0), method="monte_carlo", samples=1)
    assert found.stderr_nats == math.inf


def test_monte_carlo_agrees_within_its_standard_error():
    q = GaussianPosterior(torch.randn(30), 0.2)
    prior = StudentTPrior(0.5)
    exact, sampled = kl(q, prior), kl(q, prior, method="monte_carlo", samples=2000)
    assert exact.stderr_bits == 0.0 < sampled.stderr_bits
    assert abs(float(exact.bits - sampled.bits)) < 5 * sampled.stderr_bits


def test_a_prior_over_vectors_falls_back_to_monte_carlo():
    q = GaussianPosterior(torch.zeros(3, 2), 1.0)
    found = kl(q, vectors(), samples=4000)
    wanted = 3 * 0.5 * (2 / 0.75 - 2 + math.log(0.75))  # trace of the inverse is 2 / 0.75, determinant 0.75
    assert found.method == "monte_carlo"
    assert float(found.nats) == pytest.approx(wanted, abs=5 * found.stderr_nats)


def test_half_precision_is_summed_in_float32():
    q = GaussianPosterior(torch.zeros(100_000), 0.1)
    wanted = float(kl(q, GaussianPrior(0.3)).nats)
    half = q.to(torch.bfloat16)
    assert float(kl(half, GaussianPrior(0.3)).nats) == pytest.approx(wanted, rel=0.02)
