"""Model files: what is packed is what is loaded, and predicts alike; sizes and parts are those that are stated."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bitsback
from bitsback.atomic_io import read_tensors, write_bytes
from bitsback.config import Config, Experiment, load_config
from bitsback.config.coding_settings import PackSettings, QuantisingSettings, TuningSettings
from bitsback.data import Examples
from bitsback.errors import BitsbackError, FileError, LayerError, PriorError
from bitsback.formats._exact_outputs import exact_outputs
from bitsback.formats.inspect import inspect_file
from bitsback.formats.model_file.read import load
from bitsback.formats.model_file.write import pack_experiment
from bitsback.model import bayesianize, evaluate

DATA = {"kind": "digits", "limit": 100}
MODES = {"kind": "random_walk_modes", "features": 6}
CODECS = ["relative_entropy", "quantised"]
each_codec = pytest.mark.parametrize("codec", CODECS)


def layers(*names):
    return {"kind": "sequential", "layers": list(names)}


HIDDEN = layers("Flatten", {"Linear": {"out_features": 6}}, "ReLU", "Linear")


def config(**sections):
    return Config.model_validate(
        {"data": DATA, "training": {"epochs": 2, "batch_size": 50}, "ledger": {"samples": 1}, **sections}
    )


def trained(**sections):
    experiment = Experiment.build(config(**sections))
    experiment.train(None, progress=False)
    return experiment


def packed(experiment, **settings):
    return pack_experiment(experiment, PackSettings(**settings), progress=False)


def loaded(tmp_path, content, *places):
    (tmp_path / "model.bb").write_bytes(content)
    return load(tmp_path / "model.bb", places)


def numbers(module):
    """All numbers of a module by name, each weight at its mean."""
    is_training = module.training
    state = {name: tensor.clone() for name, tensor in module.eval().state_dict().items()}
    module.train(is_training)
    return {name: tensor for name, tensor in state.items() if not re.search(r"log_std|num_batches|_extra_state", name)}


def same_numbers(one, other):
    ours, theirs = numbers(one), numbers(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours)


NETWORKS = {
    "linear": {},
    "hidden": {"network": HIDDEN},
    "conv": {"network": layers({"Conv2d": {"out_channels": 3, "kernel_size": 3}}, "BatchNorm2d", "ReLU", {"MaxPool2d": {"kernel_size": 2}},
                               "Flatten", "Linear")},
    "norm": {"network": layers("Flatten", {"Linear": {"out_features": 6}}, "BatchNorm1d", "ReLU", "Linear")},
    "layer norm": {"network": layers("Flatten", {"Linear": {"out_features": 6}}, "LayerNorm", "GELU", "Linear")},
    "deterministic": {"network": HIDDEN, "bayesian": {"exclude": ["*.bias"]}},
    "features": {"data": {**DATA, "features": MODES}, "network": layers({"Linear": {"bias": False}}), "prior": {"kind": "cauchy"}},
    "lattice": {"data": {**DATA, "fraction_bits": 12}},
    "standard": {"data": {**DATA, "scaling": "standard"}},
    "centred": {"data": {**DATA, "scaling": "centred"}},
    "none": {"data": {**DATA, "scaling": "none"}, "training": {"epochs": 2, "optimizer": {"name": "Adam", "lr": 0.001}}},
    "names": {"likelihood": {"kind": "categorical", "class_names": list("abcdefghij")}},
    "per model": {"prior": {"kind": "laplace", "per": "model"}, "network": HIDDEN},
    "overrides": {"prior_overrides": {"*.bias": {"kind": "laplace", "learn": "none"}}},
    "float64": {"training": {"epochs": 2, "precision": "float64"}},
}  # fmt: skip


def test_missing_exact_label_bits_are_said_with_the_reason():
    experiment = trained()
    train = experiment.dataset.train
    large = replace(experiment.dataset, train=replace(train, inputs=train.inputs * 1e9))
    result = packed(replace(experiment, dataset=large), codec="quantised")
    assert result.label_bits is None
    assert result.why.startswith("asked for; label bits are not exact: the network's activations are too large for exact")


class Failing(torch.nn.Linear):
    """Fails in float64 with a given message, or because it computes in float32."""

    says = None

    def forward(self, inputs):
        if self.says is not None and inputs.dtype == torch.float64:
            raise RuntimeError(self.says)
        return super().forward(inputs.float())


def test_only_errors_of_types_are_said_to_be_such():
    model = bayesianize(Failing(3, 2)).double()
    weights, inputs = {weight.name: weight.posterior.mean for weight in model.weights}, torch.randn(4, 3).double()
    with pytest.raises(FileError, match="does not run in float64"):
        exact_outputs(model, weights, inputs)
    model.network.says = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000000 bytes."
    with pytest.raises(RuntimeError, match="tried to allocate"):
        exact_outputs(model, weights, inputs)


def stored_digits():
    from bitsback.data.settings import DigitsSettings

    return DigitsSettings(scaling="none").load().train.inputs[:40]


@each_codec
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_loaded_is_what_was_packed_and_predicts_alike(tmp_path, name, codec):
    experiment = trained(**NETWORKS[name])
    result = packed(experiment, codec=codec)
    assert result.codec == codec
    assert result.why == "asked for"
    model = loaded(tmp_path, result.content)
    assert same_numbers(model.model, result.loaded.model)
    assert same_numbers(experiment.model, model.model)  # the model in memory ends with what the file holds
    assert sum(part.bits for part in model.parts) == pytest.approx(8 * len(result.content))
    stored = stored_digits()
    prepared = experiment.dataset.preprocessing(stored)
    experiment.model.float().eval()
    with experiment.model.mean():
        wanted = experiment.likelihood.float().predict(experiment.model(prepared))
    assert torch.allclose(model.predict(stored), wanted, atol=1e-5)
    assert torch.allclose(model.predict(stored[:, 0]), wanted, atol=1e-5)  # without the channel axis
    assert torch.equal(model(prepared), model(prepared))
    assert model.class_names == (tuple("abcdefghij") if name == "names" else None)
    train = experiment.dataset.train.to(torch.device("cpu"), torch.float32)
    data_bits = evaluate(model.model, model.likelihood, train, samples=0).data_bits
    assert data_bits == pytest.approx(result.train_data_bits, rel=1e-6)
    assert result.label_bits == pytest.approx(data_bits, rel=0.01)
    assert result.total_bits == 8 * len(result.content) + result.label_bits


PRIORS = {
    "gaussian": {}, "laplace": {}, "logistic": {}, "student_t": {}, "cauchy": {}, "horseshoe": {}, "scale_mixture": {},
    "adaptive_mixture": {}, "spike_and_slab": {}, "group_gaussian": {},
    "pyro": {"distribution": "Laplace", "arguments": {"loc": 0.0, "scale": 0.3}},
}  # fmt: skip


@each_codec
@pytest.mark.parametrize("prior", PRIORS)
def test_any_prior_that_codes_weights_one_by_one(tmp_path, prior, codec):
    features = {"kind": "principal_components", "features": 5}
    experiment = trained(data={**DATA, "features": features}, network=layers("Linear"), prior={"kind": prior, **PRIORS[prior]})
    experiment.model.round_to_grid()
    mean = torch.cat([w.posterior.mean.detach().flatten() for w in experiment.model.weights])
    result = packed(experiment, codec=codec)
    model = loaded(tmp_path, result.content)
    assert same_numbers(model.model, experiment.model)
    assert [weight.prior.kind for weight in model.model.weights] == [prior] * 2
    found = torch.cat([w.posterior.mean.detach().flatten() for w in model.model.weights])
    assert np.corrcoef(mean, found)[0, 1] > (0.5 if codec == "relative_entropy" else 0.9)


@each_codec
def test_an_earlier_run_as_the_prior_is_asked_for(tmp_path, codec):
    Experiment.build(config()).train(tmp_path / "first", progress=False)
    experiment = trained(prior={"kind": "checkpoint", "run": str(tmp_path / "first")})
    content = packed(experiment, codec=codec).content
    assert str(tmp_path).encode() not in content
    with pytest.raises(FileError, match=r"the file needs to know a place on this machine; add --prior\.run="):
        loaded(tmp_path, content)
    assert same_numbers(loaded(tmp_path, content, f"prior.run={tmp_path / 'first'}").model, experiment.model)
    some = trained(prior_overrides={"*.weight": {"kind": "checkpoint", "run": str(tmp_path / "first")}})
    content = packed(some, codec=codec).content
    place = f"prior_overrides.*.weight.run={tmp_path / 'first'}"
    assert same_numbers(loaded(tmp_path, content, place).model, some.model)


@each_codec
def test_a_prior_that_codes_weights_together_is_refused(codec):
    dirichlet = {"kind": "pyro", "distribution": "MultivariateNormal", "learn": "none",
                 "arguments": {"loc": [0.0] * 5, "covariance_matrix": np.eye(5).tolist()}}  # fmt: skip
    features = {"kind": "principal_components", "features": 5}
    experiment = trained(data={**DATA, "features": features}, network=layers({"Linear": {"bias": False}}), prior=dirichlet)
    with pytest.raises(
        PriorError, match=r"the prior 'pyro' of 'linear1.weight' does not code its weights one by one; choose another"
    ):
        packed(experiment, codec=codec)


# other likelihoods and data


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return {"kind": "npz", "path": str(tmp_path / "data.npz")}


@each_codec
@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "poisson", "many bernoulli"])
def test_real_binary_and_counted_targets(tmp_path, kind, codec):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5)).astype(np.float32)
    y = {"gaussian": x[:, :2], "bernoulli": (x[:, 0] > 0).astype(int), "poisson": rng.poisson(2, 80),
         "many bernoulli": (x[:, :3] > 0).astype(int)}[kind]  # fmt: skip
    data = npz(tmp_path, inputs=x, targets=y)
    experiment = trained(data=data, network=layers("Linear"), likelihood={"kind": kind.split()[-1]})
    result = packed(experiment, codec=codec)
    if kind == "poisson":  # counts have an exact code, too
        assert abs(result.label_bits - result.train_data_bits) < 0.01 * result.train_data_bits
    else:
        assert result.label_bits is None
    coded = result.train_data_bits if result.label_bits is None else result.label_bits
    assert result.total_bits == 8 * len(result.content) + coded
    model = loaded(tmp_path, result.content)  # without data.path: it is not needed
    assert same_numbers(model.model, experiment.model)
    assert same_numbers(model.likelihood, experiment.likelihood)
    with experiment.model.eval().mean():
        prepared = experiment.dataset.preprocessing(torch.from_numpy(x))
        wanted = experiment.likelihood.predict(experiment.model(prepared))
    assert torch.allclose(model.predict(torch.from_numpy(x)), wanted, atol=1e-5)


def test_features_of_other_data_ask_where_the_data_is(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5)).astype(np.float32)
    features = {"kind": "principal_components", "features": 5}
    data = {**npz(tmp_path, inputs=x, targets=rng.integers(0, 3, 80)), "features": features}
    experiment = trained(data=data, network=layers("Linear"))
    content = packed(experiment, codec="quantised").content
    model = loaded(tmp_path, content)
    with pytest.raises(FileError, match=r"predictions need the training inputs, .*principal_components .*--data\.path=\.\.\."):
        model.predict(torch.from_numpy(x))
    model = loaded(tmp_path, content, f"data.path={tmp_path / 'data.npz'}")
    with experiment.model.eval().mean():
        wanted = experiment.likelihood.predict(experiment.model(experiment.dataset.preprocessing(torch.from_numpy(x))))
    assert torch.allclose(model.predict(torch.from_numpy(x)), wanted, atol=1e-5)


def test_whole_numbers_in_an_embedding(tmp_path):
    rng = np.random.default_rng(0)
    data = npz(tmp_path, inputs=rng.integers(0, 9, (80, 4)), targets=rng.integers(0, 3, 80))
    network = layers({"Embedding": {"num_embeddings": 9, "embedding_dim": 3}}, "Flatten", "Linear")
    experiment = trained(data=data, network=network)
    model = loaded(tmp_path, packed(experiment, codec="quantised").content)
    assert same_numbers(model.model, experiment.model)
    assert model.predict(torch.tensor([[0, 8, 3, 1]])).shape == (1, 3)


# size


def test_auto_goes_by_the_rate_and_says_so():
    result = packed(trained())
    assert result.codec == "relative_entropy"
    assert re.fullmatch(r"[\d.]+ bits per weight, below 3", result.why)
    narrow = {"training": {"epochs": 1, "optimizer": {"name": "Adam", "lr": 0.01, "log_std_lr": 0.0001}}}
    result = packed(
        trained(
            **narrow, prior={"kind": "gaussian", "scale": 10.0, "learn": "none"}, posterior={"kind": "gaussian", "std": 0.02}
        )
    )
    assert result.codec == "quantised"
    assert re.fullmatch(r"[\d.e+]+ bits per weight, above 4", result.why)
    result = packed(trained(), budget_bytes=round(650 * 3.5 / 8))
    assert re.fullmatch(r"3.5 bits per weight: both were tried, \w+ describes the labels in fewer bits", result.why)
    point = {"posterior": {"kind": "point"}, "prior": {"kind": "gaussian", "learn": "none"}}
    result = packed(trained(**point))
    assert (result.codec, result.why) == ("quantised", "a point estimate has no posterior to choose from")


@pytest.mark.parametrize("budget", [80, 107, 133, 256, 258, 300])
def test_blocks_fill_a_budget(budget):
    assert budget - 8 < len(packed(trained(network=HIDDEN), codec="relative_entropy", budget_bytes=budget).content) <= budget


@pytest.mark.parametrize("budget", [150, 260])
def test_grids_keep_to_a_budget(budget):
    assert 0.5 * budget < len(packed(trained(), codec="quantised", budget_bytes=budget).content) <= budget


@each_codec
def test_a_budget_that_is_too_small_names_the_least_and_that_is_enough(codec):
    with pytest.raises(FileError, match=r"a budget of 9 bytes is too small; the least for this network is \d+ bytes") as error:
        packed(trained(), codec=codec, budget_bytes=9)
    least = int(re.search(r"is (\d+) bytes", str(error.value)).group(1))
    assert len(packed(trained(), codec=codec, budget_bytes=least).content) == least
    with pytest.raises(FileError, match="too small"):
        packed(trained(), codec=codec, budget_bytes=least - 1)


TUNING = TuningSettings(groups=8, steps=40, balance_steps=100, batch_size=100, lr=0.02)
MODES_RUN = {
    "data": {"kind": "digits", "limit": 400, "features": {**MODES, "features": 12}},
    "network": layers({"Linear": {"bias": False}}),
    "prior": {"kind": "cauchy", "scale": 0.3},
    "posterior": {"kind": "gaussian", "std": 0.5, "relative_to": "prior"},
    "training": {"epochs": 40, "batch_size": 100, "optimizer": {"name": "Adam", "lr": 0.1, "log_std_lr": 0.05}},
}


def test_tuning_lowers_the_bits_of_file_and_labels():
    plain = packed(trained(**MODES_RUN), codec="relative_entropy")
    tuned = packed(trained(**MODES_RUN), codec="relative_entropy", tuning=TUNING)
    assert len(tuned.content) <= len(plain.content) + 2
    assert tuned.total_bits < 0.95 * plain.total_bits
    assert tuned.train_error < plain.train_error
    at_once = packed(trained(**MODES_RUN), codec="relative_entropy", tuning=TUNING.model_copy(update={"groups": 1}))
    assert tuned.total_bits < 0.97 * at_once.total_bits  # what is not chosen yet makes up for what is


def test_a_run_of_float64_is_tuned():
    short = TuningSettings(groups=4, steps=5, balance_steps=20)
    experiment = trained(training={"epochs": 2, "batch_size": 50, "precision": "float64"})
    result = packed(experiment, codec="relative_entropy", tuning=short)
    assert same_numbers(experiment.model, result.loaded.model)


def test_choosing_grids_lowers_the_bits_of_file_and_labels():
    plain = packed(trained(), codec="quantised")
    tuned = packed(trained(), codec="quantised", tuning=TUNING)
    assert tuned.total_bits < plain.total_bits


def test_equal_runs_make_equal_files_and_a_key_another():
    short = TuningSettings(groups=4, steps=5, balance_steps=5)
    one, two, other = (
        packed(trained(network=HIDDEN), codec="relative_entropy", tuning=short, key=key).content for key in (0, 0, 1)
    )
    assert one == two
    assert one != other


def test_wider_indices_take_fewer_blocks_for_the_same_bits():
    sizes = [len(packed(trained(), codec="relative_entropy", index_bits=k).content) for k in (4, 8, 12)]
    assert max(sizes) - min(sizes) <= 4


def test_the_order_of_hidden_units_is_given_back_and_named(tmp_path):
    experiment = trained(network=layers("Flatten", {"Linear": {"out_features": 12}}, "ReLU", "Linear"))
    sizes = {}
    for permute in (True, False):
        content = packed(trained(network=experiment.config.network.model_dump()), codec="quantised",
                         quantising=QuantisingSettings(permute=permute)).content  # fmt: skip
        write_bytes(tmp_path / f"{permute}.bb", content)
        parts = {part["name"]: part["bits"] for part in inspect_file(tmp_path / f"{permute}.bb")["parts"]}
        sizes[permute] = len(content), parts["order of hidden units, given back"]
    assert sizes[True][1] == pytest.approx(-29 + 1, abs=3)  # log2 12! is 28.8; one bit says that it is taken
    assert sizes[False][1] == pytest.approx(0, abs=1)
    assert 8 * (sizes[False][0] - sizes[True][0]) == pytest.approx(28, abs=9)


# point estimates, factories, models made in Python


def test_a_point_estimate_is_quantised_only(tmp_path):
    point = {"posterior": {"kind": "point"}, "prior": {"kind": "gaussian", "learn": "none"}}
    experiment = trained(**point)
    means = torch.cat([w.posterior.mean.detach().flatten() for w in experiment.model.weights])
    result = packed(experiment, codec="quantised")
    found = torch.cat([w.posterior.mean.detach().flatten() for w in loaded(tmp_path, result.content).model.weights])
    assert (found - means).abs().max() <= experiment.model.grid_step()
    with pytest.raises(FileError, match="a point estimate has no bits to give back; use --codec quantised"):
        packed(trained(**point), codec="relative_entropy")


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "some_networks.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width=4):\n"
        "        super().__init__()\n"
        "        self.first, self.last = torch.nn.Linear(64, width), torch.nn.Linear(width, 10)\n"
        "    def forward(self, x): return self.last(self.first(x.flatten(1)).tanh())\n"
        "def net(width=4): return Net(width)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_networks:net"
    sys.modules.pop("some_networks", None)


@each_codec
def test_a_network_of_a_factory(tmp_path, factory, codec):
    experiment = trained(network={"kind": "factory", "factory": factory, "arguments": {"width": 5}})
    content = packed(experiment, codec=codec).content
    with pytest.raises(FileError, match=r"no code that a file names is run unasked; .*--network.factory=some_networks:net"):
        loaded(tmp_path, content)
    model = loaded(tmp_path, content, f"network.factory={factory}")
    assert same_numbers(model.model, experiment.model)
    assert model.model.network.first.out_features == 5


@each_codec
def test_save_and_load_a_model_made_in_python(tmp_path, codec):
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    examples = Examples(torch.randn(60, 2, 4), torch.randint(3, (60,)))
    model = bitsback.bayesianize(network, prior="laplace")
    with torch.no_grad():
        model(examples.inputs)  # running statistics move
    bitsback.save(model, tmp_path / "model.bb", examples, settings=PackSettings(codec=codec), progress=False)
    found = bitsback.load(tmp_path / "model.bb")
    with model.eval().mean():
        assert torch.allclose(found(examples.inputs), model(examples.inputs), atol=1e-5)
    assert found.predict(examples.inputs).sum(1).tolist() == pytest.approx([1.0] * 60)


def test_save_refuses_what_a_file_cannot_describe(tmp_path, factory):
    import some_networks

    examples = Examples(torch.randn(20, 1, 8, 8), torch.randint(10, (20,)))
    with pytest.raises(LayerError, match=r"the file cannot describe a Net; give factory='package.module:function'"):
        bitsback.save(bitsback.bayesianize(some_networks.net()), tmp_path / "model.bb", examples, progress=False)
    with pytest.raises(LayerError, match=r"give examples: save\(model, path, Examples"):
        bitsback.save(bitsback.bayesianize(nn.Sequential(nn.Linear(2, 2))), tmp_path / "model.bb")
    assert not (tmp_path / "model.bb").exists()
    model = bitsback.bayesianize(some_networks.net(3))
    bitsback.save(model, tmp_path / "model.bb", examples, factory=factory, arguments={"width": 3}, progress=False)
    assert same_numbers(bitsback.load(tmp_path / "model.bb", [f"network.factory={factory}"]).model, model)


# the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    text = ("data: {kind: digits, limit: 100}\ntraining: {epochs: 2, batch_size: 50}\nledger: {samples: 1}\n"
            "network: {kind: sequential, layers: [Flatten, {Linear: {out_features: 6}}, ReLU, Linear]}\n"
            "likelihood: {kind: categorical, class_names: [a, b, c, d, e, f, g, h, i, j]}\n")  # fmt: skip
    (folder / "toy.yaml").write_text(text)
    Experiment.build(load_config(folder / "toy.yaml")).train(folder / "run", progress=False)
    np.save(folder / "digits.npy", stored_digits().numpy())
    return folder


@pytest.fixture
def cli(run, tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    return run_command


@each_codec
def test_pack_inspect_unpack_and_predict_from_the_command_line(cli, run, tmp_path, codec):
    said = cli("pack", run / "run", "-o", "model.bb", "--codec", codec)
    assert said.code == 0, said.err
    size = (tmp_path / "model.bb").stat().st_size
    head = rf"model.bb: {size} bytes, {codec} \(asked for\)\nFile and training labels given it: ([\d,]+) bits \(([\d,]+) \+ ([\d,]+)\)"
    total, file_bits, label_bits = (int(number.replace(",", "")) for number in re.match(head, said.out).groups())
    assert file_bits == 8 * size
    assert abs(total - file_bits - label_bits) <= 1
    assert re.search(r"Test error of the decoded file: \d", said.out)
    facts = json.loads(cli("pack", run / "run", "-o", "again.bb", "--codec", codec, "--json").out)
    assert (tmp_path / "again.bb").read_bytes() == (tmp_path / "model.bb").read_bytes()
    assert facts["file_bytes"] == size
    report = json.loads(cli("inspect", "model.bb", "--json").out)
    assert report["parts"] == facts["parts"]
    assert sum(part["bits"] for part in report["parts"]) == pytest.approx(8 * size)
    assert report["weights"] == 6 * 64 + 6 + 6 * 10 + 10
    assert [note for note in report["notes"] if "not a sample of the posterior" in note] == report["notes"][
        : codec == CODECS[0]
    ]
    said = cli("inspect", "model.bb")
    assert f"A {codec} model file of {size} bytes: 460 weights" in said.out
    assert re.search(rf"total +{8 * size:,}\.0 +{size}\.0", said.out)
    assert (
        cli("unpack", "model.bb", "-o", "out").out
        == "460 weights are in out/model.safetensors, the configuration in out/config.yaml\n"
    )
    tensors, _ = read_tensors(tmp_path / "out" / "model.safetensors")
    model = load(tmp_path / "model.bb")
    assert tensors.keys() == model.tensors().keys() >= {"linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.tensors().items())
    assert load_config(tmp_path / "out" / "config.yaml").network.layers[1] == {"Linear": {"out_features": 6}}
    rows = json.loads(cli("predict", "model.bb", "--data", run / "digits.npy", "--json").out)
    means = model.predict(stored_digits())
    assert [row["class"] for row in rows] == ["abcdefghij"[k] for k in means.argmax(1).tolist()]
    assert [row["probability"] for row in rows] == pytest.approx(means.max(1).values.tolist(), abs=1e-6)
    assert len(cli("predict", "model.bb", "--data", run / "digits.npy").out.splitlines()) == 40
    assert (
        cli("predict", "model.bb", "--data", run / "digits.npy", "-o", "means.npy").out == "40 predictions are in means.npy\n"
    )
    assert np.allclose(np.load(tmp_path / "means.npy"), means.numpy())


def test_unpacked_weights_are_a_start_for_training(cli, run, tmp_path):
    assert cli("pack", run / "run", "-o", "model.bb").code == 0
    assert cli("unpack", "model.bb", "-o", "out").code == 0
    network = ["network.kind=sequential", "network.layers=[Flatten, {Linear: {out_features: 6}}, ReLU, Linear]"]
    said = cli(
        "train", run / "toy.yaml", *network, "network.pretrained=out/model.safetensors", "training.epochs=1", "--out", "next"
    )
    assert said.code == 0, said.err


def test_a_run_predicts_by_draws_of_its_posterior(cli, run):
    rows = json.loads(cli("predict", run / "run", "--data", run / "digits.npy", "--json").out)
    assert len(rows) == 40
    assert all(row["class"] in "abcdefghij" and 0.1 <= row["probability"] <= 1 for row in rows)


def test_budget_tune_and_set_from_the_command_line(cli, run, tmp_path):
    steps = ["--set", "tuning.steps=5", "--set", "tuning.balance_steps=5", "--set", "tuning.groups=3"]
    said = cli("pack", run / "run", "-o", "model.bb", "--codec", "relative_entropy", "--budget", 150, *steps)
    assert said.code == 0, said.err
    assert 142 < (tmp_path / "model.bb").stat().st_size <= 150
    said = cli("pack", run / "run", "-o", "tuned.bb", "--codec", "relative_entropy", "--tune", *steps, "--set", "index_bits=8")
    assert said.code == 0, said.err
    assert load(tmp_path / "tuned.bb").codec == "relative_entropy"


def test_a_model_file_is_small_beside_its_weights(cli, run, tmp_path):
    said = cli("pack", run / "run", "-o", "model.bb")
    assert said.code == 0
    assert (tmp_path / "model.bb").stat().st_size < 460 * 4 / 8


def test_predictions_of_real_numbers(cli, tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    experiment = trained(
        data=npz(tmp_path, inputs=x, targets=x[:, :1]), network=layers("Linear"), likelihood={"kind": "gaussian"}
    )
    write_bytes(tmp_path / "model.bb", packed(experiment, codec="quantised").content)
    np.savez(tmp_path / "new.npz", inputs=x[:4])
    rows = json.loads(cli("predict", "model.bb", "--data", "new.npz", "--json").out)
    wanted = load(tmp_path / "model.bb").predict(torch.from_numpy(x[:4]))
    assert [row["mean"] for row in rows] == pytest.approx(wanted.flatten().tolist(), abs=1e-6)


def test_nothing_but_bitsback_errors_for_wrong_inputs(tmp_path):
    model = loaded(tmp_path, packed(trained(), codec="quantised").content)
    for shape in ((2, 7, 8), (2, 65), (2,), ()):
        with pytest.raises(BitsbackError, match=r"the model takes inputs of shape \(1, 8, 8\), got"):
            model.predict(torch.zeros(shape))
    assert model.predict(torch.zeros(0, 8, 8)).shape == (0, 10)


def test_a_codec_is_found_whatever_was_imported_before():
    code = "from bitsback.formats.model_file._codec import codec_named; print(codec_named('quantised').kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "quantised\n"
