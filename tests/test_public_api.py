"""From Python as from YAML: functions of the commands' names, results that print themselves, runs of models made in Python."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bitsback
from bitsback.errors import BitsbackError, ConfigError, DataError, FileError, RunError
from bitsback.likelihoods import CategoricalLikelihood, GaussianLikelihood
from bitsback.report import figure, observe, write_report
from bitsback.result import Result

torch.set_num_threads(1)


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def examples(name="training", count=60):
    inputs = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(count))
    return bitsback.Examples(inputs, (inputs.sum((1, 2)) > 0).long() + (inputs[:, 0, 0] > 1).long(), name)


def data():
    return bitsback.Dataset("toy", examples(), examples("test", 30), 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("python") / "run"
    model = bitsback.bayesianize(network(), prior="laplace")
    settings = {"training": {"epochs": 30, "batch_size": 20}, "ledger": {"samples": 5}}
    return bitsback.train(model, CategoricalLikelihood(3), data(), out=place, seed=1, progress=False, **settings)


def test_a_training_in_python_leaves_a_whole_run_directory(trained):
    found = {path.name for path in trained.directory.iterdir()}
    files = {
        "config.yaml",
        "metrics.jsonl",
        "ledger.json",
        "summary.json",
        "posterior.safetensors",
        "checkpoint",
        "report.html",
    }
    assert files <= found
    assert trained.report == trained.directory / "report.html"
    config = bitsback.load_run(trained.directory).config
    assert (config.data.kind, config.data.examples, config.network.kind, config.network.of) == (
        "given",
        60,
        "given",
        "Sequential",
    )
    assert (config.prior.kind, config.training.epochs, config.seed) == ("laplace", 30, 1)


def test_questions_of_a_run_from_python(trained, tmp_path):
    assert bitsback.widen(trained, samples=3).curve[1.0].net_weight_bits == pytest.approx(trained.ledger.net_weight_bits)
    assert 0 < bitsback.certify(trained, draws=600).bound <= 1
    assert bitsback.prune(trained, 0.5, curve=False, samples=2).asked.kept < trained.ledger.weights
    predicted = bitsback.predict(trained, examples("test", 30).inputs, draws=3)
    assert predicted.mean.shape == (30, 3)
    assert len(predicted.records()) == 30


def test_the_run_is_opened_again_with_what_was_given(trained, tmp_path):
    run = bitsback.load_run(trained.directory, network=network(), dataset=data())
    assert run.take_ledger().net_bits == pytest.approx(trained.ledger.net_bits, rel=1e-6)
    assert bitsback.widen(run, factors=[1.0], samples=5).curve[1.0].data_bits == pytest.approx(
        trained.ledger.data_bits, rel=1e-6
    )
    assert "<html" in write_report(run, to=tmp_path / "page.html").read_text()
    assert figure(observe(run), "width").get_xlabel()
    packed = bitsback.pack(run, tmp_path / "model.bb", codec="quantised", progress=False)
    assert (tmp_path / "model.bb").read_bytes() == packed.content


def test_a_network_that_was_given_is_described_by_whatever_writes_a_file(trained, tmp_path):
    experiment = bitsback.load_run(trained.directory, network=network(), dataset=data()).experiment()
    packed = bitsback.save(experiment, tmp_path / "saved.bb", progress=False)
    loaded = bitsback.load(tmp_path / "saved.bb")
    assert (tmp_path / "saved.bb").read_bytes() == packed.content
    assert loaded(data().train.inputs).shape == (60, 3)
    run = bitsback.load_run(trained.directory, network=network(), dataset=data())
    pair = bitsback.send(run, code="two_part", progress=False)
    assert pair.packed.loaded.config.network.kind == "sequential"


def test_without_them_the_fix_is_named(trained):
    with pytest.raises(
        DataError, match=r"the data 'toy' \(60 examples\) were handed over.*load_run\(RUN, network=..., dataset"
    ):
        bitsback.widen(trained.directory)
    with pytest.raises(ConfigError, match=r"the network, a Sequential, was handed over.*load_run\(RUN, network"):
        bitsback.load_run(trained.directory, dataset=data()).experiment()


def test_a_training_in_python_is_resumed(tmp_path):
    whole = {"training": {"epochs": 6}, "ledger": {"samples": 2}, "progress": False, "report": False}
    wanted = bitsback.train(bitsback.bayesianize(network()), None, examples(), out=tmp_path / "a", **whole)

    class Stop(Exception):
        """Ends the training."""

    def stop(step, model):
        if step == 3:
            raise Stop

    early = {**whole, "training": {"epochs": 6, "checkpoint_seconds": 0}}
    with pytest.raises(Stop):
        bitsback.train(bitsback.bayesianize(network()), None, examples(), out=tmp_path / "b", watch=stop, **early)
    found = bitsback.train(bitsback.bayesianize(network()), None, examples(), out=tmp_path / "b", resume=True, **early)
    assert found.ledger.net_bits == wanted.ledger.net_bits


LATE = r"before the first epoch"


def fails(**change):
    arguments = {"model": bitsback.bayesianize(network()), "likelihood": CategoricalLikelihood(3), "dataset": data(), **change}
    steps = []
    try:
        bitsback.train(progress=False, watch=lambda step, model: steps.append(step), **arguments)
    except BitsbackError as error:
        assert not steps, LATE
        return error
    raise AssertionError("nothing was refused")


WRONG = {
    "a misspelt key": ({"training": {"epoch": 3}}, r"train: training.epoch: unknown key \(did you mean 'epochs'\?\); allowed: "),
    "a value out of range": ({"training": {"epochs": 0}}, r"train: training.epochs: .*greater than 0"),
    "an unknown objective": ({"training": {"objective": {"kind": "elbow"}}}, r"unknown kind 'elbow' \(did you mean 'elbo'\?\)"),
    "no data": ({"dataset": None}, "which come third"),
    "a list for data": ({"dataset": [1, 2]}, "has no target beside its inputs"),
    "labels beyond the classes": ({"likelihood": CategoricalLikelihood(2)}, r"training target of example \d+ is 2; labels must"),
    "too few outputs": ({"model": bitsback.bayesianize(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))}, r"outputs of shape \(2,\)"),
    "inputs of another shape": ({"model": bitsback.bayesianize(nn.Linear(7, 3))}, r"network: Linear fails on inputs of shape \(2, 3\)"),
    "targets of another shape": ({"likelihood": GaussianLikelihood()}, r"outputs of shape \(3,\) for targets of shape \(\)"),
    "overrides of a model": ({"overrides": ["seed=1"]}, r"overrides change a YAML file; give a model's settings as training="),
    "resume without a place": ({"resume": True}, r"give out=DIRECTORY"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_before_the_first_epoch(case):
    change, sentence = WRONG[case]
    with pytest.raises(BitsbackError, match=sentence):
        raise fails(**change)


def test_a_configuration_says_its_own_settings():
    with pytest.raises(ConfigError, match="a configuration says its own training; leave training out, or use overrides"):
        bitsback.train(bitsback.Config(), training={"epochs": 1})


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        bitsback.train(bitsback.bayesianize(network()), None, examples(), out=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.fixture(scope="module")
def results(trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("results")
    config = bitsback.Config.model_validate(
        {"data": {"kind": "digits", "limit": 64}, "training": {"epochs": 2}, "ledger": {"samples": 2},
         "prequential": {"least_steps": 2}}
    )  # fmt: skip
    run = bitsback.train(config, out=place / "run", report=False, progress=False)
    packed = bitsback.pack(run.directory, place / "model.bb", codec="quantised", progress=False)
    sent = bitsback.send(config, payload=bytes(range(256)) * 8, out=place / "message.bb", progress=False)
    coded = bitsback.send(config, code="prequential", out=place / "labels.bb", progress=False)
    pair = bitsback.send(bitsback.load_run(run.directory), code="two_part", out=place / "pair.bb", progress=False)
    return {
        "train": run,
        "ledger": run.ledger,
        "pack": packed,
        "send": sent,
        "send prequential": coded,
        "send two_part": pair,
        "receive": bitsback.receive(place / "message.bb", place / "message", progress=False),
        "receive two_part": bitsback.receive(place / "pair.bb", place / "pair"),
        "unpack": bitsback.unpack(place / "model.bb", place / "unpacked"),
        "inspect": bitsback.inspect(place / "model.bb"),
        "predict": bitsback.predict(place / "model.bb", torch.rand(4, 1, 8, 8)),
        "certify": bitsback.certify(place / "model.bb"),
        "codelengths": bitsback.codelengths(config, codes=["uniform", "variational"], progress=False),
        "widen": bitsback.widen(run.directory, samples=1),
        "prune": bitsback.prune(run, 0.1, curve=False, samples=1),
    }


NAMES = (
    "train", "ledger", "pack", "send", "send prequential", "send two_part", "receive", "receive two_part", "unpack", "inspect",
    "predict", "certify", "codelengths", "widen", "prune",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_results_print_themselves_and_turn_into_plain_numbers(results, name, monkeypatch):
    found = results[name]
    assert isinstance(found, Result)
    assert str(found).strip()
    assert json.loads(found.to_json()) == json.loads(json.dumps(json.loads(found.to_json())))
    assert all(isinstance(key, str) for key in found.to_dict())
    rows = found.records()
    assert len(rows) >= 1
    asked = []
    frame = type("DataFrame", (), {"from_records": staticmethod(lambda records: asked.append(records) or "a frame")})
    monkeypatch.setitem(sys.modules, "pandas", type("pandas", (), {"DataFrame": frame}))
    assert found.to_pandas() == "a frame"
    assert list(asked[0]) == list(rows)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BitsbackError, match="needs pandas: `pip install pandas`"):
        found.to_pandas()


def test_the_payload_comes_back_by_functions_alone(results):
    assert results["receive"].payload == bytes(range(256)) * 8
    assert results["receive"].labels == results["receive two_part"].labels == 64
    assert results["receive two_part"].payload is None


def test_what_is_compared_is_named(tmp_path):
    (tmp_path / "toy.yaml").write_text("data: {kind: digits, limit: 32}\ntraining: {epochs: 1}\nledger: {samples: 1}\n")
    found = bitsback.compare(tmp_path / "toy.yaml", "prior.kind", ["gaussian", "laplace"], progress=False)
    assert [row["prior.kind"] for row in found.records()] == ["gaussian", "laplace"]
    assert all(math.isfinite(row["net_bits"]) for row in found.rows)
    assert str(found).startswith("prior.kind")


def test_what_a_code_has_no_use_for_is_refused():
    with pytest.raises(FileError, match="needs a payload"):
        bitsback.send(bitsback.Config())
    with pytest.raises(FileError, match="leave payload out"):
        bitsback.send(bitsback.Config(), code="two_part", payload=b"x")


def test_every_public_name_is_there_and_says_what_it_is():
    for name in bitsback.__all__:
        assert getattr(bitsback, name).__doc__, name
    assert {"pack", "send", "receive", "certify", "codelengths", "prune", "probe", "compare", "train", "widen", "predict",
            "inspect", "unpack"} <= set(bitsback.__all__)  # fmt: skip


def test_there_is_one_version():
    root = Path(__file__).parent.parent
    assert f"version: {bitsback.__version__}\n" in (root / "CITATION.cff").read_text()
    assert 'dynamic = ["version"]' in (root / "pyproject.toml").read_text()
