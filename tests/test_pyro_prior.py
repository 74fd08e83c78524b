"""Priors from any Pyro distribution: learned arguments, distributions in place of settings, and their way into files."""

import copy

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bitsback
from bitsback.config import load_config
from bitsback.errors import PriorError
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.priors import CauchyPrior, GaussianPrior, LaplacePrior, PyroPrior, StudentTPrior, settings_of_distribution
from bitsback.testing import check_prior

STUDENT = {"kind": "pyro", "distribution": "StudentT", "arguments": {"df": 5.0, "loc": 0.0, "scale": 1.0}, "scale": 0.3}


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_gradients_of_learned_arguments_are_those_of_autograd():
    """The draw's own -log p: slope by weights, and by every learned number."""
    arguments = {"df": 3.0, "loc": 0.2, "scale": 1.0}
    prior = PyroPrior("StudentT", arguments, scale=0.4, learn="gradient", learned=["df", "loc"]).double()
    weights = torch.randn(50).double()
    leaf = weights.clone().requires_grad_(True)
    numbers = [prior.log_scale, prior.argument_df, prior.argument_loc]
    nats = -prior().log_prob(leaf).sum()
    wanted = torch.autograd.grad(nats, [leaf, *numbers])
    slope = prior.slope(weights, rate=0.5)
    torch.testing.assert_close(slope, wanted[0])
    for number, gradient in zip(numbers, wanted[1:], strict=True):
        torch.testing.assert_close(number.grad, 0.5 * gradient)
    assert [(charge.name, charge.bits) for charge in prior.charges()] == [
        ("log_scale", 10.0), ("argument_df", 10.0), ("argument_loc", 16.0)
    ]  # fmt: skip


def test_learned_arguments_follow_the_weights_and_are_charged():
    """Weights drawn from a mixture-like heavy-tailed law pull df down and loc to their centre."""
    network = nn.Linear(100, 20, bias=False)
    drawn = torch.distributions.StudentT(1.5, 0.4, 0.3).sample((20, 100))
    with torch.no_grad():
        network.weight.copy_(drawn)
    model = bitsback.bayesianize(
        network, {**STUDENT, "learned": ["df", "loc"]}, posterior={"std": 1e-3, "relative_to": "absolute"}
    )
    prior = model.priors[0]
    before = model.kl_bits().item()
    weight = model.weights[0]
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        prior.kl_gradient(
            weight.posterior.mean.detach(), weight.posterior.log_std.detach(), weight.posterior.draw().detach(), 1.0
        )
        optimizer.step()
    assert model.kl_bits().item() < before - 100
    values = prior.values()["arguments"]
    assert values["df"] == pytest.approx(1.5, rel=0.25)
    assert values["loc"] * prior.values()["scale"] == pytest.approx(0.4, abs=0.08)  # of scale * X
    prior.round_to_grid()
    assert prior.argument_loc == prior.argument_loc.bfloat16().float()
    charges = {charge.name: charge.bits for charge in model.charges()}
    assert charges == {"pyro.log_scale[weight]": 10, "pyro.argument_df[weight]": 10, "pyro.argument_loc[weight]": 16}


def test_a_training_from_yaml_charges_them_and_its_message_and_file_carry_them(tmp_path):
    settings = [
        "prior={kind: pyro, distribution: StudentT, arguments: {df: 5.0, loc: 0.0, scale: 1.0}, scale: 0.3, learned: [df]}"
    ]
    config = load_config("configs/digits.yaml", [*settings, "training.epochs=2", "ledger.samples=2"])
    run = bitsback.train(config, out=tmp_path / "run", progress=False, report=False)
    learned = [prior for prior in run.experiment.model.priors if isinstance(prior, PyroPrior)]
    assert all(
        float(prior.argument_df.detach()) != pytest.approx(torch.tensor(5.0).log().item(), abs=1e-4) for prior in learned
    )
    names = [charge.name for charge in run.ledger.charges]
    assert sum("argument_df" in name for name in names) == len(learned) == len(run.experiment.model.weights)
    again = bitsback.load_run(tmp_path / "run")
    found = bitsback.take_ledger(
        again.experiment().model, again.experiment().likelihood, again.experiment().dataset.train, samples=2
    )
    assert found.hyperparameter_bits == run.ledger.hyperparameter_bits
    assert found.net_weight_bits == pytest.approx(run.ledger.net_weight_bits, rel=1e-6)
    bitsback.pack(tmp_path / "run", tmp_path / "model.bb", progress=False)
    loaded = bitsback.load(tmp_path / "model.bb")
    for prior, other in zip(learned, loaded.model.priors, strict=True):
        torch.testing.assert_close(other.argument_df.detach().float(), prior.argument_df.detach())


@pytest.mark.parametrize(
    ("distribution", "kind"),
    [
        (dist.Normal(0.1, 0.5), GaussianPrior),
        (torch.distributions.Laplace(torch.zeros(3, 4), torch.full((3, 4), 0.5)), LaplacePrior),
        (dist.StudentT(3.0, 0.0, 0.5).expand([3, 4]).to_event(2), StudentTPrior),
        (dist.Cauchy(0.0, 0.5), PyroPrior),
        (dist.SoftLaplace(0.0, 0.5), PyroPrior),
        (dist.AsymmetricLaplace(0.0, 0.5, 2.0), PyroPrior),
        (dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.1]))),
         PyroPrior),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)  # fmt: skip
def test_a_distribution_is_a_prior(distribution, kind):
    model = bitsback.bayesianize(nn.Linear(4, 3), distribution, overrides={"bias": dist.Laplace(0.0, 1.0)})
    weight, bias = model.weights
    assert type(weight.prior) is kind
    assert type(bias.prior) is LaplacePrior
    assert not model.charges()
    x = torch.randn(3, 4)
    wanted = distribution.log_prob(x)
    found = weight.prior().log_prob(x)
    torch.testing.assert_close(found if wanted.ndim else found.sum(), wanted)
    copy.deepcopy(model)
    bitsback.take_ledger(model, CategoricalLikelihood(3), (torch.randn(5, 4), torch.arange(5) % 3), samples=2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"learned": ["dof"]}, r"names 'dof', which is no number in prior.arguments"),
        ({"learned": ["scale"]}, "the same number twice; set prior.learn to none"),
        ({"distribution": "ImproperUniform", "arguments": {}}, "is improper"),
        ({"distribution": "LogNormal", "arguments": {"loc": 0.0, "scale": 1.0}}, "needs all reals as support"),
        ({"arguments": {"df": -1.0, "loc": 0.0, "scale": 1.0}}, "refuses"),
    ],
)
def test_bad_arguments_are_refused(change, match):
    with pytest.raises(PriorError, match=match):
        bitsback.bayesianize(nn.Linear(4, 3), {**STUDENT, **change})


def test_a_mixture_given_by_its_parts_keeps_the_contract():
    parts = {
        "mixture_distribution": {"distribution": "Categorical", "arguments": {"probs": [0.3, 0.7]}},
        "component_distribution": {"distribution": "Normal", "arguments": {"loc": [0.0, 0.0], "scale": [1.0, 0.2]}},
    }
    check_prior(PyroPrior("MixtureSameFamily", parts, scale=0.3, learn="gradient"))


def test_arguments_that_cannot_be_learned():
    arguments = {"loc": [0.0, 0.0], "scale_tril": [[1.0, 0.0], [0.0, 1.0]]}
    with pytest.raises(PriorError, match="neither real, positive nor between 0 and 1"):
        PyroPrior("MultivariateNormal", arguments, learned=["scale_tril"])


def test_distributions_that_cannot_be_named():
    with pytest.raises(PriorError, match="differs from weight to weight"):
        settings_of_distribution(dist.Normal(torch.arange(3.0), 1.0))
    with pytest.raises(PriorError, match="not given by numbers alone"):
        settings_of_distribution(
            dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(0.0, 2.0)])
        )
    with pytest.raises(PriorError, match="settings, or a distribution"):
        bitsback.bayesianize(nn.Linear(4, 3), CauchyPrior(0.3))
