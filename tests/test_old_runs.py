"""A run of the engine before this one, whose layers held their posteriors: read, refused where it cannot go on, never a draw."""

import json
import shutil

import pytest
import torch
from test_golden import GOLDEN
from torch import nn

from bitsback.atomic_io import read_tensors
from bitsback.config import Experiment, load_config, load_run
from bitsback.errors import ConfigError
from bitsback.model import bayesianize, take_ledger
from bitsback.training.checkpoint import as_of_now

OLD = GOLDEN / "old_run"
CONFIG = GOLDEN / "old_run.yaml"
NET_BITS = 1193.260728196943
"""What the old release's ledger said."""


@pytest.fixture
def run(tmp_path):
    """A copy that may be written to."""
    return shutil.copytree(OLD, tmp_path / "old_run")


def written():
    """The means and stds that the old release wrote, by name of the weight, and the other tensors."""
    tensors, metadata = read_tensors(OLD / "posterior.safetensors")
    names = list(json.loads(metadata["priors"]))
    return {name: (tensors.pop(f"{name}.mean"), tensors.pop(f"{name}.std")) for name in names}, tensors


def test_its_ledger_is_the_same_number(run_command):
    assert load_run(OLD).ledger().net_bits == NET_BITS
    said = run_command("ledger", OLD)
    assert said.code == 0
    assert "with it 1,193 bits, model included" in said.out


def test_its_means_stds_and_draws_are_those_of_its_posterior():
    model, (posteriors, others) = load_run(OLD).experiment().model, written()
    assert [weight.name for weight in model.weights] == list(posteriors)
    for weight in model.weights:
        mean, std = posteriors[weight.name]
        assert torch.equal(weight.posterior.mean, mean)
        torch.testing.assert_close(weight.posterior.std(), std)
        noise = (weight.parameter.detach() - mean) / std
        assert torch.equal(weight.parameter.detach(), model.value(weight))
        assert 0.3 < float(noise.square().mean()) < 3
    model.eval()
    assert all(torch.equal(weight.parameter, posteriors[weight.name][0]) for weight in model.weights)
    assert torch.equal(model.network.linear2.bias, others["linear2.bias"])
    assert torch.equal(model.network.batchnorm1d1.running_mean, others["batchnorm1d1.running_mean"])
    model.train()
    assert not torch.equal(model.weights[0].parameter, model.weights[0].posterior.mean)


def test_a_ledger_taken_anew_agrees_with_it():
    run = load_run(OLD)
    book, e = run.ledger(), run.experiment()
    again = take_ledger(e.model, e.likelihood, e.dataset.train, samples=200, seed=1)
    assert again.net_weight_bits == pytest.approx(book.net_weight_bits, rel=1e-6)
    assert again.hyperparameter_bits == book.hyperparameter_bits
    assert again.grid_step == book.grid_step
    assert again.data_bits == pytest.approx(book.data_bits, abs=5 * book.data_bits_stderr + 5 * again.data_bits_stderr)


def test_it_cannot_be_resumed_and_says_so_in_one_sentence(run, run_command):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = run_command("train", run, "--resume")
    assert said.code == 1
    assert said.err.splitlines() == [
        f"bitsback: {run}/checkpoint/state.safetensors was written by an earlier release, whose training took other steps: its "
        "results can be read, but it cannot be resumed; train anew with another --out"
    ]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_no_payload_goes_with_it_but_its_network_is_packed(run_command, tmp_path):
    (tmp_path / "payload").write_bytes(b"abc")
    said = run_command("send", "--run", OLD, "--payload", tmp_path / "payload", "-o", tmp_path / "message", "--pad")
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        f"bitsback: {OLD} was trained by an earlier release, and a receiver cannot repeat that, so no payload would come back; "
        "train it anew with another --out (pack and --code two_part can use it as it is)"
    )
    assert not (tmp_path / "message").exists()
    assert run_command("send", "--run", OLD, "--code", "two_part", "-o", tmp_path / "two_part").code == 0
    assert run_command("pack", OLD, "-o", tmp_path / "model.bb").code == 0


@pytest.mark.parametrize("place", ["", "posterior.safetensors"])
def test_a_network_can_begin_with_its_means(place):
    overrides = [f"network.pretrained={OLD / place}", "training.epochs=1", "ledger.samples=1"]
    model = Experiment.build(load_config(CONFIG, overrides)).model
    posteriors, others = written()
    for weight in model.weights:
        assert torch.equal(weight.posterior.mean, posteriors[weight.name][0])
    assert torch.equal(model.network.linear2.bias, others["linear2.bias"])
    assert torch.equal(model.network.batchnorm1d1.running_var, others["batchnorm1d1.running_var"])
    model.eval()
    assert all(torch.equal(weight.parameter, posteriors[weight.name][0]) for weight in model.weights)


def test_its_checkpoint_is_no_network_to_begin_with():
    overrides = [f"network.pretrained={OLD / 'checkpoint' / 'state.safetensors'}"]
    with pytest.raises(ConfigError, match=r"network.pretrained: .*state.safetensors does not fit the network"):
        Experiment.build(load_config(CONFIG, overrides))


def test_it_can_be_the_prior_of_a_run():
    experiment = Experiment.build(load_config(CONFIG, [f"prior={{kind: checkpoint, run: {OLD}}}"]))
    posteriors, _ = written()
    for weight in experiment.model.weights:
        if not weight.name.endswith("bias"):
            assert torch.equal(weight.prior.mean, posteriors[weight.name][0])
            assert torch.equal(weight.posterior.mean, posteriors[weight.name][0])
    assert sum(weight.prior.kind == "checkpoint" for weight in experiment.model.weights) == 3


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.posteriors, self.out = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.embedding.weight


def test_old_states_of_tied_weights_and_of_layers_with_any_name():
    model = bayesianize(Tied())
    now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = {
        "posterior.embedding.weight": ("network.embedding.posteriors.weight", "network.out.posteriors.weight"),
        "posterior.posteriors.weight": ("network.posteriors.posteriors.weight",),
        "posterior.posteriors.bias": ("network.posteriors.posteriors.bias",),
    }
    old = {name: tensor for name, tensor in now.items() if name.startswith("priors.")}
    for name, places in moved.items():
        for part in ("mean", "log_std"):
            old |= {f"{place}.{part}": now[f"{name}.{part}"] + 1 for place in places}
    assert as_of_now(now, model) is now
    model.load_state_dict(as_of_now(old, model))
    for weight in model.weights:
        assert torch.equal(weight.posterior.mean, now[f"posterior.{weight.name}.mean"] + 1)
        assert torch.equal(weight.posterior.log_std, now[f"posterior.{weight.name}.log_std"] + 1)
    model.eval()
    assert torch.equal(model.network.out.weight, now["posterior.embedding.weight.mean"] + 1)
