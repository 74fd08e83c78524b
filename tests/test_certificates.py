"""Certificates: the inverse is rounded up, the bound holds, n is the right one, and what would not hold is refused."""

import json
import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import bitsback
from bitsback import certify
from bitsback.certificates import (
    Certificate,
    bernoulli_kl,
    certify_file,
    certify_posterior,
    complexity,
    draws_bound,
    file_length_bits,
    kl_inverse,
    pac_bayes_bound,
)
from bitsback.certificates._posterior_risk import mean_loss_of_draws
from bitsback.config import Experiment, load_run
from bitsback.config.schema import Config
from bitsback.data import Examples
from bitsback.errors import BitsbackError, CertificateError, ConfigError, DataError
from bitsback.formats.config_tree import MESSAGE_SECTIONS, to_tree
from bitsback.formats.model_file.write import pack_experiment
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.likelihoods._real import GaussianLikelihood
from bitsback.model import bayesianize, evaluate
from bitsback.training._objective import DescriptionLength, RiskBound
from bitsback.training.settings import BoundSettings
from bitsback.units import NATS_PER_BIT

RISKS = [0.0, 1e-12, 1e-5, 0.003, 0.0123456789, 0.1, 1 / 3, 0.5, 0.75, 0.999, 1 - 2**-53, 1.0]
BOUNDS = [0.0, 1e-15, 1e-9, 3e-5, 0.001, 0.04, 0.5, 3.0, 40.0, 1e4]


def true_kl(q, p):
    q, p = mpmath.mpf(q), mpmath.mpf(p)
    heads = q * mpmath.log(q / p) if q else mpmath.mpf(0)
    if q == 1:
        return heads
    return heads + (1 - q) * mpmath.log((1 - q) / (1 - p)) if p < 1 else mpmath.inf


def true_inverse(q, c):
    low, high = mpmath.mpf(q), mpmath.mpf(1)
    for _ in range(140):
        middle = (low + high) / 2
        low, high = (low, middle) if true_kl(q, middle) > c else (middle, high)
    return low


@pytest.mark.parametrize("risk", RISKS)
def test_the_inverse_is_close_to_the_true_one_and_never_below(risk):
    with mpmath.workdps(50):
        for bound in BOUNDS:
            found, true = kl_inverse(risk, bound), true_inverse(risk, bound)
            assert found >= true
            assert found <= true + 1e-7 * mpmath.sqrt(true) + 1e-15
            assert bernoulli_kl(risk, found) >= 0
            assert found < 1e-40 or bernoulli_kl(risk, found) <= true_kl(risk, found)  # below, 50 digits do not tell


def test_the_inverse_of_nothing_and_of_everything():
    assert kl_inverse(0.0, 0.0) <= 1e-300
    assert kl_inverse(1.0, 0.0) == kl_inverse(0.3, math.inf) == 1.0
    for risk, bound in ((-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.1, -1.0), (0.1, math.nan)):
        with pytest.raises(CertificateError, match="give"):
            kl_inverse(risk, bound)


def test_the_inequality_behind_the_bound_holds_for_every_n_and_risk():
    """Maurer's lemma: E exp(n kl(R^ || R)) <= 2 sqrt(n), for coins."""
    for n in (1, 2, 3, 5, 8, 50, 300):
        for risk in (0.01, 0.1, 0.37, 0.5, 0.9):
            terms = []
            for k in range(n + 1):
                q = k / n
                mass = math.log(math.comb(n, k)) + k * math.log(risk) + (n - k) * math.log(1 - risk)
                terms.append(math.exp(mass + n * float(true_kl(q, risk))))
            assert math.fsum(terms) <= 2 * math.sqrt(n) * (1 + 1e-12)


def test_a_certificate_fails_no_more_often_than_it_says():
    """Twelve coin predictors, known risks, a posterior that overfits each of many data sets, its risk measured by draws."""
    draw = np.random.default_rng(0)
    risks, n, delta, delta_draws, trials = np.linspace(0.05, 0.6, 12), 40, 0.2, 0.1, 3000
    failures, gaps = 0, []
    for _ in range(trials):
        empirical = draw.binomial(n, risks) / n
        weights = np.exp(-3 * n * (empirical - empirical.min()))
        q = weights / weights.sum()
        kl_bits = float(np.sum(q[q > 0] * np.log(12 * q[q > 0]))) / NATS_PER_BIT
        drawn = draw.choice(12, size=(200,), p=q)
        measured = float(np.mean(draw.random(200) < empirical[drawn]))
        book = Certificate("posterior", measured, n, max(0.0, kl_bits), delta, delta_draws=delta_draws, draws=200)
        failures += book.bound < float(q @ risks)
        gaps.append(book.bound - float(q @ risks))
    assert failures <= (delta + delta_draws) * trials
    assert 0 < np.mean(gaps) < 0.5  # and it says something


def test_formulas_in_plain_numbers():
    c = (5000 * NATS_PER_BIT + math.log(2 * math.sqrt(60_000) / 0.025)) / 60_000
    assert complexity(5000.0, 60_000, 0.025) == pytest.approx(c, rel=1e-12)
    assert complexity(5000.0, 60_000, 0.025) >= c
    assert pac_bayes_bound(0.012, 5000.0, 60_000, 0.025) == pytest.approx(float(true_inverse(0.012, c)), rel=1e-6)
    assert draws_bound(0.01, 1000, 0.05) == pytest.approx(float(true_inverse(0.01, math.log(40) / 1000)), rel=1e-6)
    whole = Certificate("posterior", 0.01, 1000, 90.0, 0.1, 10.0, alternatives=8, delta_draws=0.05, draws=2000)
    assert whole.kl_bits == 103
    assert whole.confidence == pytest.approx(0.85)
    risk = draws_bound(0.01, 2000, 0.05 / 8)
    assert whole.risk_bound == risk
    assert whole.bound == pac_bayes_bound(risk, 103.0, 1000, 0.1)


@pytest.mark.parametrize(("kl_bits", "n"), [(-1.0, 10), (math.nan, 10), (math.inf, 10), (5.0, 0)])
def test_a_complexity_needs_a_finite_kl_and_examples(kl_bits, n):
    with pytest.raises(CertificateError, match=r"finite KL >= 0 and n >= 1.*check the ledger"):
        complexity(kl_bits, n, 0.1)


def test_a_risk_without_draws_has_no_bound():
    with pytest.raises(CertificateError, match="one draw or more, got 0; raise --draws"):
        draws_bound(0.1, 0, 0.1)


def test_file_lengths_are_a_prior():
    total = sum(256**length * 2.0 ** -file_length_bits(length) for length in range(1, 120))
    assert 0.9 < total <= 1
    with pytest.raises(CertificateError, match="one byte"):
        file_length_bits(0)


def examples(count=400, seed=0):
    torch.manual_seed(seed)
    inputs = torch.randn(count, 6)
    return Examples(inputs, (inputs[:, 0] > 0).long())


def small_model(std=0.3):
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return bayesianize(network, {"kind": "gaussian", "scale": 0.5}, posterior={"kind": "gaussian", "std": std})


def test_every_example_has_a_draw_of_its_own_and_their_mean_is_the_posteriors():
    model, likelihood, data = small_model(1.0), CategoricalLikelihood(2), examples(64)
    fresh = mean_loss_of_draws(model, likelihood, data, passes=150)
    whole = np.mean([_loss_of_one_draw(model, data) for _ in range(600)])
    assert fresh == pytest.approx(whole, abs=0.03)
    one = Examples(data.inputs[:1].repeat(500, 1), data.targets[:1].repeat(500))
    assert 0.02 < mean_loss_of_draws(model, likelihood, one) < 0.98  # a shared draw would judge them all alike
    assert mean_loss_of_draws(model, likelihood, data, seed=3) == mean_loss_of_draws(model, likelihood, data, seed=3)


def test_the_row_of_padding_is_never_drawn():
    model = bayesianize(
        nn.Sequential(nn.Embedding(5, 2, padding_idx=3), nn.Flatten()), posterior={"kind": "gaussian", "std": 1.0}
    )
    with torch.no_grad():
        model.weights[0].posterior.mean[3] = torch.tensor([1.0, 0.0])
    padding, other = torch.full((500, 1), 3), torch.full((500, 1), 2)
    zeros = torch.zeros(500, dtype=torch.long)
    assert mean_loss_of_draws(model, CategoricalLikelihood(2), Examples(padding, zeros)) == 0.0
    assert 0.1 < mean_loss_of_draws(model, CategoricalLikelihood(2), Examples(other, zeros)) < 0.9


def _loss_of_one_draw(model, data):
    with model.sample(), torch.no_grad():
        return float((model(data.inputs).argmax(1) != data.targets).float().mean())


def test_images_and_norms_have_draws_of_their_own_too():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3))
    model = bayesianize(network, posterior={"kind": "gaussian", "std": 1e-6}).eval()
    data = Examples(torch.randn(90, 1, 8, 8), torch.arange(90) % 3)
    loss = mean_loss_of_draws(model, CategoricalLikelihood(3), data)
    assert loss == pytest.approx(evaluate(model, CategoricalLikelihood(3), data, samples=0).error, abs=0.012)


def test_a_posterior_certificate_needs_no_coded_first_example():
    model, data = small_model(), examples(20)
    data = Examples(data.inputs, torch.cat([torch.tensor([-100]), data.targets[1:]]))
    found = certify_posterior(model, CategoricalLikelihood(2, ignore=-100), data, draws=1)
    assert found.weight_bits == certify_posterior(model, CategoricalLikelihood(2), examples(20), draws=1).weight_bits


def beside_hidden(data, count):
    """Return the examples, and the same beside ``count`` whose targets are -100."""
    targets = torch.cat([torch.full((count,), -100), data.targets])
    return Examples(torch.cat([torch.randn(count, 6), data.inputs]), targets)


def test_hidden_examples_are_no_examples_of_a_certificate():
    model, data, likelihood = small_model(), examples(10), CategoricalLikelihood(2, ignore=-100)
    model.double()
    padded = beside_hidden(data, 90)
    found = certify_posterior(model, likelihood, padded, test=padded, draws=5_000)
    alone = certify_posterior(model, likelihood, data, test=data, draws=5_000)
    assert (found.n, found.draws) == (alone.n, alone.draws) == (10, 5_000)
    assert found.risk == pytest.approx(alone.risk, abs=0.05)
    assert found.complexity == alone.complexity
    predicted = likelihood.predict(model.outputs(padded.inputs.double()))
    of_file = certify_file(predicted, padded.targets, likelihood, 100)
    assert of_file == certify_file(predicted[90:], data.targets, likelihood, 100)
    assert of_file.n == 10
    with pytest.raises(CertificateError, match="no target is coded"):
        certify_file(predicted[:90], padded.targets[:90], likelihood, 100)
    with pytest.raises(DataError, match="no test target is coded"):
        certify_posterior(model, likelihood, data, test=Examples(padded.inputs[:90], padded.targets[:90], name="test"), draws=1)


def test_the_error_of_a_network_is_that_of_its_coded_examples():
    model, data, likelihood = small_model(), examples(10), CategoricalLikelihood(2, ignore=-100)
    alone = evaluate(model, likelihood, data, samples=0)
    assert 0 < alone.error < 1
    for batch_size in (None, 7):
        assert evaluate(model, likelihood, beside_hidden(data, 90), samples=0, batch_size=batch_size).error == alone.error
    nothing = evaluate(model, likelihood, Examples(data.inputs, torch.full((10,), -100)), samples=0)
    assert (nothing.data_bits, math.isnan(nothing.error)) == (0.0, True)


def test_a_posterior_certificate_is_the_ledger_and_the_formula():
    model, data = small_model(), examples()
    found = certify_posterior(model, CategoricalLikelihood(2), data, test=examples(50, 1), draws=1000, alternatives=3)
    assert (found.n, found.draws) == (400, 1200)  # whole passes
    with torch.no_grad():
        assert found.weight_bits == pytest.approx(float(model.double().kl_bits(exact=True)), rel=1e-6)
    assert found.hyperparameter_bits == 40.0  # four scales at ten bits
    assert found.bound == pac_bayes_bound(draws_bound(found.risk, 1200, 0.01 / 3), found.kl_bits, 400, 0.025)
    stated = json.loads(json.dumps(found.to_dict()))
    assert {"risk", "bound", "confidence", "n", "kl_bits", "complexity", "draws", "test_risk"} <= stated.keys()


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ({"delta": 0.0}, "--delta is"),
        ({"delta": 1.0}, "--delta is"),
        ({"delta_draws": -0.1}, "--delta-draws is"),
        ({"delta": 0.6, "delta_draws": 0.5}, "nothing is certified"),
        ({"draws": 0}, "raise --draws"),
        ({"alternatives": 0}, "--alternatives"),
    ],
)
def test_probabilities_and_counts_must_make_sense(arguments, fix):
    with pytest.raises(CertificateError, match=fix):
        certify_posterior(small_model(), CategoricalLikelihood(2), examples(20), **{"draws": 1, **arguments})


def test_a_point_has_no_draws():
    point = bayesianize(nn.Linear(6, 2), {"kind": "gaussian", "learn": "none"}, posterior="point")
    with pytest.raises(CertificateError, match="a point has no draws"):
        mean_loss_of_draws(point, CategoricalLikelihood(2), examples(20))


def test_a_test_error_is_shown_beside_the_bound_and_only_where_one_was_measured():
    model, data = small_model(), examples(20)
    found = certify_posterior(model, CategoricalLikelihood(2), data, draws=10)
    assert "test error" not in str(found)
    assert "test error" in str(replace(found, test_risk=0.25))


def test_what_has_no_certificate_is_refused_with_the_fix():
    data = examples(20)
    point = bayesianize(nn.Linear(6, 2), {"kind": "gaussian", "learn": "none"}, posterior="point")
    with pytest.raises(CertificateError, match=r"infinite KL.*certify the file"):
        certify_posterior(point, CategoricalLikelihood(2), data, draws=1)
    with pytest.raises(CertificateError, match="no upper limit"):
        certify_posterior(small_model(), GaussianLikelihood(), data, draws=1)
    with pytest.raises(CertificateError, match="no upper limit"):
        certify_file(torch.zeros(3), torch.zeros(3), GaussianLikelihood(), 10)
    several = {"kind": "pyro", "distribution": "MultivariateNormal", "arguments": {"loc": [0.0, 0.0], "scale_tril":
               [[1.0, 0.0], [0.5, 1.0]]}}  # fmt: skip
    sampled = bayesianize(nn.Linear(6, 2), "gaussian", overrides={"bias": several})
    with pytest.raises(CertificateError, match="'bias' is only known by monte carlo"):
        certify_posterior(sampled, CategoricalLikelihood(2), data, draws=1)
    recurrent = bayesianize(_LastStep())
    with pytest.raises(CertificateError, match=r"torch\.vmap"):
        certify_posterior(recurrent, CategoricalLikelihood(2), Examples(torch.randn(4, 3, 6), data.targets[:4]), draws=1)


class _LastStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 2, batch_first=True)

    def forward(self, inputs):
        return self.gru(inputs)[0][:, -1] * float(inputs.sum() > 0)  # what torch.vmap cannot follow


TOY = {
    "data": {"kind": "digits", "limit": 300},
    "training": {"epochs": 4, "batch_size": 64},
    "ledger": {"samples": 2},
}


def config(**sections):
    return Config.model_validate({key: {**TOY.get(key, {}), **sections.get(key, {})} for key in {*TOY, *sections}})


def trained(place, **sections):
    Experiment.build(config(**sections)).train(place, progress=False)
    return place


PARTS = {part: {"prior_fraction": 0.4, "part": part} for part in ("prior", "posterior")}


@pytest.mark.parametrize("limit", [None, 300])
def test_parts_are_disjoint_and_together_they_are_all(limit):
    data = config(data={"kind": "digits", "limit": limit}).data
    whole = data.load().train.inputs.flatten(1)
    parts = [data.model_copy(update=PARTS[part]).load().train.inputs.flatten(1) for part in PARTS]
    assert [len(part) for part in parts] == [round(0.4 * len(whole)), len(whole) - round(0.4 * len(whole))]
    assert sorted(map(tuple, torch.cat(parts).tolist())) == sorted(map(tuple, whole.tolist()))
    again = data.model_copy(update=PARTS["prior"] | {"split_seed": 0}).load().train.inputs.flatten(1)
    assert torch.equal(again, parts[0])


@pytest.mark.parametrize("data", [{"prior_fraction": 0.5}, {"part": "prior"}, {"prior_fraction": 1.0, "part": "prior"}])
def test_a_part_needs_its_fraction(data):
    with pytest.raises(ValueError, match=r"prior_fraction"):
        config(data={"kind": "digits", **data})


def test_a_part_without_examples_is_refused():
    with pytest.raises(BitsbackError, match="leaves one part empty"):
        config(data={"kind": "digits", "limit": 3, "prior_fraction": 0.01, "part": "prior"}).data.load()


def test_new_settings_say_nothing_in_files_unless_they_are_used():
    plain, used = config(), config(data=PARTS["prior"] | {"kind": "digits"}, training={"objective": {"kind": "quad"}})
    tree, other = to_tree(plain, MESSAGE_SECTIONS), to_tree(used, MESSAGE_SECTIONS)
    assert not {"prior_fraction", "part"} & tree["data"].keys()
    assert "objective" not in tree["training"]
    assert other["data"]["part"] == "prior"
    assert other["training"]["objective"]["kind"] == "quad"


def test_a_learnt_prior_is_certified_on_the_other_part_and_only_there(tmp_path, run_command):
    prior = trained(tmp_path / "prior", data=PARTS["prior"])
    from_prior = {"kind": "checkpoint", "run": str(prior), "scale": 0.03}
    posterior = trained(tmp_path / "posterior", data=PARTS["posterior"], prior=from_prior)
    done = run_command("certify", str(posterior), "--draws", "1", "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert found["n"] == 180
    assert found["draws"] == 180
    assert found["bound"] == pac_bayes_bound(found["risk_bound"], found["kl_bits"], 180, 0.025)
    assert any("posterior" not in line and "prior" in line for line in found["assumed"])
    seen = {
        "whole": ({}, {}),
        "same part": (PARTS["prior"], PARTS["prior"]),
        "other draw": (PARTS["prior"], PARTS["posterior"] | {"split_seed": 1}),
        "other fraction": (PARTS["prior"], PARTS["posterior"] | {"prior_fraction": 0.5}),
        "other limit": (PARTS["prior"], PARTS["posterior"] | {"limit": 299}),
    }
    for name, (before, after) in seen.items():
        first = trained(tmp_path / f"{name} 1", data=before, training={"epochs": 1})
        then = trained(tmp_path / f"{name} 2", data=after, training={"epochs": 1}, prior=from_prior | {"run": str(first)})
        with pytest.raises(CertificateError, match=r"may have seen the examples.*data\.part"):
            certify(then, draws=1)
    packed = pack_experiment(load_run(tmp_path / "whole 2").experiment(), progress=False)  # a file leans on that run as well
    (tmp_path / "whole.bb").write_bytes(packed.content)
    with pytest.raises(CertificateError, match="may have seen"):
        certify(tmp_path / "whole.bb", (f"prior.run={tmp_path / 'whole 1'}",))
    # a prior of the right part whose own prior saw everything
    middle = trained(tmp_path / "middle", data=PARTS["prior"], training={"epochs": 1},
                     prior=from_prior | {"run": str(tmp_path / "whole 1")})  # fmt: skip
    last = trained(tmp_path / "last", data=PARTS["posterior"], training={"epochs": 1}, prior=from_prior | {"run": str(middle)})
    with pytest.raises(CertificateError, match="whole 1 may have seen"):
        certify(last, draws=1)
    begun = trained(tmp_path / "begun", data=PARTS["prior"], training={"epochs": 1},
                    network={"kind": "sequential", "layers": ["Flatten", "Linear"], "pretrained": str(prior)})  # fmt: skip
    end = trained(tmp_path / "end", data=PARTS["posterior"], training={"epochs": 1}, prior=from_prior | {"run": str(begun)})
    with pytest.raises(CertificateError, match="started from"):
        certify(end, draws=1)
    (middle / "config.yaml").unlink()
    with pytest.raises(CertificateError, match="cannot be read"):
        certify(last, draws=1)


def test_preprocessing_that_saw_the_examples_is_refused(tmp_path):
    with pytest.raises(CertificateError, match=r"data\.scaling: unit"):
        certify(trained(tmp_path / "a", data={"scaling": "standard"}, training={"epochs": 1}), draws=1)
    features = {"kind": "principal_components", "features": 5}
    with pytest.raises(CertificateError, match=r"without data\.features"):
        certify(trained(tmp_path / "b", data={"features": features}, training={"epochs": 1}), draws=1)


def test_the_verb_shows_every_ingredient_and_refuses_in_one_sentence(tmp_path, run_command):
    place = trained(tmp_path / "run")
    done = run_command("certify", str(place), "--draws", "1", "--alternatives", "4")
    assert done.code == 0
    assert "With probability 0.965, weights drawn from the posterior" in done.out
    for word in ("KL bits", "complexity", "bound", "alternatives bits", "test error", "300"):
        assert word in done.out
    refused = run_command("certify", str(place), "--delta", "1.5")
    assert refused.code == 1
    assert refused.err.startswith("bitsback: --delta is the probability")
    assert len(refused.err.splitlines()) == 1
    assert "leave it out" in run_command("certify", str(place), "--data.root=/nowhere").err


@pytest.mark.parametrize("scaling", ["unit", "standard"])
def test_a_file_is_certified_by_its_length(tmp_path, run_command, scaling):
    place = trained(tmp_path / "run", data={"scaling": scaling}, training={"epochs": 8})
    packed = pack_experiment(load_run(place).experiment(), progress=False)
    path = tmp_path / "model.bb"
    path.write_bytes(packed.content)
    done = run_command("certify", str(path), "--delta", "0.05", "--alternatives", "2", "--json")
    found, size = json.loads(done.out), len(packed.content)
    assert done.code == 0
    assert found["n"] == 300
    assert found["draws"] is None
    assert found["confidence"] == 0.95
    assert found["weight_bits"] == 8 * size + 2 * math.floor(math.log2(size)) + 1
    assert found["risk"] == pytest.approx(packed.train_error)
    assert found["test_risk"] == pytest.approx(packed.test_error)
    assert found["bound"] == pac_bayes_bound(found["risk"], found["weight_bits"] + 1, 300, 0.05)
    assert "the network in this file misjudges" in run_command("certify", str(path)).out


def test_a_file_without_its_examples_is_refused(tmp_path):
    model = bayesianize(nn.Sequential(nn.Linear(6, 2)))
    bitsback.save(model, tmp_path / "made.bb", examples(50), progress=False)
    with pytest.raises(CertificateError, match="made in Python"):
        certify(tmp_path / "made.bb")
    np.savez(tmp_path / "data.npz", inputs=np.random.default_rng(0).normal(size=(40, 3)), targets=np.arange(40) % 2)
    run = trained(tmp_path / "run", data={"kind": "npz", "path": str(tmp_path / "data.npz"), "limit": None},
                  network={"kind": "sequential", "layers": ["Linear"]}, training={"epochs": 1})  # fmt: skip
    (tmp_path / "npz.bb").write_bytes(pack_experiment(load_run(run).experiment(), progress=False).content)
    with pytest.raises(CertificateError, match="say where the 'npz' examples"):
        certify(tmp_path / "npz.bb")
    assert certify(tmp_path / "npz.bb", (f"data.path={tmp_path / 'data.npz'}",)).n == 32


def test_objectives_are_the_published_formulas():
    bits, kl_bits, n, other, p_min = np.array([0.1, 2.0, 30.0, 0.7]), 800.0, 5000, 40.0, 1e-4
    risk = np.mean(np.minimum(bits * NATS_PER_BIT, -np.log(p_min))) / -np.log(p_min)
    c = ((kl_bits + other) * NATS_PER_BIT + np.log(2 * np.sqrt(n) / 0.05)) / n
    wanted = {
        "quad": (np.sqrt(risk + c / 2) + np.sqrt(c / 2)) ** 2,
        "classic": risk + np.sqrt(c / 2),
        "lambda": risk / (1 - 0.25) + c / (0.5 * (1 - 0.25)),
    }
    weight_bits = torch.tensor(kl_bits, dtype=torch.float64)
    for kind, value in wanted.items():
        objective = RiskBound(BoundSettings(kind=kind, delta=0.05, p_min=p_min), n, other).double()
        assert objective(objective.cost(torch.tensor(bits)).mean(), weight_bits).item() == pytest.approx(value, rel=1e-9)
    length = DescriptionLength(n)
    assert length(length.cost(torch.tensor(bits)).mean(), weight_bits).item() == pytest.approx(bits.mean() + kl_bits / n)


@pytest.mark.parametrize("kind", ["quad", "lambda", "classic"])
def test_a_bound_is_lowered_by_training_on_it_and_resumes_bit_for_bit(tmp_path, kind):
    sections = {
        "data": {"kind": "digits", "limit": 1400},
        "posterior": {"kind": "gaussian", "std": 1.0, "relative_to": "prior"},
        "prior": {"kind": "gaussian", "learn": "none", "scale": 0.2},
        "training": {"epochs": 8, "objective": {"kind": kind}, "checkpoint_seconds": 0},
    }
    place = trained(tmp_path / "whole", **sections)
    found = certify(place, draws=1)
    start = Experiment.build(config(**sections))
    before = certify_posterior(start.model, start.likelihood, start.dataset.train, draws=1)
    assert found.bound < before.bound - 0.05
    experiment = Experiment.build(config(**sections))
    _stop_after(experiment, tmp_path / "cut", epochs=3)
    resumed = Experiment.build(config(**sections))
    resumed.train(tmp_path / "cut", resume=True, progress=False)
    name = "posterior.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (place / name).read_bytes()


def _stop_after(experiment, place, epochs):
    from unittest import mock

    from bitsback.training.loop import Fit

    run_epoch = Fit.run_epoch

    def interrupted(fit):
        if fit.epoch == epochs:
            raise KeyboardInterrupt
        return run_epoch(fit)

    with mock.patch.object(Fit, "run_epoch", interrupted), pytest.raises(KeyboardInterrupt):
        experiment.train(place, progress=False)


@pytest.mark.parametrize("kind", ["quad", "lambda", "classic"])
def test_a_bound_needs_one_label_for_each_example(kind):
    model, steps = bayesianize(nn.Conv1d(2, 3, 1)), []
    data = Examples(torch.randn(8, 2, 4), torch.randint(3, (8, 4)))
    with pytest.raises(ConfigError, match=r"one wrong label, and targets of shape \(4,\) .* use kind: elbo"):
        bitsback.train(
            model, None, data, training={"objective": {"kind": kind}}, watch=lambda step, _: steps.append(step), progress=False
        )
    assert not steps


def test_a_bound_needs_labels_and_no_budget():
    regression = {"data": {"kind": "friedman", "limit": None}, "likelihood": {"kind": "gaussian"},
                  "network": {"kind": "sequential", "layers": ["Linear"]}}  # fmt: skip
    with pytest.raises(ConfigError, match="use kind: elbo"):
        Experiment.build(config(**regression, training={"objective": {"kind": "quad"}})).train(None, progress=False)
    with pytest.raises(ValueError, match=r"leave training\.budget_bits out"):
        config(training={"objective": {"kind": "quad"}, "budget_bits": 100})


class Stream(torch.utils.data.IterableDataset):
    """Labels of which the first is not coded."""

    def __iter__(self):
        inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        return iter([(one, -100 if number == 0 else number % 3) for number, one in enumerate(inputs)])


def test_a_stream_is_certified_as_its_examples_in_memory():
    torch.manual_seed(0)
    model, likelihood = bayesianize(nn.Linear(4, 3), seed=0), CategoricalLikelihood(3, ignore=-100)
    streamed = certify_posterior(model, likelihood, Stream(), draws=1)
    held = certify_posterior(model, likelihood, list(Stream()), draws=1)
    assert (streamed.n, streamed.draws) == (held.n, held.draws) == (19, 19)
    assert streamed.bound == pytest.approx(held.bound, abs=1e-12)
