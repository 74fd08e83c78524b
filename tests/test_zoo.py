"""Networks of the kinds that people bring: each trains, is counted whole, is saved, comes back and predicts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

import bitsback
from bitsback.config.coding_settings import PackSettings

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
