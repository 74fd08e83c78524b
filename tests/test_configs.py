"""Every configuration that is shipped trains at toy size, and the schema beside them is current."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsback.config import Experiment, json_schema, load_config
from bitsback.data import Dataset, Examples
from bitsback.priors import registry

CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml"))
TOY = ["training.epochs=2", "ledger.samples=2", "data.limit=200", "training.batch_size=100", "training.schedule.warmup_epochs=0",
       "training.beta={}"]  # fmt: skip


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run for the checkpoint prior."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    Experiment.build(load_config(CONFIGS / "digits.yaml", TOY)).train(directory, progress=False)
    return directory


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, mnist):
    """A finished run on the part of MNIST that a prior is learned from."""
    directory = tmp_path_factory.mktemp("runs") / "prior"
    config = load_config(CONFIGS / "records" / "mnist_certificate_prior.yaml", [*TOY, f"data.root={mnist}"])
    Experiment.build(config).train(directory, progress=False)
    return directory


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_configuration_trains(path, mnist, earlier, learnt, tmp_path):
    overrides = list(TOY)
    if path.stem == "tables":
        inputs = np.random.default_rng(0).normal(size=(100, 3))
        np.savez(tmp_path / "table.npz", inputs=inputs, targets=inputs.sum(1).round(2))
        overrides.append(f"data.path={tmp_path / 'table.npz'}")
    if path.stem == "tinyshakespeare":
        (tmp_path / "text.txt").write_text("What say the citizens?\n" * 90)
        overrides += [f"data.path={tmp_path / 'text.txt'}", "data.test_fraction=0.5"]
    elif path.stem.startswith("mnist") or path.parent.name == "records":
        overrides.append(f"data.root={mnist}")
    if path.stem == "mnist_certificate_posterior":
        overrides.append(f"prior.run={learnt}")
    if path.stem == "checkpoint":
        overrides.append(f"prior.run={earlier}")
    outcome = Experiment.build(load_config(path, overrides)).train(None, progress=False)
    ledger = outcome.ledger
    assert ledger.net_bits == pytest.approx(ledger.gross_bits - ledger.refund_bits)
    assert ledger.net_bits == pytest.approx(ledger.data_bits + ledger.net_weight_bits + ledger.hyperparameter_bits)
    assert outcome.test_error is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_configuration_points_editors_at_the_schema(path):
    first = path.read_text().splitlines()[0]
    place = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / place).resolve() == (CONFIGS / "schema.json").resolve()


def test_the_schema_file_is_current():
    assert json.loads((CONFIGS / "schema.json").read_text()) == json_schema(), "run `bitsback schema --out configs/schema.json`"


def test_every_prior_has_a_configuration():
    assert {path.stem for path in (CONFIGS / "priors").glob("*.yaml")} == set(registry)


@pytest.mark.slow
def test_the_default_configuration_describes_the_digits_in_under_300_bits():
    outcome = Experiment.build(load_config(CONFIGS / "digits.yaml")).train(None, progress=False)
    assert outcome.ledger.net_bits < 300
    assert outcome.test_error <= 0.035


@pytest.mark.slow
def test_shuffled_labels_cost_what_they_cost_without_a_model():
    """Nothing about the labels leaks through the features or the configuration."""
    experiment = Experiment.build(load_config(CONFIGS / "digits.yaml", ["ledger.samples=50"]))
    train = experiment.dataset.train
    shuffled = Examples(train.inputs, train.targets[torch.randperm(len(train))])
    dataset = Dataset("shuffled", shuffled, None, 10)
    ledger = Experiment(experiment.config, dataset, experiment.model, experiment.likelihood).train(None, progress=False).ledger
    assert ledger.net_bits > 0.995 * ledger.uniform_bits
