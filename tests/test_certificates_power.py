"""The tests of certificates have power: each error that makes a bound false is found, by its failures and by its value.

Two checks: how often a certificate fails where the true risks are known, as a sum over binomials and not by simulation; and its
value, from a posterior whose risk and KL are known, in fifty digits. The package passes both, and every error fails.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from bitsback.certificates import Certificate, certify_file, certify_posterior, draws_bound
from bitsback.certificates import _certificate as certificates
from bitsback.data import Examples
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize

# ------------------------------------------------------------------------------------------------------------- the errors


def changed(**fields):
    """An error that changes what a certificate was made of, from the certificate."""
    return lambda found: dataclasses.replace(found, **{name: value(found) for name, value in fields.items()})


def nothing(*_):
    return 0.0


CHANGES: dict[str, Callable[[Certificate], Certificate]] = {
    "KL dropped": changed(weight_bits=nothing),
    "learned numbers dropped": changed(hyperparameter_bits=nothing),
    "alternatives dropped": changed(alternatives=lambda found: 1),
    "n of all examples, and the risk of half": changed(n=lambda found: 2 * found.n),
    "an example left out of the sum of losses": changed(risk=lambda found: max(0.0, found.risk - 1 / found.n)),
    "risk of draws as measured": changed(draws=lambda found: None, delta_draws=lambda found: None),
    "every pair of draw and example an example": changed(n=lambda found: found.draws or 2 * found.n),
}
UNSHARED = "one delta for the draws of all alternatives"
"""Needs another function in the package."""


def break_sharing(monkeypatch, alternatives):
    monkeypatch.setattr(certificates, "draws_bound", lambda risk, draws, delta: draws_bound(risk, draws, delta * alternatives))


# ----------------------------------------------------------------------------- how often it fails, where the truth is known


@dataclass(frozen=True)
class World:
    """Independent predictors, each wrong with probability ``risk``; the one with the fewest errors on n examples is certified.

    There are 2^(weight_bits + hyperparameter_bits) predictors times ``alternatives``. With draws, its risk is measured by so
    many, the predictor is given (one, whose errors are not counted), and the least of ``alternatives`` measurements is taken.
    """

    n: int
    risk: float
    delta: float
    weight_bits: float = 0.0
    hyperparameter_bits: float = 0.0
    alternatives: int = 1
    draws: int | None = None
    delta_draws: float | None = None

    def certificate(self, measured):
        return Certificate(
            "posterior", measured, self.n, self.weight_bits, self.delta, self.hyperparameter_bits, self.alternatives,
            self.delta_draws, self.draws,
        )  # fmt: skip

    def failures(self, change):
        """Probability that the bound is below the true risk."""
        trials = self.n if self.draws is None else self.draws
        fails = [change(self.certificate(errors / trials)).bound < self.risk for errors in range(trials + 1)]
        assert fails == sorted(fails, reverse=True)  # more errors never lower a bound
        count = sum(fails)
        if not count:
            return 0.0
        if self.draws is None:
            tail = float(stats.binom.cdf(count - 1, self.n, self.risk))
            return float(least_of(2.0 ** (self.weight_bits + self.hyperparameter_bits) * self.alternatives, tail))
        errors = np.arange(self.n + 1)
        tails = least_of(self.alternatives, stats.binom.cdf(count - 1, self.draws, errors / self.n))
        return float(np.dot(stats.binom.pmf(errors, self.n, self.risk), tails))

    @property
    def promised(self):
        return self.delta + (self.delta_draws or 0.0)


def least_of(count, tail):
    """Probability that the least of so many independent numbers is in a tail of that probability."""
    return -np.expm1(count * np.log1p(-np.minimum(tail, 1 - 2.0**-53)))


WORLDS = [
    World(100, 0.5, 0.05, 10.0, 10.0, 1024),
    World(400, 0.3, 0.2, 20.0, 8.0, 64),
    World(12, 0.94, 0.025, 40.0),
    World(5, 0.98, 0.025, 20.0),
    World(1000, 0.2, 0.05, draws=20, delta_draws=0.02),
    World(200_000, 0.2, 0.02, alternatives=1024, draws=300, delta_draws=0.02),
]
"""In each, some error matters: much choice; few examples, where one of them counts; draws; alternatives that were measured."""


def is_broken(change):
    return any(world.failures(change) > world.promised for world in WORLDS)


def unchanged(found):
    return found


def test_certificates_fail_no_more_often_than_they_say():
    assert not is_broken(unchanged)
    assert any(world.failures(unchanged) > world.promised / 100 for world in WORLDS)  # there is something to keep


@pytest.mark.parametrize("error", CHANGES)
def test_certificates_with_a_fault_fail_more_often(error):
    assert is_broken(CHANGES[error])


def test_certificates_whose_alternatives_share_no_delta_fail_more_often(monkeypatch):
    world = WORLDS[-1]
    assert world.failures(unchanged) <= world.promised
    break_sharing(monkeypatch, world.alternatives)
    assert world.failures(unchanged) > world.promised


def test_sums_over_binomials_agree_with_a_simulation():
    """Of the sixth world with fewer alternatives and less caution, so that failures are frequent."""
    world = World(200, 0.2, 0.3, alternatives=8, draws=50, delta_draws=0.3)
    change, draw, trials = CHANGES["risk of draws as measured"], np.random.default_rng(0), 4000
    fails = np.array([change(world.certificate(errors / 50)).bound < 0.2 for errors in range(51)])
    errors = draw.binomial(200, 0.2, trials)
    found = fails[draw.binomial(50, errors[:, None] / 200, (trials, 8)).min(1)].mean()
    wanted = world.failures(change)
    assert 0.05 < wanted < 0.95
    assert abs(found - wanted) < 4.5 * math.sqrt(wanted * (1 - wanted) / trials)


# -------------------------------------------------------------------------------------------------- its value, digit by digit

N, WRONG, ALTERNATIVES, DELTA, DELTA_DRAWS, PASSES, STD = 130, 17, 3, 0.05, 0.02, 2, 1e-6
"""130 examples are three parts of the loop that measures; a std far below every margin, so that each draw judges alike."""


def sharp_posterior():
    """Two inputs, two classes, the larger input wins; the prior's scales are learned."""
    layer = nn.Linear(2, 2)
    model = bayesianize(layer, posterior={"kind": "gaussian", "std": STD, "relative_to": "absolute"})
    with torch.no_grad():
        model.weights[0].posterior.mean.copy_(torch.eye(2))
        model.weights[1].posterior.mean.fill_(0.03125)
    model.update_priors()
    return model


def judged(wrong):
    """Examples of which those in ``wrong`` have the other label."""
    larger = torch.arange(N) % 2
    inputs = torch.nn.functional.one_hot(larger, 2).float() + torch.linspace(0, 0.5, N)[:, None]
    labels = larger.clone()
    labels[wrong] = 1 - labels[wrong]
    return Examples(inputs, labels)


def certified(wrong=range(WRONG), **options):
    arguments = {"delta": DELTA, "delta_draws": DELTA_DRAWS, "draws": PASSES * N, "alternatives": ALTERNATIVES, **options}
    return certify_posterior(sharp_posterior(), CategoricalLikelihood(2), judged(list(wrong)), **arguments)


def exact_inverse(risk, c):
    """kl^-1 from below, to 50 digits."""
    risk, low, high = mpmath.mpf(risk), mpmath.mpf(risk), mpmath.mpf(1)
    for _ in range(200):
        middle = (low + high) / 2
        kl = (risk * mpmath.log(risk / middle) if risk else 0) + (1 - risk) * mpmath.log((1 - risk) / (1 - middle))
        low, high = (low, middle) if kl > c else (middle, high)
    return low


def exact_bound(errors=WRONG):
    """The certificate of the sharp posterior from its definition: no number of it comes from the package."""
    nats = mpmath.mpf(0)
    model = sharp_posterior()
    for weight in model.weights:
        log_scale = round(float(weight.prior.log_scale) * 32) / mpmath.mpf(32)  # the grid of learned scales
        means, log_stds = weight.posterior.mean.flatten().tolist(), weight.posterior.log_std.flatten().tolist()
        for mean, log_std in zip(means, log_stds, strict=True):
            second_moment = mpmath.mpf(mean) ** 2 + mpmath.exp(2 * mpmath.mpf(log_std))
            nats += log_scale - mpmath.mpf(log_std) + second_moment / (2 * mpmath.exp(2 * log_scale)) - mpmath.mpf(1) / 2
    learned = 2 * 10 * mpmath.log(2)  # two scales, of 1,024 levels each
    c = (nats + learned + mpmath.log(ALTERNATIVES) + mpmath.log(2 * mpmath.sqrt(N) / mpmath.mpf(DELTA))) / N
    risk = exact_inverse(mpmath.mpf(errors) / N, mpmath.log(2 * ALTERNATIVES / mpmath.mpf(DELTA_DRAWS)) / (PASSES * N))
    return exact_inverse(risk, c)


def is_exact(found):
    """At least the bound in 50 digits, and within a millionth of it.

    The KL in it is a sum of float64 numbers, known to about 1e-13; from there on everything is rounded up.
    """
    with mpmath.workdps(50):
        true = exact_bound()
        return true * (1 - mpmath.mpf("1e-12")) <= found.bound <= true + 1e-6


def test_a_certificate_is_its_definition_in_fifty_digits():
    found = certified()
    assert (found.n, found.draws, found.alternatives) == (N, PASSES * N, ALTERNATIVES)
    assert found.risk == pytest.approx(WRONG / N, abs=1e-15)
    assert found.hyperparameter_bits == 20.0
    assert is_exact(found)
    with mpmath.workdps(50):  # given what it was made of, never below
        c = (found.kl_bits * mpmath.log(2) + mpmath.log(2 * mpmath.sqrt(N) / mpmath.mpf(DELTA))) / N
        measured = exact_inverse(found.risk, mpmath.log(2 * ALTERNATIVES / mpmath.mpf(DELTA_DRAWS)) / (PASSES * N))
        assert measured <= found.risk_bound <= measured + 1e-6
        assert exact_inverse(measured, c) <= found.bound <= exact_inverse(measured, c) + 1e-6


@pytest.mark.parametrize("error", CHANGES)
def test_a_fault_changes_the_value(error):
    assert not is_exact(CHANGES[error](certified()))


FAULTS_INSIDE = {
    "last example left out": lambda parts: [*parts[:-1], (parts[-1][0][:-1], parts[-1][1][:-1])],
    "first example left out": lambda parts: [(parts[0][0][1:], parts[0][1][1:]), *parts[1:]],
    "last part left out": lambda parts: parts[:-1],
    "first part twice": lambda parts: [parts[0], *parts],
}


@pytest.mark.parametrize("error", FAULTS_INSIDE)
def test_a_fault_in_the_sum_of_losses_changes_the_value(error, monkeypatch):
    everywhere = range(0, N, 2)  # the first example and one of the last part are among them
    found = certified([*everywhere, N - 1]).risk
    assert found == pytest.approx((len(everywhere) + 1) / N, abs=1e-15)
    batches = Examples.batches

    def faulty(examples, parts):  # the ledger's single example is read without a fault
        found = list(batches(examples, parts))
        return found if len(examples) == 1 else FAULTS_INSIDE[error](found)

    monkeypatch.setattr(Examples, "batches", faulty)
    assert certified([*everywhere, N - 1]).risk != pytest.approx(found, abs=0.5 / N)


def test_every_single_example_counts():
    for place in (0, 1, 63, 64, 65, 127, 128, N - 1):
        assert certified([place], draws=1).risk == pytest.approx(1 / N, abs=1e-15), place
    predicted, likelihood = torch.eye(2)[torch.zeros(N, dtype=torch.long)], CategoricalLikelihood(2)
    for place in range(N):
        targets = torch.zeros(N, dtype=torch.long)
        targets[place] = 1
        found = certify_file(predicted, targets, likelihood, 100)
        assert (found.risk, found.n) == (pytest.approx(1 / N, rel=1e-12), N), place


def test_alternatives_each_have_their_share_of_the_measurement(monkeypatch):
    found = certified()
    break_sharing(monkeypatch, ALTERNATIVES)
    assert not is_exact(found)


def test_a_constant_of_the_theorem_cannot_be_lost(monkeypatch):
    complexity, found = certificates.complexity, certified()
    lost = {
        "2 sqrt(n)": lambda bits, n, delta: complexity(bits, n, delta * 2 * math.sqrt(n)),
        "2": lambda bits, n, delta: complexity(bits, n, delta * 2),
        "nats taken for bits": lambda bits, n, delta: complexity(bits * math.log(2), n, delta),
    }
    for name, wrong in lost.items():
        with monkeypatch.context() as patch:
            patch.setattr("bitsback.certificates.bounds.complexity", wrong if name != "2 sqrt(n)" else _no_root(complexity))
            assert not is_exact(found), name
    assert is_exact(found)


def _no_root(complexity):
    return lambda bits, n, delta: complexity(bits, n, delta) - math.log(2 * math.sqrt(n)) / n


# ------------------------------------------------------------------------------------------ a posterior that is really wide


def wide_posterior(inputs, labels):
    """A posterior that was fitted to these examples: around the difference of the class means."""
    model = bayesianize(
        nn.Linear(2, 2, bias=False), {"kind": "gaussian", "scale": 2.0, "learn": "none"},
        posterior={"kind": "gaussian", "std": 0.7, "relative_to": "absolute"},
    )  # fmt: skip
    means = torch.stack([inputs[labels == label].mean(0) for label in (0, 1)])
    model.weights[0].posterior.mean.data.copy_(means)
    return model


def gibbs_risks(model, x, labels):
    """Probability, for every example, that a draw of the weights is wrong: the two rows' difference is Gaussian."""
    mean, std = (t.detach().double().numpy() for t in (model.weights[0].posterior.mean, model.weights[0].posterior.std()))
    margin = x @ (mean[1] - mean[0]) / np.sqrt(x**2 @ (std**2).sum(0))
    return stats.norm.cdf(np.where(labels == 1, -margin, margin))


def test_a_wide_posterior_is_certified_above_its_true_risk():
    """Two Gaussian classes: the measured risk is the Gibbs risk within its error, the bound is above the risk on new examples."""
    draw, failures, gaps, trials = np.random.default_rng(0), 0, [], 40
    delta, delta_draws, n = 0.2, 0.1, 60
    new_labels = np.arange(5_000) % 2
    new = draw.normal(size=(5_000, 2)) + (2 * new_labels[:, None] - 1) * np.array([0.7, 0.3])
    for trial in range(trials):
        labels = draw.permutation(np.arange(n) % 2)
        x = (draw.normal(size=(n, 2)) + (2 * labels[:, None] - 1) * np.array([0.7, 0.3])).astype(np.float32)
        model = wide_posterior(torch.from_numpy(x), torch.from_numpy(labels))
        found = certify_posterior(
            model, CategoricalLikelihood(2), Examples(torch.from_numpy(x), torch.from_numpy(labels)),
            delta=delta, delta_draws=delta_draws, draws=20 * n, seed=trial,
        )  # fmt: skip
        risks = gibbs_risks(model, x.astype(np.float64), labels)
        error = math.sqrt((risks * (1 - risks)).sum() / 20) / n
        assert abs(found.risk - risks.mean()) < 4.5 * error
        true = gibbs_risks(model, new, new_labels).mean()
        failures += found.bound < true
        gaps.append(found.bound - true)
    assert failures <= (delta + delta_draws) * trials
    assert 0 < np.mean(gaps) < 0.4
