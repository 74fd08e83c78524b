"""The ledger is recomputed from posterior.safetensors alone: scipy in float64, nothing of bitsback."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import integrate, special, stats
from torch import nn

import bitsback
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.posteriors import GaussianPosteriorSettings
from bitsback.priors import registry
from bitsback.training import TrainingSettings, train


def normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def mixture(p):
    parts = list(zip(p["weights"], p["means"], p["scales"], strict=True))
    return lambda x: special.logsumexp([math.log(w) + normal(x, m, s) for w, m, s in parts], axis=0)


def horseshoe(p):
    def log_density(x):
        half = 0.5 * ((x - p["mean"]) / p["scale"]) ** 2
        return math.log(special.exp1(half)) + half - math.log(p["scale"]) - 0.5 * math.log(2 * math.pi**3)

    return log_density


DENSITY = {
    "laplace": lambda p: stats.laplace(p["mean"], p["scale"]).logpdf,
    "student_t": lambda p: stats.t(p["df"], p["mean"], p["scale"]).logpdf,
    "cauchy": lambda p: stats.cauchy(p["mean"], p["scale"]).logpdf,
    "logistic": lambda p: stats.logistic(p["mean"], p["scale"]).logpdf,
    "scale_mixture": mixture,
    "adaptive_mixture": mixture,
    "spike_and_slab": mixture,
    "horseshoe": horseshoe,
}
GAUSSIAN = {"gaussian", "group_gaussian", "checkpoint", "pyro"}


def data():
    torch.manual_seed(1)
    inputs = torch.randn(60, 5)
    return bitsback.Dataset("toy", bitsback.Examples(inputs, (inputs[:, :3] + 0.3 * torch.randn(60, 3)).argmax(1)), None, 3)


def trained(prior, directory, epochs=30):
    model = bitsback.bayesianize(nn.Linear(5, 3), prior, posterior=GaussianPosteriorSettings(std=0.3))
    settings = TrainingSettings(epochs=epochs, batch_size=30)
    return train(model, CategoricalLikelihood(3), data(), directory=directory, training=settings, progress=False).ledger


def gaussian_bits(prior, means, stds, prior_mean):
    """KL between Gaussians, from the textbook."""
    if prior["kind"] == "pyro":
        centre, width = prior["arguments"]["loc"] * prior["scale"], prior["arguments"]["scale"] * prior["scale"]
    else:
        centre, width = prior_mean if prior["kind"] == "checkpoint" else prior["mean"], np.asarray(prior["scale"])
    nats = np.log(width / stds) + (stds**2 + (means - centre) ** 2) / (2 * width**2) - 0.5
    return float(nats.sum()) / math.log(2)


def integrated_bits(log_density, mean, std):
    """KL of one weight by adaptive quadrature, cut where the priors bend."""
    low, high = mean - 12 * std, mean + 12 * std
    bends = [p for p in (0.0, mean, mean - std, mean + std) if low < p < high]

    def integrand(x):
        log_q = normal(x, mean, std)
        return math.exp(log_q) * (log_q - float(log_density(x)))

    return integrate.quad(integrand, low, high, points=bends, epsabs=1e-12, epsrel=1e-10, limit=200)[0] / math.log(2)


@pytest.mark.parametrize("kind", sorted(registry))
def test_the_ledger_is_recomputed_from_the_file_alone(kind, tmp_path):
    prior = {"kind": kind}
    if kind == "checkpoint":
        trained("gaussian", tmp_path / "earlier")
        prior["run"] = str(tmp_path / "earlier")
    if kind == "pyro":
        prior |= {"distribution": "Normal", "arguments": {"loc": 0.1, "scale": 2.0}, "scale": 0.3}
    ledger = trained(prior, tmp_path / "run")
    with safe_open(tmp_path / "run" / "posterior.safetensors", framework="np") as file:
        priors = json.loads(file.metadata()["priors"])
        stored = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
    total = 0.0
    for name, facts in priors.items():
        means, stds = stored[f"{name}.mean"], stored[f"{name}.std"]
        if facts["kind"] in GAUSSIAN:
            total += gaussian_bits(facts, means, stds, stored.get(f"{name}.prior_mean"))
        else:
            log_density = DENSITY[facts["kind"]](facts)
            total += sum(integrated_bits(log_density, m, s) for m, s in zip(means.ravel(), stds.ravel(), strict=True))
    assert ledger.net_weight_bits == pytest.approx(total, rel=1e-6)
    assert ledger.weights == sum(stored[f"{name}.mean"].size for name in priors)
