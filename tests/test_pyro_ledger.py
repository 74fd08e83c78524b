"""Ledgers of Pyro programs: every guide against sums by hand, examples of Pyro's own kinds, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, autoguide, config_enumerate
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from torch import nn
from torch.distributions import constraints

from bitsback.analysis.widen import WidthCurve
from bitsback.errors import LedgerError, PriorError
from bitsback.interop.pyro import ledger_of, width_curve_of
from bitsback.ledger import Ledger

STEP = 2.0**-10
LOG2 = math.log(2)


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(default)


def fitted(model, guide, *args, steps=300, lr=0.02):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*args)
    return guide


def by_hand(model, guide, *args, samples=6, seed=0):
    """Mean of log q - log p over the draws of a ledger, and of -log p of the data, in bits, by Pyro's own traces."""
    torch.manual_seed(seed)
    weights, data = [], []
    for _ in range(samples):
        q = poutine.trace(guide).get_trace(*args)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args)
        p.compute_log_prob()
        observed = sum(site["log_prob_sum"] for site in p.nodes.values() if site["type"] == "sample" and site["is_observed"])
        weights.append(float(q.log_prob_sum() - p.log_prob_sum() + observed) / LOG2)
        data.append(-float(observed) / LOG2)
    return sum(weights) / samples, sum(data) / samples


def normal_bits(mean, std, prior_mean, prior_std):
    """KL of two normals in bits, number by number."""
    rows = zip(
        *(torch.as_tensor(v).expand_as(mean).flatten().tolist() for v in (mean, std, prior_mean, prior_std)), strict=True
    )
    return sum(math.log(ps / s) + (s * s + (m - pm) ** 2) / (2 * ps * ps) - 0.5 for m, s, pm, ps in rows) / LOG2


def entropy_bits(stds, step=STEP):
    return sum(0.5 * math.log2(2 * math.pi * math.e) + math.log2(s) - math.log2(step) for s in stds.flatten().tolist())


X = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None] ** torch.arange(1, 4, dtype=torch.float64)
Y = (X.sum(1) > 0.1).double()


def logistic(x, y=None):
    """Independent normal priors: every guide of Gaussians has a closed form."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
    bias = pyro.sample("bias", dist.Normal(torch.tensor(0.2), 0.7))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ weight + bias), obs=y)


PRIOR_MEAN, PRIOR_STD = (torch.tensor(each, dtype=torch.float64) for each in ([0.0, 0, 0, 0.2], [1.5, 1.5, 1.5, 0.7]))


def hand(x, y=None):
    mean = pyro.param("mean", torch.tensor([0.3, -0.2, 0.1]))
    std = pyro.param("std", torch.tensor([0.5, 0.4, 0.3]), constraint=constraints.positive)
    pyro.sample("weight", dist.Normal(mean, std).to_event(1))
    pyro.sample("bias", dist.Normal(pyro.param("bias_mean", torch.tensor(0.1)), 0.25))


def test_a_guide_by_hand():
    fitted(logistic, hand, X, Y)
    ledger = ledger_of(logistic, hand, X, Y, samples=6, grid_step=STEP)
    mean, std = pyro.param("mean"), pyro.param("std")
    wanted = {"weight": normal_bits(mean, std, 0.0, 1.5), "bias": normal_bits(pyro.param("bias_mean"), 0.25, 0.2, 0.7)}
    refunds = {"weight": entropy_bits(std), "bias": entropy_bits(torch.tensor(0.25))}
    for entry in ledger.entries:
        assert entry.net_bits == pytest.approx(wanted[entry.name], abs=1e-5)
        assert entry.refund_bits == pytest.approx(refunds[entry.name], abs=1e-5)
        assert (entry.method, entry.stderr) == ("closed_form", 0.0)
    assert ledger.data_bits == pytest.approx(by_hand(logistic, hand, X, Y)[1], abs=1e-5)
    assert ledger.uniform_bits == 20
    assert ledger.examples == 20
    assert not ledger.warnings
    pyro.get_param_store()["std"] = torch.full((3,), 1e-9)
    (warning,) = ledger_of(logistic, hand, X, Y).warnings
    assert "more than no model (uniform code: 20 bits)" in warning
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_auto_normal_has_a_refund():
    """Its sites are deltas, of auxiliary sites that hold q: counted by themselves they would show no refund."""
    guide = fitted(logistic, autoguide.AutoNormal(logistic), X, Y)
    ledger = ledger_of(logistic, guide, X, Y, samples=6, grid_step=STEP)
    for entry, (mean, std) in zip(ledger.entries, ((0.0, 1.5), (0.2, 0.7)), strict=True):
        loc, scale = guide._get_loc_and_scale(entry.name)
        assert entry.net_bits == pytest.approx(normal_bits(loc, scale, mean, std), abs=1e-5)
        assert entry.refund_bits == pytest.approx(entropy_bits(scale), abs=1e-5)
        assert entry.refund_bits > 0
        assert entry.method == "closed_form"
    assert ledger.data_bits == pytest.approx(by_hand(logistic, guide, X, Y)[1], abs=1e-5)


def full_bits(mean, covariance):
    """KL of a joint Gaussian and the independent prior in bits, by determinants."""
    precision = torch.diag(PRIOR_STD**-2)
    away = mean - PRIOR_MEAN
    nats = (
        torch.trace(precision @ covariance) + away @ precision @ away - 4 + 2 * PRIOR_STD.log().sum() - torch.logdet(covariance)
    )
    return float(nats) / 2 / LOG2


@pytest.mark.parametrize("kind", ["AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal"])
def test_joint_guides_are_one_entry(kind):
    guide = fitted(logistic, getattr(autoguide, kind)(logistic), X, Y)
    ledger = ledger_of(logistic, guide, X, Y, samples=6, grid_step=STEP)
    (entry,) = ledger.entries
    posterior = guide.get_posterior()
    mean = posterior.mean.detach()
    covariance = (
        torch.diag(posterior.variance.detach()) if kind == "AutoDiagonalNormal" else posterior.covariance_matrix.detach()
    )
    assert (entry.name, entry.weights, entry.method) == ("weight, bias", 4, "closed_form")
    assert entry.net_bits == pytest.approx(full_bits(mean, covariance), abs=1e-5)
    refund = float(torch.logdet(covariance)) / 2 / LOG2 + 4 * (0.5 * math.log2(2 * math.pi * math.e) - math.log2(STEP))
    assert entry.refund_bits == pytest.approx(refund, abs=1e-5)
    assert ledger.data_bits == pytest.approx(by_hand(logistic, guide, X, Y)[1], abs=1e-5)


def test_auto_delta_is_a_point_without_refund():
    guide = fitted(logistic, autoguide.AutoDelta(logistic), X, Y)
    ledger = ledger_of(logistic, guide, X, Y, samples=2, grid_step=STEP)
    points = {"weight": guide.median()["weight"], "bias": guide.median()["bias"]}
    for entry, prior in zip(
        ledger.entries, (torch.distributions.Normal(0.0, 1.5), torch.distributions.Normal(0.2, 0.7)), strict=True
    ):
        at = (points[entry.name].detach() / STEP).round() * STEP
        mass = prior.cdf(at + STEP / 2) - prior.cdf(at - STEP / 2)
        assert entry.net_bits == pytest.approx(float(-mass.log2().sum()), abs=1e-5)
        assert (entry.method, entry.refund_bits, entry.stderr) == ("point", 0.0, 0.0)
        points[entry.name] = at
    logits = X @ points["weight"] + points["bias"]
    paid = nn.functional.binary_cross_entropy_with_logits(logits, Y, reduction="sum") / LOG2
    assert ledger.data_bits == pytest.approx(float(paid), abs=1e-9)  # of the rounded numbers


def test_a_flow_is_averaged_over_draws():
    guide = fitted(logistic, autoguide.AutoIAFNormal(logistic, hidden_dim=[8]), X, Y, steps=30)
    ledger = ledger_of(logistic, guide, X, Y, samples=6, grid_step=STEP)
    (entry,) = ledger.entries
    weights, data = by_hand(logistic, guide, X, Y)
    assert entry.net_bits == pytest.approx(weights, abs=1e-5)
    assert ledger.data_bits == pytest.approx(data, abs=1e-5)
    assert entry.method == "monte_carlo"
    assert entry.stderr > 0


def test_a_list_of_guides():
    guide = autoguide.AutoGuideList(logistic)
    guide.append(autoguide.AutoMultivariateNormal(poutine.block(logistic, expose=["weight"])))
    guide.append(autoguide.AutoDelta(poutine.block(logistic, expose=["bias"])))
    ledger = ledger_of(logistic, guide, X, Y, samples=6, grid_step=STEP)
    assert [(entry.name, entry.method) for entry in ledger.entries] == [("weight", "closed_form"), ("bias", "point")]


def test_a_laplace_guide_without_its_width_is_refused():
    guide = fitted(logistic, autoguide.AutoLaplaceApproximation(logistic), X, Y, steps=5)
    with pytest.raises(LedgerError, match="is a point in the guide, not a distribution"):
        ledger_of(logistic, guide, X, Y)


@pytest.mark.parametrize("kind", ["AutoStructured", "AutoGaussian", "AutoLaplaceApproximation"])
def test_other_guides_agree_with_traces(kind):
    guide = getattr(autoguide, kind)(logistic)
    guide = fitted(logistic, guide, X, Y, steps=50)
    if kind == "AutoLaplaceApproximation":
        guide = guide.laplace_approximation(X, Y)
    ledger = ledger_of(logistic, guide, X, Y, samples=400, grid_step=STEP)
    weights, data = by_hand(logistic, guide, X, Y, samples=400)
    spread = 6 * max(0.02, sum(entry.stderr for entry in ledger.entries))
    assert ledger.net_weight_bits == pytest.approx(weights, abs=max(0.5, spread))
    assert ledger.data_bits == pytest.approx(data, abs=1e-5)
    assert ledger.refund_bits > 0


def test_net_bits_are_minus_the_elbo():
    guide = fitted(logistic, autoguide.AutoNormal(logistic), X, Y)
    ledger = ledger_of(logistic, guide, X, Y, samples=400)
    losses = [Trace_ELBO().loss(logistic, guide, X, Y) / LOG2 for _ in range(400)]
    spread = 6 * (torch.tensor(losses).std() / 20 + ledger.data_bits_stderr)
    assert ledger.net_bits == pytest.approx(sum(losses) / 400, abs=float(spread))


# Pyro's own kinds of examples


def schools(sigma, y=None):
    """Eight schools (Rubin 1981), centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)
EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)


def test_eight_schools():
    guide = fitted(schools, autoguide.AutoNormal(schools), SIGMA, EFFECTS)
    ledger = ledger_of(schools, guide, SIGMA, EFFECTS, samples=500, resolution=1.0, grid_step=STEP)
    entries = {entry.name: entry for entry in ledger.entries}
    assert list(entries) == ["mu", "tau", "theta"]
    assert entries["mu"].method == entries["theta"].method == "closed_form"
    assert entries["mu"].stderr == 0
    assert entries["theta"].stderr > 0
    assert entries["tau"].method == "monte_carlo"
    assert any("'tau' is counted on its unconstrained scale" in note for note in ledger.notes)
    # tau by quadrature: E_q[log q(u) - log p(e^u) - u], u ~ N(loc, scale^2)
    loc, scale = (float(v) for v in guide._get_loc_and_scale("tau"))
    u = torch.linspace(loc - 10 * scale, loc + 10 * scale, 20_001)
    q = torch.distributions.Normal(loc, scale)
    p = torch.distributions.HalfCauchy(torch.tensor(5.0)).log_prob(u.exp()) + u
    net = float(torch.trapezoid(q.log_prob(u).exp() * (q.log_prob(u) - p), u)) / LOG2
    assert entries["tau"].net_bits == pytest.approx(net, abs=6 * entries["tau"].stderr)
    assert entries["tau"].refund_bits == pytest.approx(entropy_bits(torch.tensor(scale)), abs=1e-5)
    # theta given mu and tau, which the guide draws independently of it
    loc, scale = guide._get_loc_and_scale("theta")
    many = poutine.trace(guide)
    nets = []
    for _ in range(500):
        drawn = many.get_trace(SIGMA, EFFECTS).nodes
        nets.append(normal_bits(loc, scale, drawn["mu"]["value"], drawn["tau"]["value"]))
    spread = torch.tensor(nets).std() / math.sqrt(500)
    assert entries["theta"].net_bits == pytest.approx(sum(nets) / 500, abs=float(8 * spread))
    losses = torch.tensor([Trace_ELBO().loss(schools, guide, SIGMA, EFFECTS) / LOG2 for _ in range(2000)])
    spread = 6 * (losses.std() / math.sqrt(2000) + sum(e.stderr for e in ledger.entries) + ledger.data_bits_stderr)
    assert ledger.net_bits == pytest.approx(float(losses.mean()), abs=float(spread))


def test_eight_schools_under_a_joint_guide():
    guide = fitted(schools, autoguide.AutoMultivariateNormal(schools), SIGMA, EFFECTS, steps=100)
    ledger = ledger_of(schools, guide, SIGMA, EFFECTS, samples=6, resolution=1.0, grid_step=STEP)
    (entry,) = ledger.entries
    assert (entry.name, entry.weights, entry.method) == ("mu, tau, theta", 10, "monte_carlo")
    assert entry.net_bits == pytest.approx(by_hand(schools, guide, SIGMA, EFFECTS)[0], abs=1e-5)


def regression(x, y=None):
    """Bayesian regression with a noise that is a latent too."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 0.5))
    with pyro.plate("data", 20, subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ weight, noise), obs=None if y is None else y[rows])


def test_bayesian_regression_in_minibatches():
    y = ((X.sum(1) + 0.1 * torch.randn(20)) * 100).round() / 100
    guide = fitted(regression, autoguide.AutoNormal(regression), X, y)
    ledger = ledger_of(regression, guide, X, y, samples=8, resolution={"y": 0.01}, grid_step=STEP)
    entries = {entry.name: entry for entry in ledger.entries}
    for name, (mean, std) in {
        "weight": (0.0, 1.0),
        "noise": (-1.0, 0.5),
    }.items():  # log-normal: normal on the scale of the guide
        loc, scale = guide._get_loc_and_scale(name)
        assert entries[name].net_bits == pytest.approx(normal_bits(loc, scale, mean, std), abs=1e-5)
        assert entries[name].method == "closed_form"
    assert (ledger.examples, ledger.symbols) == (20, None)
    assert ledger.data_bits == pytest.approx(by_hand(regression, guide, X, y, samples=8)[1] - 20 * math.log2(0.01), abs=1e-5)
    assert "'y' is coded on a grid of 0.01" in ledger.notes
    assert any("'y' is subsampled" in note for note in ledger.notes)
    with pytest.raises(LedgerError, match="only on a grid; give the step"):
        ledger_of(regression, guide, X, y)


def horseshoe(x, y=None):
    """Horseshoe regression (Carvalho, Polson & Scott 2010)."""
    overall = pyro.sample("overall", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("features", 3):
        local = pyro.sample("local", dist.HalfCauchy(torch.tensor(1.0)))
        weight = pyro.sample("weight", dist.Normal(0.0, overall * local))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def test_horseshoe_regression():
    guide = fitted(horseshoe, autoguide.AutoNormal(horseshoe), X, Y)
    ledger = ledger_of(horseshoe, guide, X, Y, samples=300)
    assert [entry.name for entry in ledger.entries] == ["overall", "local", "weight"]
    assert [entry.weights for entry in ledger.entries] == [1, 3, 3]
    losses = torch.tensor([Trace_ELBO().loss(horseshoe, guide, X, Y) / LOG2 for _ in range(1000)])
    spread = 6 * (losses.std() / math.sqrt(1000) + sum(e.stderr for e in ledger.entries) + ledger.data_bits_stderr)
    assert ledger.net_bits == pytest.approx(float(losses.mean()), abs=float(spread))


class Vae(nn.Module):
    """VAE of 12 binary pixels and two latents."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 12), nn.Linear(12, 4)

    def model(self, images, batch=None):
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(images), subsample=batch) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=images[rows])

    def guide(self, images, batch=None):
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(images), subsample=batch) as rows:
            mean, log_std = self.encoder(images[rows]).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_std.exp()).to_event(1))


def test_the_latents_of_a_vae_have_a_bits_back_ledger():
    images = (torch.rand(30, 12) > 0.5).double()
    images[:, 6:] = images[:, :6]
    vae = Vae()
    fitted(vae.model, vae.guide, images)
    ledger = ledger_of(vae.model, vae.guide, images, samples=5, grid_step=STEP)
    entries = {entry.name: entry for entry in ledger.entries}
    mean, log_std = vae.encoder(images).chunk(2, -1)
    assert entries["z"].net_bits == pytest.approx(normal_bits(mean, log_std.exp(), 0.0, 1.0), abs=1e-5)
    assert entries["z"].refund_bits == pytest.approx(entropy_bits(log_std.exp()), abs=1e-4)
    assert (entries["z"].weights, entries["z"].method) == (60, "closed_form")
    assert entries["decoder.weight"].net_bits == 64 * 24  # float64 here
    assert sum(entry.weights for entry in ledger.entries) == 60 + 36
    assert (ledger.uniform_bits, ledger.examples, ledger.symbols) == (360, 30, 360)
    assert any("the guide's parameters (52 numbers)" in line for line in ledger.not_charged)
    # a subsampled plate counts for all images
    half = ledger_of(vae.model, vae.guide, images, torch.arange(15), samples=5, grid_step=STEP)
    mean, log_std = vae.encoder(images[:15]).chunk(2, -1)
    found = next(entry for entry in half.entries if entry.name == "z")
    assert found.net_bits == pytest.approx(2 * normal_bits(mean, log_std.exp(), 0.0, 1.0), abs=1e-4)
    assert (found.weights, half.examples, half.uniform_bits) == (60, 30, 360)
    with pytest.raises(LedgerError, match="values outside of Bernoulli's support"), pyro.validation_enabled(False):
        ledger_of(vae.model, vae.guide, images * 0.5)


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        rate = pyro.sample("rate", dist.LogNormal(1.0, 1.0))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rate[assignment]), obs=x)


def test_a_mixture_with_enumeration_is_refused():
    counts = torch.tensor([0.0, 1, 2, 9, 11, 12])
    guide = autoguide.AutoNormal(poutine.block(mixture, hide=["assignment"]))
    svi = SVI(config_enumerate(mixture), guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(5):
        svi.step(counts)
    for model in (mixture, config_enumerate(mixture)):
        with pytest.raises(
            LedgerError, match="'assignment' is summed over by enumeration in the model: no value of it is drawn"
        ):
            ledger_of(model, guide, counts)

    def drawing(x):
        guide(x)
        with pyro.plate("data", len(x)):
            pyro.sample("assignment", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})

    with pytest.raises(LedgerError, match="enumeration in the guide"):
        ledger_of(mixture, drawing, counts)


def test_a_mixture_whose_assignments_the_guide_draws():
    counts = torch.tensor([0.0, 1, 2, 9, 11, 12])
    guide = autoguide.AutoNormal(poutine.block(mixture, hide=["assignment"]))
    guide(counts)
    chosen = torch.tensor([[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 3)

    def whole(x):
        guide(x)
        with pyro.plate("data", len(x)):
            pyro.sample("assignment", dist.Categorical(chosen))

    ledger = ledger_of(mixture, whole, counts, samples=50, grid_step=STEP)
    entry = next(entry for entry in ledger.entries if entry.name == "assignment")
    assert entry.refund_bits == pytest.approx(-float((chosen * chosen.log2()).sum()), abs=1e-5)  # labels have no grid
    assert entry.method == "closed_form"


# what is refused


@pytest.mark.parametrize("reparam", [LocScaleReparam(0.0), LocScaleReparam(), TransformReparam()])
def test_what_a_reparameterised_program_computes_is_no_data(reparam):
    def model(sigma, y=None):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
        with pyro.plate("schools", len(sigma)):
            fn = dist.Normal(mu, tau)
            if isinstance(reparam, TransformReparam):
                step = dist.transforms.AffineTransform(mu, tau)
                fn = dist.TransformedDistribution(dist.Normal(torch.zeros(()), 1.0), [step])
            pyro.sample("y", dist.Normal(pyro.sample("theta", fn), sigma), obs=y)

    program = poutine.reparam(model, {"theta": reparam})
    guide = fitted(program, autoguide.AutoNormal(program), SIGMA, EFFECTS, steps=200)
    ledger = ledger_of(program, guide, SIGMA, EFFECTS, samples=300, resolution=0.1)
    assert (ledger.examples, ledger.symbols) == (8, None)
    assert ledger.notes[-1] == "'y' is coded on a grid of 0.1"
    assert {entry.name.split("_")[-1] for entry in ledger.entries} <= {"mu", "tau", "decentered", "base", "centered"}
    fixed = sum(entry.net_bits for entry in ledger.entries if entry.method == "float64")
    assert fixed == (64 if isinstance(reparam, LocScaleReparam) and reparam.centered is None else 0)
    losses = torch.tensor([Trace_ELBO().loss(program, guide, SIGMA, EFFECTS) / LOG2 for _ in range(1000)])
    spread = 6 * (losses.std() / math.sqrt(1000) + sum(e.stderr for e in ledger.entries) + ledger.data_bits_stderr)
    assert spread < 6
    assert ledger.net_bits - fixed == pytest.approx(float(losses.mean()) + 8 * math.log2(10), abs=float(spread))
    # the same steps by resolution of the data alone: nothing else has a grid
    assert ledger_of(program, guide, SIGMA, EFFECTS, samples=300, resolution={"y": 0.1}).net_bits == ledger.net_bits


def test_an_observed_delta_is_a_factor():
    def dense(x, y=None, at=1.0):
        hand(x, y)
        pyro.sample("c", dist.Delta(torch.ones(3), log_density=torch.tensor(-2.0), event_dim=1), obs=at * torch.ones(3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), obs=y)

    ledger = ledger_of(dense, hand, X, Y, samples=2)
    assert ledger.data_bits == pytest.approx(20 + 2 / LOG2, abs=1e-6)
    assert (ledger.examples, ledger.symbols, ledger.uniform_bits) == (20, None, 20)
    refused(dense, lambda x, y, at: hand(x, y), "'c' has a value of no probability", at=2.0)


def refused(model, guide, match, kind=LedgerError, **more):
    with pytest.raises(kind, match=match):
        ledger_of(model, guide, X, Y, **more)


def test_bad_programs_are_refused_in_one_sentence():
    refused(
        logistic, lambda x, y: pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1)), "misses the site 'bias'"
    )

    def extra(x, y):
        hand(x, y)
        pyro.sample("more", dist.Normal(0.0, 1.0))

    refused(logistic, extra, "draws 'more', which the model does not")

    def improper(x, y):
        with poutine.block(hide=["bias"]):
            logistic(x, y)
        pyro.sample("bias", dist.ImproperUniform(constraints.real, (), ()))

    refused(improper, hand, "prior of 'bias' is improper", PriorError)
    for fn in (
        dist.Normal(torch.zeros(3), 1.0).mask(False).to_event(1),
        dist.Normal(torch.zeros(3), 1.0).to_event(1).mask(False),
    ):
        refused(lambda x, y, fn=fn: pyro.sample("weight", fn), hand, "prior of 'weight' is improper", PriorError)
    refused(lambda x, y: pyro.sample("bias", dist.Delta(torch.tensor(1.0))), hand, "prior of 'bias' is a Delta")
    refused(logistic, hand, r"needs samples >= 2, .*got samples=0$", samples=0)
    refused(logistic, hand, "needs a grid_step above zero, or None", grid_step=0.0)
    for bad in (-1, 0.0, math.nan, {"y": -1.0}, "0.1"):
        refused(logistic, hand, "resolution is the step .*a number above zero; got", resolution=bad)
    refused(logistic, hand, "names 'yy', which the model does not observe .did you mean 'y'", resolution={"yy": 1.0})

    def positive(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        scale = pyro.sample("bias", dist.LogNormal(torch.tensor(0.0), 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight * scale), obs=y)

    refused(
        positive,
        hand,
        "draws 'bias' from a Normal over all reals, and the model holds it to .*biject_to.*the transform's derivative",
    )

    def uniform(x, y):
        hand(x, y)

    def unit(x, y):
        pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        pyro.sample("bias", dist.Uniform(torch.tensor(0.0), 0.5))
        pyro.sample("y", dist.Bernoulli(torch.full((20,), 0.5)).to_event(1), obs=y)

    def beyond(x, y):
        pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        pyro.sample("bias", dist.Uniform(torch.tensor(0.6), 0.9))

    refused(unit, beyond, "draws 'bias' outside of the model's support")

    def unsteady(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        if weight[0] > 0:
            pyro.sample("bias", dist.Normal(torch.tensor(0.2), 0.7))
        pyro.sample("y", dist.Bernoulli(torch.full((20,), 0.5)).to_event(1), obs=y)

    def unsteadily(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        if weight[0] > 0:
            pyro.sample("bias", dist.Normal(torch.tensor(0.2), 0.7))

    refused(unsteady, unsteadily, "changes from draw to draw: 'bias' is not always there")
    refused(lambda x, y: pyro.sample("weight", dist.Normal(0.0, 1.0)), lambda x, y: pyro.sample("weight", dist.Normal(0.0, 1.0)),
            "observes nothing")  # fmt: skip
    refused(logistic, hand, "samples >= 2", samples=1)
    refused(logistic, hand, "grid_step above zero", grid_step=-1.0)
    refused(logistic, autoguide.AutoDelta(logistic), "too coarse for the point", grid_step=64.0)


def test_a_guide_outside_of_the_plate_is_refused():
    vae = Vae()

    def outside(images, batch=None):
        mean, log_std = vae.encoder(images[batch]).chunk(2, -1)
        pyro.sample("z", dist.Normal(mean, log_std.exp()).to_event(1))

    with pytest.raises(LedgerError, match="counts 2 times in the model and 1 times in the guide"):
        ledger_of(vae.model, outside, torch.ones(30, 12), torch.arange(15))


def test_masks():
    shown = torch.arange(20) < 12

    def masked(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        bias = pyro.sample("bias", dist.Normal(torch.tensor(0.2), 0.7))
        with pyro.plate("data", len(x)), poutine.mask(mask=shown):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight + bias), obs=y)

    ledger = ledger_of(masked, hand, X, Y, samples=6, grid_step=STEP)
    assert (ledger.uniform_bits, ledger.symbols, ledger.examples) == (12, 12, 20)
    assert ledger.data_bits == pytest.approx(by_hand(masked, hand, X, Y)[1], abs=1e-5)
    refused(poutine.mask(logistic, mask=torch.tensor(False)), hand, "masked differently in model and guide")
    refused(poutine.mask(logistic, mask=False), hand, "prior of 'weight' is improper", PriorError)


@pytest.mark.parametrize(
    "guide", [hand, autoguide.AutoNormal, autoguide.AutoMultivariateNormal, autoguide.AutoLowRankMultivariateNormal]
)
def test_wider_and_narrower_guides(guide):
    guide = guide if guide is hand else guide(logistic)
    fitted(logistic, guide, X, Y)
    curve = width_curve_of(logistic, guide, X, Y, factors=[0.5, 1.0, 2.0], samples=6)
    one = ledger_of(logistic, guide, X, Y, samples=6)
    assert curve[1.0].to_dict() == one.to_dict()
    assert curve[2.0].refund_bits == pytest.approx(one.refund_bits + 4, abs=1e-6)  # a bit for each of four numbers
    assert curve[0.5].refund_bits == pytest.approx(one.refund_bits - 4, abs=1e-6)
    assert "cheapest" in str(WidthCurve(curve))
    with pytest.raises(LedgerError, match="draws from no Gaussian"):
        width_curve_of(logistic, autoguide.AutoDelta(logistic), X, Y)
    with pytest.raises(LedgerError, match="above zero"):
        width_curve_of(logistic, guide, X, Y, factors=[0.0])


def test_a_guide_on_the_latents_own_scale():
    """A guide may be of the prior's kind: the KL is torch's, the refund on the scale of the latent itself."""

    def rates(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        pyro.sample("rate", dist.Gamma(torch.tensor(9.0), 3.0))

    ledger = ledger_of(rates, guide, torch.tensor([1.0, 4.0, 3.0]), grid_step=STEP)
    q, p = torch.distributions.Gamma(torch.tensor(9.0), 3.0), torch.distributions.Gamma(torch.tensor(2.0), 1.0)
    x = torch.linspace(1e-6, 40, 400_001)
    net = float(torch.trapezoid(q.log_prob(x).exp() * (q.log_prob(x) - p.log_prob(x)), x)) / LOG2
    assert ledger.entries[0].net_bits == pytest.approx(net, abs=1e-5)
    assert ledger.entries[0].refund_bits == pytest.approx(float(q.entropy()) / LOG2 - math.log2(STEP), abs=1e-5)
    assert ledger.notes == ()


def test_points_that_are_positive_pay_for_the_bucket_on_the_unconstrained_scale():
    guide = fitted(regression, autoguide.AutoDelta(regression), X, Y)
    ledger = ledger_of(regression, guide, X, Y, samples=2, grid_step=STEP, resolution=1.0)
    entry = next(entry for entry in ledger.entries if entry.name == "noise")
    at = (guide.median()["noise"].detach().log() / STEP).round() * STEP
    normal = torch.distributions.Normal(-1.0, 0.5)
    assert entry.net_bits == pytest.approx(float(-(normal.cdf(at + STEP / 2) - normal.cdf(at - STEP / 2)).log2()), abs=1e-5)


def test_points_on_a_simplex_and_labels_as_points():
    counts = torch.tensor([0.0, 1, 2, 9, 11, 12])

    def guide(x):
        pyro.sample("weights", dist.Delta(torch.tensor([0.4, 0.6]), event_dim=1))
        with pyro.plate("components", 2):
            pyro.sample("rate", dist.Delta(torch.tensor([1.0, 10.0])))
        with pyro.plate("data", len(x)):
            pyro.sample("assignment", dist.Delta(torch.tensor([0, 0, 0, 1, 1, 1])))

    ledger = ledger_of(mixture, guide, counts, samples=2, grid_step=STEP)
    entries = {entry.name: entry for entry in ledger.entries}
    assert {entry.method for entry in entries.values()} == {"point"}
    assert entries["assignment"].net_bits == pytest.approx(-3 * math.log2(0.4) - 3 * math.log2(0.6), abs=0.01)
    assert (entries["weights"].weights, entries["assignment"].weights) == (1, 6)
    # a uniform Dirichlet of two: the density of u with w = sigmoid(u) is w (1 - w)
    assert entries["weights"].net_bits == pytest.approx(-math.log2(0.4 * 0.6 * STEP), abs=0.01)


def test_loops_in_place_of_vectors():
    """A sequential plate has a site for each example, and one code covers them all."""

    def looped(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        bias = pyro.sample("bias", dist.Normal(torch.tensor(0.2), 0.7))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"y_{i}", dist.Bernoulli(logits=x[i] @ weight + bias), obs=y[i])

    one, other = (ledger_of(model, hand, X, Y, samples=6, grid_step=STEP) for model in (looped, logistic))
    assert one.data_bits == pytest.approx(other.data_bits, abs=1e-9)
    assert one.net_weight_bits == other.net_weight_bits
    assert (one.examples, one.uniform_bits, one.marginal_bits) == (20, 20, pytest.approx(other.marginal_bits))


def test_auxiliary_sites():
    """A guide of one's own may make a latent of an auxiliary site; one of which nothing is made is refused."""

    def positive(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.3), 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight * scale), obs=y)

    def guide(x, y):
        pyro.sample("weight", dist.Normal(torch.zeros(3), 0.5).to_event(1))
        u = pyro.sample("u", dist.Normal(torch.tensor(0.1), 0.2), infer={"is_auxiliary": True})
        pyro.sample("scale", dist.Delta(u.exp(), log_density=-u))

    ledger = ledger_of(positive, guide, X, Y, grid_step=STEP)
    assert ledger.entries[1].name == "scale"
    assert ledger.entries[1].net_bits == pytest.approx(normal_bits(torch.tensor(0.1), 0.2, 0.3, 0.7), abs=1e-5)
    assert ledger.entries[1].method == "closed_form"

    def idle(x, y):
        hand(x, y)
        pyro.sample("u", dist.Normal(torch.tensor(0.1), 0.2), infer={"is_auxiliary": True})

    refused(logistic, idle, "no latent of the model is made of the guide's auxiliary site 'u'")


def test_latents_that_depend_on_each_other_in_the_guide_are_one_entry():
    def chain(x, y=None):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        weight = pyro.sample("weight", dist.Normal(mean * torch.ones(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)

    def backwards(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.tensor([0.5, 0.1, -0.3]), 0.5).to_event(1))
        pyro.sample("mean", dist.Normal(weight.mean(), 0.3))

    ledger = ledger_of(chain, backwards, X, Y, samples=6, grid_step=STEP)
    nets = {entry.name: entry for entry in ledger.entries}
    assert list(nets) == ["weight, mean"]
    assert nets["weight, mean"].weights == 4
    assert ledger.net_weight_bits == pytest.approx(by_hand(chain, backwards, X, Y)[0], abs=1e-5)


def test_missing_observations_are_masked():
    y = Y.clone()
    y[:5] = math.nan

    def masked(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.5).to_event(1))
        bias = pyro.sample("bias", dist.Normal(torch.tensor(0.2), 0.7))
        with pyro.plate("data", len(x)), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight + bias, validate_args=False), obs=y)

    ledger = ledger_of(masked, hand, X, y, samples=6)
    assert math.isfinite(ledger.data_bits)
    assert (ledger.uniform_bits, ledger.symbols) == (15, 15)


def observing(fn, value):
    """A program of one latent whose data have a distribution of any kind."""

    def model():
        at = pyro.sample("at", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(value)):
            pyro.sample("x", fn(at), obs=value)

    def guide():
        pyro.sample("at", dist.Normal(torch.tensor(0.3), 0.5))

    return model, guide


@pytest.mark.parametrize(
    ("fn", "value", "uniform", "more"),
    [
        (lambda at: dist.Binomial(7, logits=at.expand(4)), torch.tensor([0.0, 3, 7, 2]), 4 * 3, {}),
        (lambda at: dist.OneHotCategorical(logits=at * torch.eye(4)), torch.eye(4), 4 * 2, {}),
        (lambda at: dist.Categorical(logits=at * torch.eye(4)), torch.arange(4), 4 * 2, {}),
        (lambda at: dist.NegativeBinomial(torch.full((4,), 2.0), logits=at), torch.tensor([0.0, 3, 7, 2]), 4 * 3, {}),
        (lambda at: dist.Normal(at.expand(4), 1.0), torch.tensor([0.0, 3, 7, 2]), 4 * 3, {"resolution": 1.0}),
        (lambda at: dist.MultivariateNormal(at.expand(4, 2), torch.eye(2)), torch.tensor([[0.0, 0], [3, 1], [7, 1], [2, 0]]), 4 * 4,
         {"resolution": {"x": 1.0}}),
    ],
    ids=["binomial", "one hot", "categorical", "negative binomial", "normal", "multivariate"],
)  # fmt: skip
def test_observations_of_every_kind(fn, value, uniform, more):
    model, guide = observing(fn, value)
    ledger = ledger_of(model, guide, samples=6, **more)
    assert ledger.data_bits == pytest.approx(by_hand(model, guide)[1], abs=1e-5)
    assert ledger.uniform_bits == pytest.approx(uniform)
    assert ledger.examples == 4


def test_observations_without_a_code_of_their_own_are_refused():
    model, guide = observing(lambda at: dist.Multinomial(5, torch.ones(4, 3)), torch.tensor([[5.0, 0, 0]] * 4))
    with pytest.raises(LedgerError, match="no code without a model is known for 'x', a Multinomial"):
        ledger_of(model, guide)


def test_factors_count_as_data():
    model, guide = observing(lambda at: dist.Poisson(at.exp().expand(4)), torch.tensor([0.0, 3, 7, 2]))

    def weighed():
        model()
        pyro.factor("more", torch.tensor(-8.0 * LOG2))

    one, other = (ledger_of(program, guide, samples=6) for program in (weighed, model))
    assert one.data_bits == pytest.approx(other.data_bits + 8)
    assert one.symbols == other.symbols


def test_points_with_a_joint_prior_and_a_log_normal_in_a_plate():
    def model():
        pair = pyro.sample("pair", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])))
        with pyro.plate("scales", 2):
            scale = pyro.sample(
                "scale", dist.LogNormal(torch.zeros(2), torch.tensor([0.5, 0.7])).mask(torch.tensor([True, True]))
            )
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Poisson(scale * pair.exp()), obs=torch.tensor([1.0, 2.0]))

    ledger = ledger_of(model, autoguide.AutoDelta(model, init_loc_fn=init_to_value(values={"pair": torch.tensor([0.25, 0.5])})),
                       samples=2, grid_step=STEP)  # fmt: skip
    entry = next(entry for entry in ledger.entries if entry.name == "pair")
    density = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    assert entry.net_bits == pytest.approx(-float(density.log_prob(torch.tensor([0.25, 0.5]))) / LOG2 + 20, abs=1e-5)
    guide = autoguide.AutoNormal(model)
    ledger = ledger_of(model, guide, samples=6)
    assert next(entry for entry in ledger.entries if entry.name == "scale").weights == 2
    assert ledger.net_weight_bits == pytest.approx(by_hand(model, guide)[0], abs=3)


def coded(fn, value, resolution=0.01):
    """The ledger of observations whose distribution knows no latent, and their bits with one grid step each for ``free``."""

    def model():
        pyro.sample("at", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(value)):
            pyro.sample("x", fn, obs=value)

    ledger = ledger_of(model, lambda: pyro.sample("at", dist.Normal(0.3, 0.5)), samples=2, resolution=resolution)
    return ledger, lambda free: -float(fn.log_prob(value).sum()) / LOG2 - free * math.log2(resolution)


def test_observations_pay_a_grid_step_for_each_dimension():
    """A Dirichlet of four has a density of three numbers: the mass of a cell of the grid is that density times step^3."""
    rows = torch.distributions.Dirichlet(torch.full((4,), 2.0)).sample((5,))
    ledger, by_density = coded(dist.Dirichlet(torch.tensor([2.0, 2.0, 2.0, 3.0])).expand([5]), rows)
    assert ledger.data_bits == pytest.approx(by_density(5 * 3), abs=1e-5)
    assert ledger.symbols == 15
    three, _ = coded(dist.Normal(torch.zeros(5, 3), 1.0).to_event(1), rows[:, :3])
    assert ledger.uniform_bits == pytest.approx(three.uniform_bits)  # no model either codes what the others give
    pairs = rows.reshape(5, 1, 4).expand(5, 2, 4)
    ledger, by_density = coded(dist.Dirichlet(torch.ones(5, 2, 4)).to_event(1), pairs)
    assert ledger.data_bits == pytest.approx(by_density(5 * 2 * 3), abs=1e-5)
    correlations = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.0]]).expand(2, 3, 3)
    one = correlations[0]

    def unplated():  # Pyro's LKJ cannot be expanded to a plate
        pyro.sample("at", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.LKJ(3, torch.tensor(2.0)), obs=one)

    ledger = ledger_of(unplated, lambda: pyro.sample("at", dist.Normal(0.3, 0.5)), samples=2, resolution=0.01)
    density = float(dist.LKJ(3, torch.tensor(2.0)).log_prob(one))
    assert ledger.data_bits == pytest.approx(-density / LOG2 - 3 * math.log2(0.01), abs=1e-5)
    ledger, by_density = coded(dist.LKJCholesky(3, torch.tensor(2.0)).expand([2]), torch.linalg.cholesky(correlations))
    assert ledger.data_bits == pytest.approx(by_density(2 * 3), abs=1e-5)
    wishart = torch.distributions.Wishart(torch.tensor(4.0), torch.eye(3)).expand([2])
    ledger, by_density = coded(dist.Wishart(torch.tensor(4.0), torch.eye(3)).expand([2]), correlations)
    assert ledger.data_bits == pytest.approx(
        -float(wishart.log_prob(correlations).sum()) / LOG2 - 12 * math.log2(0.01), abs=1e-5
    )
    ledger, by_density = coded(
        dist.VonMises3D(torch.tensor([1.0, 2.0, 2.0])).expand([2]), torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    )
    assert ledger.data_bits == pytest.approx(by_density(2 * 2), abs=1e-5)


def test_latents_on_a_simplex_count_their_dimensions():
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(weights), obs=x)

    q = torch.tensor([2.0, 3.0, 4.0, 5.0])
    (entry,) = ledger_of(model, lambda x: pyro.sample("weights", dist.Dirichlet(q)), torch.arange(4), grid_step=STEP).entries
    assert entry.weights == 3
    assert entry.refund_bits == pytest.approx(float(torch.distributions.Dirichlet(q).entropy()) / LOG2 - 3 * math.log2(STEP))


def four(mask, std, how):
    def program():
        with pyro.plate("four", 4):
            if how == "site":
                with poutine.mask(mask=mask):
                    pyro.sample("z", dist.Normal(torch.zeros(4), std))
            else:
                pyro.sample("z", dist.Normal(torch.zeros(4), std).mask(mask))

    return program


def seen(program):
    def model():
        program()
        pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), obs=torch.tensor(1.0))

    return model


@pytest.mark.parametrize("how", ["site", "distribution"])
def test_masked_latents_cost_and_refund_nothing(how):
    mask = torch.tensor([True, False, True, False])
    (entry,) = ledger_of(seen(four(mask, 1.0, how)), four(mask, 0.25, how), grid_step=STEP).entries
    assert entry.weights == 2
    assert entry.refund_bits == pytest.approx(entropy_bits(torch.full((2,), 0.25)), abs=1e-9)
    assert entry.net_bits == pytest.approx(normal_bits(torch.zeros(2), 0.25, 0.0, 1.0), abs=1e-9)
    assert entry.method == "closed_form"
    with pytest.raises(LedgerError, match="'z' is masked differently in model and guide"):
        ledger_of(seen(four(mask, 1.0, how)), four(~mask, 0.25, how))
    nothing = torch.zeros(4, dtype=torch.bool)
    ledger = ledger_of(seen(four(nothing, 1.0, how)), four(nothing, 0.25, how), grid_step=STEP)
    assert (ledger.entries, ledger.net_weight_bits) == ((), 0)
    assert ledger.notes == ("'z' is masked throughout and costs nothing",)


@pytest.mark.parametrize("mask", [True, torch.tensor(True), torch.ones(4, dtype=torch.bool)])
def test_masks_that_hide_nothing_leave_the_closed_form(mask):
    for model, guide in ((mask, None), (None, mask), (mask, mask)):
        programs = (four(True if each is None else each, std, "distribution") for each, std in ((model, 1.0), (guide, 0.25)))
        (entry,) = ledger_of(seen(next(programs)), next(programs), grid_step=STEP).entries
        assert entry.method == "closed_form"
        assert entry.net_bits == pytest.approx(normal_bits(torch.zeros(4), 0.25, 0.0, 1.0), abs=1e-9)


def test_masks_within_an_event():
    shown = torch.tensor([[True, False], [True, True], [False, False]])
    values = torch.tensor([[0.5, 9.0], [1.0, 2.0], [7.0, 8.0]])
    ledger, _ = coded(dist.Normal(torch.zeros(3, 2), 1.0).mask(shown).to_event(1), values)
    normal = torch.distributions.Normal(0.0, 1.0)
    assert ledger.data_bits == pytest.approx(float(-normal.log_prob(values[shown]).sum()) / LOG2 - 3 * math.log2(0.01))
    plain, _ = coded(dist.Normal(torch.zeros(3), 1.0), values[shown])
    assert ledger.uniform_bits == pytest.approx(plain.uniform_bits)


def test_errors_of_a_divergence_are_not_swallowed(monkeypatch):
    def broken(*_):
        raise ValueError("a defect")

    monkeypatch.setattr("bitsback.interop.pyro._program_ledger.kl_divergence", broken)
    with pytest.raises(ValueError, match="a defect"):
        ledger_of(logistic, hand, X, Y)


def test_a_scale_that_is_not_that_of_the_plates_is_refused():
    for scale in (0.01, 3.0):
        with pytest.raises(LedgerError, match=rf"is scaled by {scale:g} \(poutine.scale\), its plates by 1: .*without"):
            ledger_of(poutine.scale(logistic, scale), poutine.scale(hand, scale), X, Y)

    def weighed(x, y=None):
        bias = pyro.sample("bias", dist.Normal(torch.tensor(0.2), 0.7))
        with pyro.plate("data", 20, subsample_size=5) as rows, poutine.scale(scale=0.01):
            pyro.sample("y", dist.Bernoulli(logits=bias.expand(5)), obs=y[rows])

    guide = autoguide.AutoNormal(weighed)
    guide(X, Y)
    with pytest.raises(LedgerError, match=r"'y' is scaled by 0.04 \(poutine.scale\), its plates by 4"):
        ledger_of(weighed, guide, X, Y)


def test_partly_observed_data():
    """Pyro splits a site with ``obs_mask`` in two: what is missing is a latent, masked the other way round."""
    there = torch.arange(6) < 4
    x = torch.tensor([0.5, -1.0, 2.0, 0.25, 0.0, 0.0])

    def model():
        at = pyro.sample("at", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(at, 1.0), obs=x, obs_mask=there)

    def guide(mask=None):
        pyro.sample("at", dist.Normal(torch.tensor(0.3), 0.5))
        with pyro.plate("data", 6), poutine.mask(mask=torch.tensor(True) if mask is None else mask):
            pyro.sample("x_unobserved", dist.Normal(torch.zeros(6), 0.25))

    fix = r"draw 'x_unobserved' in the guide within poutine.mask\(mask=~obs_mask\)"
    with pytest.raises(LedgerError, match=fix):
        ledger_of(model, guide, resolution=0.25)
    with pytest.raises(LedgerError, match=fix):
        ledger_of(model, lambda: pyro.sample("at", dist.Normal(torch.tensor(0.3), 0.5)), resolution=0.25)
    ledger = ledger_of(model, lambda: guide(~there), resolution=0.25, grid_step=STEP, samples=6)
    entries = {entry.name: entry for entry in ledger.entries}
    assert entries["x_unobserved"].weights == 2
    assert entries["x_unobserved"].refund_bits == pytest.approx(entropy_bits(torch.full((2,), 0.25)), abs=1e-9)
    assert ledger.symbols == 4


def test_numbers_that_one_distribution_has_drawn_without_a_plate():
    values = torch.tensor([0.0, 1.0, 3.0])

    def model():
        pyro.sample("at", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=values)

    ledger = ledger_of(model, lambda: pyro.sample("at", dist.Normal(0.3, 0.5)), samples=2, resolution=0.01)
    wanted = -float(torch.distributions.Normal(0.0, 1.0).log_prob(values).sum()) / LOG2 - 3 * math.log2(0.01)
    assert ledger.data_bits == pytest.approx(wanted, abs=1e-5)
