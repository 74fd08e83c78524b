"""Bad input: one clear sentence on stderr, exit code 1, no traceback, nothing half-written."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save

from bitsback import bayesianize
from bitsback.atomic_io import write_tensors
from bitsback.cli.app import main
from bitsback.config import Experiment, load_config
from bitsback.errors import BitsbackError, PriorError
from bitsback.priors import GaussianPrior, LaplacePrior, ScaleMixturePrior, StudentTPrior

TOY = "data: {kind: digits, limit: 60}\ntraining: {epochs: 1}\nledger: {samples: 1}\n"


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with toy.yaml and ``plain``, a regular file; returns the one sentence that refuses it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    (tmp_path / "plain").write_text("a regular file")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bitsback", *map(str, arguments)])
        monkeypatch.setenv("BITSBACK_DEBUG", "")
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert stopped.value.code == 1
        assert said.out == ""
        assert said.err.startswith("bitsback: ")
        assert said.err.count("\n") == 1
        return said.err.removeprefix("bitsback: ").strip()

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.yaml").write_text(TOY)
    Experiment.build(load_config(folder / "toy.yaml")).train(folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


REFUSED = {
    "missing dataset": (["data={kind: npz, path: gone.npz}"], "cannot read .*gone.npz as NPZ: .*No such file"),
    "missing idx folder": (["data={kind: idx, root: gone}"], "gone/train-images.* does not exist; .* set data.root"),
    "labels out of range": (["likelihood={kind: categorical, classes: 5}"],
                            "target of example .*; labels must be whole numbers from 0 to 4"),
    "prior scale zero": (["prior={kind: laplace, scale: 0}"], "command line: prior.scale: should be greater than 0, got 0"),
    "prior scale negative": (["prior={kind: gaussian, scale: -1}"], "prior.scale: should be greater than 0, got -1"),
    "unknown key": (["training.epoch=5"], r"training.epoch: unknown key \(did you mean 'epochs'\?\); allowed: "),
    "wrong type": (["training.epochs=five"], "training.epochs: should be a valid integer"),
    "malformed override": (["prior.kind"], "cannot read 'prior.kind'; an override is key=value"),
    "unknown optimiser": (["training.optimizer.name=Adm"], r"training.optimizer.name: 'Adm' \(did you mean 'Adam'\?\)"),
    "unknown schedule": (["training.schedule.name=StepLr"], r"schedule.name: 'StepLr' \(did you mean 'StepLR'\?\)"),
    "private schedule": (["training.schedule.name=_LRScheduler"], "schedule.name: '_LRScheduler'.* is not one of ConstantLR"),
    "refused argument": (["training.optimizer.arguments={beta: 1}"], "training.optimizer: Adam refuses its arguments: .*beta"),
    "short betas": (["training.optimizer.arguments={betas: [0.9]}"], "training.optimizer: Adam refuses its arguments"),
    "schedule without step": (["training.schedule.name=StepLR"], "schedule: StepLR refuses its arguments: .*step_size"),
    "schedule with step zero": (["training.schedule={name: StepLR, arguments: {step_size: 0}}"],
                                "training.schedule: StepLR refuses its arguments"),
    "unknown device": (["training.device=gpu"], "training.device: 'gpu' cannot be used here .*; use cpu or auto"),
    "device without numbers": (["training.device=meta"], "training.device: 'meta' cannot be used here .*; use cpu or auto"),
    "unknown layer": (["network.kind=sequential", "network.layers=[Linaer]"], r"no layer 'Linaer' \(did you mean 'Linear'\?\)"),
    "wrong layer argument": (["network={kind: sequential, layers: [{Linear: {out_featurs: 5}}]}"],
                             r"Linear has no argument 'out_featurs' \(did you mean 'out_features'\?\); allowed: bias, "),
    "wrong recurrent argument": (["network={kind: sequential, layers: [{LSTM: {hiden_size: 5}}]}"],
                                 r"network.layers\[0\] \(LSTM\) .*unexpected keyword argument 'hiden_size'"),
    "layer that fails": (["network={kind: sequential, layers: [Flatten, {Linear: {in_features: 3}}]}"],
                         r"network.layers\[1\] \(Linear\) fails on input \(2, 64\): mat1 and mat2"),
    "groups of zero": (["network={kind: sequential, layers: [{GroupNorm: {num_groups: 0}}]}"],
                       r"layers\[0\] \(GroupNorm\) fails"),
    "outputs that do not fit": (["network={kind: sequential, layers: [Flatten]}"],
                                r"outputs of shape \(64,\) but 10 classes need as many logits; change the last layer"),
    "no layers": (["network={kind: sequential, layers: []}"], "network.layers: .* at least 1 (item|layer)"),
    "override that fits nothing": (["prior_overrides={fc.*: {kind: laplace}}"],
                                   r"prior override 'fc\.\*' matches no weight; weights: linear1.weight, linear1.bias"),
    "exclude that fits nothing": (["bayesian.exclude=[fc]"], "no weight matches 'fc'.*; weights: linear1.weight"),
    "missing pretrained": (["network={kind: sequential, layers: [Flatten, Linear], pretrained: gone}"], "cannot read .*gone"),
    "pyro name": (["prior={kind: pyro, distribution: Laplas}"], r"no 'Laplas' \(did you mean 'Laplace'\?\)"),
    "half the reals": (["prior={kind: pyro, distribution: HalfNormal, arguments: {scale: 1}}"], "needs all reals as support"),
    "missing earlier run": (["prior={kind: checkpoint, run: gone}"], "cannot read .*gone/posterior.safetensors: .*set prior.run"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_train_refuses_before_it_writes(refused, tmp_path, case):
    overrides, message = REFUSED[case]
    said = refused("train", "toy.yaml", *overrides, "--out", "out")
    assert re.search(message, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((0, 2)), "targets": np.zeros(0)}, r"array 'inputs' in .*data.npz is empty; give at least one"),
        ({"inputs": np.array([[0, np.nan]] * 10)}, r"input of \w+ example \d is NaN or infinite; clean the data first"),
        ({"targets": np.arange(10) - 1}, "8 distinct values in 8 examples, which looks like a quantity"),
        ({"targets": np.arange(10.0)}, r"are real numbers; say how to describe them: likelihood: \{kind: gaussian\}"),
        (
            {"targets": np.array([0, 1] * 5), "test_inputs": np.zeros((1, 2)), "test_targets": np.array(["a"])},
            r"differ: one holds texts and the other numbers",
        ),
        ({"test_inputs": np.zeros((4, 3)), "test_targets": np.zeros(4, int)}, r"test.*\(3,\).*\(2,\)"),
    ],
)
def test_train_refuses_bad_data_before_it_writes(refused, tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **{"inputs": np.zeros((10, 2)), "targets": np.arange(10) % 3, **arrays})
    said = refused("train", "toy.yaml", "data={kind: npz, path: data.npz}", "--out", "out")
    assert re.search(message, said)
    assert not (tmp_path / "out").exists()


FACTORIES = """
import torch
def number(): return 3
def narrow(): return torch.nn.Linear(3, 3)
def few(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))
def fails(): raise ValueError("no luck")
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "not_there:net",
            r"network.factory: cannot import 'not_there:net': No module named 'not_there'; is it in this directory or on PYTHONPATH\?",
        ),
        ("bad_factories:net", r"network.factory: cannot import 'bad_factories:net': .* has no attribute 'net'"),
        ("bad_factories", r"network.factory: .*package\.module:function"),
        ("bad_factories:number", "network.factory: bad_factories:number returned int, not an nn.Module"),
        ("bad_factories:fails", "network.factory: bad_factories:fails .*no luck"),
        ("bad_factories:narrow", "network.*bad_factories:narrow.* mat1 and mat2 shapes cannot be multiplied"),
        ("bad_factories:few", r"outputs of shape \(7,\) but 10 classes need as many logits; change the last layer"),
    ],
)
def test_a_factory_that_gives_no_usable_network_is_refused(refused, tmp_path, monkeypatch, factory, message):
    (tmp_path / "bad_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    assert re.search(message, refused("train", "toy.yaml", f"network={{kind: factory, factory: '{factory}'}}", "--out", "out"))
    assert not (tmp_path / "out").exists()


def test_a_factory_refuses_wrong_arguments(refused, tmp_path, monkeypatch):
    (tmp_path / "bad_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    network = "network={kind: factory, factory: 'bad_factories:few', arguments: {width: 3}}"
    assert "bad_factories:few refuses its arguments: " in refused("train", "toy.yaml", network)


def test_pretrained_weights_of_another_network_are_refused(refused, tmp_path):
    write_tensors(tmp_path / "start.safetensors", {"linear1.weight": torch.ones(2, 2)}, {})
    said = refused("train", "toy.yaml", "network={kind: sequential, layers: [Linear], pretrained: start.safetensors}")
    assert re.match(r"network\.pretrained: .*start\.safetensors does not fit the network: ", said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"bad.yaml:1: expected ',' or '\]'"),
        ("seed: 1\nseed: 2", 'bad.yaml:2: found duplicate key "seed"'),
        ("extends: bad.yaml", "bad.yaml extends itself: bad.yaml -> bad.yaml; remove one of the extends"),
        ("- 1", "bad.yaml: a configuration is a mapping of sections, got (a )?list"),
        ("just text", "bad.yaml: a configuration is a mapping of sections, got (text|str)"),
        ("extends: 5", "bad.yaml: extends must name one YAML file, got 5"),
        ("prior: laplace", "bad.yaml:1: prior: .*kind.*, got 'laplace'"),
    ],
)
def test_what_is_no_configuration_is_refused(refused, tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    assert re.search(message, refused("train", "bad.yaml", "--out", "out"))
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_is_missing_or_not_text_is_refused(refused, tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xe9\xff")
    assert refused("train", "gone.yaml").startswith("cannot read gone.yaml: No such file or directory; give a YAML file")
    assert refused("train", "bytes.yaml").startswith("cannot read bytes.yaml: not UTF-8 text; give a YAML file")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [
    GaussianPrior,
    LaplacePrior,
    StudentTPrior,
    lambda scale: ScaleMixturePrior([0.1, scale], [0.5, 0.5]),
    lambda scale: bayesianize(torch.nn.Linear(2, 2), prior={"kind": "laplace", "scale": scale}),
], ids=["gaussian", "laplace", "student_t", "scale_mixture", "bayesianize"])  # fmt: skip
def test_a_prior_whose_scale_is_not_positive_and_finite_is_no_code(make, scale):
    with pytest.raises(PriorError, match="scale"):
        make(scale)


def test_a_prior_kind_that_is_unknown_to_the_api_names_the_near_miss():
    with pytest.raises(BitsbackError, match=r"unknown prior 'laplas' \(did you mean 'laplace'\?\); known: adaptive_mixture"):
        bayesianize(torch.nn.Linear(2, 2), prior="laplas")


# run directories


@pytest.mark.parametrize("command", [["train", "toy.yaml"], ["compare", "toy.yaml", "seed=1,2"]], ids=["train", "compare"])
def test_out_below_a_regular_file_is_refused(refused, tmp_path, command):
    assert re.search(
        "cannot write plain/run: .*plain is not a directory you may write to", refused(*command, "--out", "plain/run")
    )
    assert (tmp_path / "plain").read_text() == "a regular file"


def test_out_that_is_a_regular_file_is_refused(refused):
    assert refused("train", "toy.yaml", "--out", "plain").startswith("plain is a file, not a directory")


@pytest.mark.parametrize("command", [["train", "toy.yaml"], ["compare", "toy.yaml", "seed=1,2"]], ids=["train", "compare"])
def test_out_that_is_not_empty_is_refused_and_left_alone(refused, run, command):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert refused(*command, "--out", "run").startswith("run is not empty; choose another --out")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_schema_below_a_regular_file_is_refused(refused):
    assert refused("schema", "--out", "plain/schema.json").startswith("cannot write plain/schema.json: ")


@pytest.mark.parametrize("command", [["ledger"], ["ledger", "--recompute"], ["widen"], ["train", "--resume"]], ids=" ".join)
@pytest.mark.parametrize("place", [".", "gone", "plain"])
def test_a_folder_that_is_no_run_is_refused(refused, command, place):
    assert refused(*command, place).startswith(
        f"{place} is not a run directory (no config.yaml, no checkpoint/); make one with"
    )


@pytest.mark.parametrize("command", [["ledger", "--recompute"], ["widen"], ["train", "--resume"]], ids=" ".join)
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "other tensors"])
def test_a_damaged_checkpoint_is_refused(refused, run, command, damage):
    path = run / "checkpoint" / "state.safetensors"
    content = {"truncated": path.read_bytes()[:-1], "empty": b"", "other tensors": save({"a": torch.ones(2)})}.get(damage, b"")
    for place in (path, path.with_name("previous.safetensors")):  # that train --resume falls back on
        place.unlink()
        if damage != "missing":
            place.write_bytes(content)
    assert re.search(r"run/checkpoint/state\.safetensors", refused(*command, "run"))


def test_a_run_without_its_ledger_says_how_to_finish_it(refused, run):
    (run / "ledger.json").unlink()
    assert refused("ledger", "run") == "run has no ledger yet; finish it with `bitsback train run --resume`"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-5], "not a ledger: .*; the file is not JSON"),
        (lambda text: "[]", "not a ledger: "),
        (lambda text: text.replace('"net_bits": ', '"net_bits": 1'), "the file was edited|does not add up"),
        (lambda text: text.replace('"entries"', '"entry"'), "not a ledger: 'entries'"),
    ],
)
def test_a_ledger_that_was_changed_is_refused(refused, run, change, message):
    (run / "ledger.json").write_text(change((run / "ledger.json").read_text()))
    assert re.search(message, refused("ledger", "run"))


def test_a_configuration_of_another_network_does_not_fit_the_weights(refused, run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("- Linear\n", "- Linear: {out_features: 10, bias: false}\n"))
    assert "state.safetensors does not fit run/config.yaml; one of them was changed" in refused("widen", "run")
    assert "state.safetensors does not fit this configuration" in refused("train", "run", "--resume")


def test_a_run_is_not_resumed_with_another_configuration(refused, run):
    before = (run / "ledger.json").read_bytes()
    said = refused("train", "toy.yaml", "seed=9", "--out", "run", "--resume")
    assert said.startswith("run was started with another configuration than toy.yaml; resume it as it was: ")
    assert refused("train", "run", "seed=9", "--resume") == "a resumed run keeps its configuration; leave the overrides out"
    assert (run / "ledger.json").read_bytes() == before


@pytest.mark.parametrize("choices", [["seed=1"], ["seed=1,2", "ledger.samples=1,2"], ["seed=1,"], ["seed,1"], ["=1,2"]])
def test_compare_needs_one_key_with_two_values(refused, choices):
    assert "as in prior.kind=gaussian,laplace" in refused("compare", "toy.yaml", *choices)


def test_priors_names_the_near_miss(refused):
    assert refused("priors", "laplas").startswith("unknown prior 'laplas' (did you mean 'laplace'?); known: adaptive_mixture, ")
