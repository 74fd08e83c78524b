"""Networks of the kinds that people bring: each trains, is counted whole, is saved, comes back and predicts."""

import copy
import importlib.util
import os
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import guests
import pyro
import pytest
import torch
import zoo
from torch import nn
from torch.nn.functional import softplus

import bitsback
from bitsback import interop
from bitsback.config.coding_settings import PackSettings
from bitsback.likelihoods import CategoricalLikelihood

PLAIN = ["unet", "tagger", "graph", "graph_batches"]
OF_TRANSFORMERS = ["gpt2", "llama", "bert", "t5"]
OF_TIMM = {
    "resnet18": {"architecture": "resnet18"},
    "vit": {"architecture": "vit_tiny_patch16_224", "img_size": 32, "depth": 2},
    "efficientnet": {"architecture": "efficientnet_b0"},
}


def needing(package: str, names: list[str]) -> list[object]:
    missing = importlib.util.find_spec(package) is None
    return [pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed")) for name in names]


ALL = [
    *PLAIN,
    *needing("transformers", OF_TRANSFORMERS),
    *needing("peft", ["lora"]),
    *needing("timm", list(OF_TIMM)),
]


def network_of(name: str) -> tuple[nn.Module, str, dict[str, object]]:
    arguments = OF_TIMM.get(name, {})
    factory = "vision" if arguments else name
    return getattr(zoo, factory)(**arguments), f"zoo:{factory}", arguments


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_network_trains_is_counted_saved_loaded_and_predicts(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("tests")
    network, factory, arguments = network_of(name)
    examples, likelihood = zoo.data_of(name)
    model = bitsback.bayesianize(network)
    settings = {"epochs": 2, "batch_size": len(examples) if name == "graph" else 8}
    trained = bitsback.train(
        model,
        likelihood,
        examples,
        training=settings,
        ledger={"samples": 2},
        progress=False,
        out=tmp_path / "run",
        report=False,
    )
    assert trained.ledger.data_bits > 0
    covered(network, model, trained.ledger)
    path = tmp_path / "model.bb"
    packed = bitsback.save(
        model, path, examples, likelihood=likelihood, factory=factory, arguments=arguments, progress=False,
        settings=PackSettings(codec="quantised"),
    )  # fmt: skip
    loaded = bitsback.load(path, [f"network.factory={factory}"])
    few = examples.inputs[:] if name == "graph" else examples.inputs[:3]  # three graphs have more nodes than that
    with torch.no_grad(), model.mean():
        wanted = model.eval().outputs(few)
    torch.testing.assert_close(loaded.outputs(few), wanted, rtol=1e-4, atol=1e-4)
    assert len(packed.content) == path.stat().st_size
    prediction = model.predict(few, samples=2, likelihood=likelihood)
    assert torch.isfinite(prediction.mean).all()
    assert len(prediction.mean) == len(wanted)


def covered(network, model, ledger):
    """Every parameter is in the ledger, trainable ones with their bits, frozen ones as known to the receiver."""
    entries = {entry.name: entry for entry in ledger.entries}
    assert sum(entry.weights for entry in entries.values()) == sum(p.numel() for p in network.parameters() if p.requires_grad)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert entries[name].weights == parameter.numel(), name
            assert entries[name].net_bits >= 0, name
        else:
            assert any(line.startswith(f"{name} (") for line in ledger.not_charged), name
    held = [name for name, tensor in model.changed_buffers() + model.learned_statistics() if tensor.numel()]
    assert len(ledger.charges) >= len(held)


@pytest.mark.parametrize(("skips", "code"), [("fail", 1), ("", 0)])
def test_where_every_library_is_installed_a_skipped_test_fails(skips, code, tmp_path):
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_one.py").write_text(
        "import pytest\n@pytest.mark.skip(reason='gone')\ndef test_one(): pass\n@pytest.mark.xfail\ndef test_two(): assert False\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SKIPS": skips})
    assert done.returncode == code, done.stdout
    assert ("skipped, where nothing may be: Skipped: gone" in done.stdout) == bool(skips)
    assert "1 xfailed" in done.stdout


def of_bayesian_torch():
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn

    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    settings = {"prior_mu": 0.0, "prior_sigma": 0.5, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0, "type": "Flipout",
                "moped_enable": False}  # fmt: skip
    dnn_to_bnn(network, settings)
    found = {}
    for path, layer in (("0", network[0]), ("3", network[3])):
        for local, own in (("weight", "kernel" if path == "0" else "weight"), ("bias", "bias")):
            std = softplus(getattr(layer, f"rho_{own}"))
            found[f"{path}.{local}"] = (std, guests.gaussian_bits(getattr(layer, f"mu_{own}"), std, 0.5))
    return interop.from_bayesian_torch(network), torch.randn(9, 1, 3, 3), found


def of_blitz():
    from blitz.modules import BayesianConv2d, BayesianLinear

    network = nn.Sequential(BayesianConv2d(1, 3, (2, 2), prior_sigma_1=0.5), nn.ReLU(), nn.Flatten(),
                            BayesianLinear(12, 3, prior_sigma_1=0.5))  # fmt: skip
    found = {}
    for path in (0, 3):
        for local in ("weight", "bias"):
            sampler = getattr(network[path], f"{local}_sampler")
            found[f"{path}.{local}"] = (softplus(sampler.rho), guests.gaussian_bits(sampler.mu, softplus(sampler.rho), 0.5))
    return interop.from_blitz(network), torch.randn(9, 1, 3, 3), found


def of_torchbnn():
    import torchbnn

    network = nn.Sequential(torchbnn.BayesConv2d(0, 0.5, 1, 3, 2), torchbnn.BayesBatchNorm2d(0, 0.5, 3), nn.ReLU(), nn.Flatten(),
                            torchbnn.BayesLinear(0, 0.5, 12, 3))  # fmt: skip
    found = {}
    for path in (0, 1, 4):
        for local in ("weight", "bias"):
            std = getattr(network[path], f"{local}_log_sigma").exp()
            found[f"{path}.{local}"] = (std, guests.gaussian_bits(getattr(network[path], f"{local}_mu"), std, 0.5))
    return interop.from_torchbnn(network), torch.randn(9, 1, 3, 3), found


def of_tyxe():
    import pyro.distributions as dist
    import tyxe

    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    prior = tyxe.priors.IIDPrior(dist.Normal(0.0, 0.5))
    bnn = tyxe.VariationalBNN(
        copy.deepcopy(network), prior, tyxe.likelihoods.Categorical(dataset_size=9), tyxe.guides.AutoNormal
    )
    x = torch.randn(9, 4)
    bnn.guide(x, torch.arange(9) % 3) if hasattr(pyro.util, "deep_getattr") else bnn.net_guide._setup_prototype(x)
    found = {}
    for name, _ in network.named_parameters():
        mean, std = (attrgetter(f"{bnn.net._pyro_name}.{name}.{part}")(bnn.net_guide) for part in ("loc", "scale"))
        found[name] = (std, guests.gaussian_bits(mean, std, 0.5))
    return interop.from_tyxe(bnn, network), x, found


def of_ivon():
    import ivon

    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = ivon.IVON(network.parameters(), lr=0.1, ess=100, weight_decay=0.04)
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    for _ in range(3):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    stds = (100 * (optimizer.param_groups[0]["hess"] + 0.04)).rsqrt().split([p.numel() for p in network.parameters()])
    found = {
        name: (std, guests.gaussian_bits(p, std, 0.5)) for (name, p), std in zip(network.named_parameters(), stds, strict=True)
    }
    return interop.from_ivon(optimizer, network), x, found


def of_laplace():
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    laplace = Laplace(network, "classification", subset_of_weights="all", hessian_structure="diag", prior_precision=4.0)
    laplace.fit(DataLoader(TensorDataset(x, y), batch_size=3))
    stds = laplace.posterior_scale.split([p.numel() for p in network.parameters()])
    found = {
        name: (std, guests.gaussian_bits(p, std, 0.5)) for (name, p), std in zip(network.named_parameters(), stds, strict=True)
    }
    return interop.from_laplace(laplace), x, found


GUESTS = [
    *needing("bayesian_torch", ["of_bayesian_torch"]),
    *needing("blitz", ["of_blitz"]),
    *needing("torchbnn", ["of_torchbnn"]),
    *needing("tyxe", ["of_tyxe"]),
    *needing("ivon", ["of_ivon"]),
    *needing("laplace", ["of_laplace"]),
]


@pytest.mark.parametrize("name", GUESTS)
def test_a_posterior_trained_elsewhere_costs_what_a_sum_by_hand_says(name):
    torch.manual_seed(0)
    model, x, wanted = globals()[name]()
    ledger = bitsback.take_ledger(model, CategoricalLikelihood(3), (x, torch.arange(9) % 3), samples=2, grid_step=2.0**-12)
    assert {entry.name for entry in ledger.entries} == set(wanted)
    for entry in ledger.entries:
        std, net_bits = wanted[entry.name]
        assert entry.net_bits == pytest.approx(net_bits, rel=1e-6)
        assert entry.refund_bits == pytest.approx(guests.refund_bits(std, 2.0**-12), rel=1e-6)
