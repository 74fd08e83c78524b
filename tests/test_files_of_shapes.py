"""Model files, two-part files and messages of targets with axes, with a mask, and of counts: what comes back, and at what cost."""

import itertools

import numpy as np
import pytest
import torch
from hostile import make

import bitsback as bb
from bitsback.config import Config, Experiment
from bitsback.data.mask import MASK_NOTE, NOT_CODED
from bitsback.errors import BitsbackError, ConfigError, DataError, FileError
from bitsback.formats.message.write import Sender
from bitsback.formats.two_part import decode_two_part, send_two_part

N = 24


def arrays_of(task):
    """Inputs and targets of a small data set that a small network can learn something of."""
    rng = np.random.default_rng(3)
    if task.startswith("masks"):  # each pixel is one of three classes, by its brightness
        images = rng.normal(size=(N, 1, 6, 5)).astype(np.float32)
        targets = np.digitize(images[:, 0] + 0.2 * rng.normal(size=(N, 6, 5)), [-0.5, 0.5])
        return {"inputs": images, "targets": targets}
    if task == "tagger":  # a tag for each word, texts of several lengths
        words = rng.integers(0, 9, (N, 7))
        lengths = rng.integers(2, 8, N)
        return {"inputs": words, "targets": words // 3, "mask": np.arange(7) < lengths[:, None]}
    inputs = rng.normal(size=(N, 3)).astype(np.float32)
    if task == "answers":
        return {"inputs": inputs, "targets": (inputs[:, :2] > 0).astype(np.int64), "mask": rng.random((N, 2)) < 0.7}
    rate = np.exp(1.5 + 0.5 * inputs)
    counts = rng.poisson(rate) if task == "poisson" else rng.negative_binomial(2, 2 / (2 + rate[:, 0]))
    return {"inputs": inputs, "targets": counts}


NETWORKS = {
    "masks": [{"Conv2d": {"out_channels": 4, "kernel_size": 3, "padding": 1}}, "ReLU",
              {"Conv2d": {"out_channels": 3, "kernel_size": 1}}],
    "tagger": [{"Embedding": {"num_embeddings": 9, "embedding_dim": 4}}, "Linear"],
}  # fmt: skip
LIKELIHOODS = {
    "masks": {"kind": "categorical"},
    "masks_masked": {"kind": "categorical", "ignore": -100, "class_axis": 1},
    "tagger": {"kind": "categorical", "ignore": -100},
    "answers": {"kind": "bernoulli", "ignore": -100},
}
TASKS = ("masks", "masks_masked", "tagger", "answers", "poisson", "negative_binomial")


def config_of(task, path, **training):
    network = NETWORKS.get(task.partition("_")[0], ["Linear"])
    return Config.model_validate(
        {
            "data": {"kind": "npz", "path": str(path), "test_fraction": 0, "scaling": "none", "fraction_bits": 8},
            "network": {"kind": "sequential", "layers": network},
            "likelihood": LIKELIHOODS.get(task, {"kind": task}),
            "training": {"epochs": 30, "batch_size": 8, "optimizer": {"lr": 0.05}, **training},
            "posterior": {"kind": "gaussian", "std": 0.05},
            "ledger": {"samples": 2},
        }
    )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """For each task: its folder with the sender's and the receiver's data, and a trained experiment."""
    torch.set_num_threads(1)
    made = {}
    for task in TASKS:
        folder = tmp_path_factory.mktemp(task)
        arrays = arrays_of(task)
        if task == "masks_masked":
            arrays["mask"] = np.random.default_rng(1).integers(0, 2, arrays["targets"].shape).astype(np.uint8)
        np.savez(folder / "sender.npz", **arrays)
        known = {name: array for name, array in arrays.items() if name != "targets"}
        np.savez(folder / "receiver.npz", **known)
        sender = Sender.train(config_of(task, folder / "sender.npz"), progress=False)
        made[task] = folder, arrays, sender
    return made


def copied(sender):
    """The trained experiment, for those who change it."""
    own = sender.experiment
    experiment = Experiment.build(own.config).double()
    experiment.model.load_state_dict(own.model.state_dict())
    experiment.likelihood.load_state_dict(own.likelihood.state_dict())
    return experiment


def wanted(arrays):
    """Targets as a receiver writes them."""
    return np.where(arrays["mask"], arrays["targets"], NOT_CODED) if "mask" in arrays else arrays["targets"]


@pytest.fixture
def fresh(tmp_path):
    names = (tmp_path / f"out{number}" for number in itertools.count())
    return lambda: next(names)


@pytest.mark.parametrize("task", TASKS)
def test_a_message_brings_targets_and_payload_back(tasks, task, tmp_path, fresh):
    folder, arrays, sender = tasks[task]
    payload = np.random.default_rng(0).bytes(600)
    sent = sender.send(payload)
    (tmp_path / "m.bb").write_bytes(sent.content)
    out = fresh()
    found = bb.receive(tmp_path / "m.bb", out, [f"data.path={folder / 'receiver.npz'}"], progress=False)
    assert (out / "payload").read_bytes() == payload
    labels = np.load(out / "labels.npy")
    assert labels.shape == arrays["targets"].shape
    assert np.array_equal(labels, wanted(arrays))
    assert found.labels == labels.size
    coded = int((labels != NOT_CODED).sum())
    assert abs(sent.label_bits - sent.ledger_data_bits) < 2 + 0.01 * coded
    assert abs(sent.overhead_bits) < 4000  # the settings of the file


@pytest.mark.parametrize("task", TASKS)
def test_a_two_part_file_brings_targets_back_and_costs_what_the_ledger_says(tasks, task, tmp_path, fresh):
    folder, arrays, sender = tasks[task]
    experiment = copied(sender)
    sent = send_two_part(experiment, progress=False)
    assert abs(sent.label_bits - sent.packed.train_data_bits) < 64 + 0.01 * sent.packed.train_data_bits
    if sent.packed.label_bits is not None:
        assert abs(sent.packed.label_bits - sent.label_bits) < 64
        assert abs(sent.packed.label_bits - sent.packed.train_data_bits) < 0.01 * sent.packed.train_data_bits
    (tmp_path / "t.bb").write_bytes(sent.content)
    out = fresh()
    bb.receive(tmp_path / "t.bb", out, [f"data.path={folder / 'receiver.npz'}"])
    labels = np.load(out / "labels.npy")
    assert labels.shape == arrays["targets"].shape
    assert np.array_equal(labels, wanted(arrays))


@pytest.mark.parametrize("task", TASKS)
def test_a_model_file_predicts_as_the_network_did(tasks, task, tmp_path):
    _, arrays, sender = tasks[task]
    experiment = copied(sender)
    packed = bb.pack(experiment, tmp_path / "f.bb", codec="quantised", progress=False)
    assert packed.label_bits is None or abs(packed.label_bits - packed.train_data_bits) < 0.01 * packed.train_data_bits
    loaded = bb.load(tmp_path / "f.bb")
    predicted = loaded.predict(torch.from_numpy(arrays["inputs"]))
    assert predicted.shape[: arrays["targets"].ndim] == arrays["targets"].shape
    assert torch.allclose(predicted, packed.loaded.predict(torch.from_numpy(arrays["inputs"])))
    if task == "negative_binomial":
        log_dispersion = float(loaded.likelihood.log_dispersion)
        assert log_dispersion == float(packed.loaded.likelihood.log_dispersion) != np.log(10.0)
        assert log_dispersion * 32 == round(log_dispersion * 32)


def test_the_ledger_assumes_the_mask_and_charges_nothing_for_it(tasks):
    ledger = copied(tasks["tagger"][2]).train(None, progress=False).ledger
    assert MASK_NOTE in ledger.not_charged
    assert MASK_NOTE not in copied(tasks["poisson"][2]).train(None, progress=False).ledger.not_charged


def test_a_receiver_without_the_mask_or_with_another_gets_no_labels(tasks, tmp_path, fresh):
    _, arrays, sender = tasks["tagger"]
    content = sender.send(bytes(600)).content
    (tmp_path / "m.bb").write_bytes(content)
    np.savez(tmp_path / "none.npz", inputs=arrays["inputs"])
    np.savez(tmp_path / "other.npz", inputs=arrays["inputs"], mask=~arrays["mask"])
    np.savez(tmp_path / "narrow.npz", inputs=arrays["inputs"], mask=arrays["mask"][:, :3])
    for name, reason in (
        ("none", "mask of the targets here"),
        ("other", "mask of the targets here"),
        ("narrow", "mask here has"),
    ):
        with pytest.raises(FileError, match=reason):
            bb.receive(tmp_path / "m.bb", fresh(), [f"data.path={tmp_path / name}.npz"], progress=False)
    two_part = send_two_part(copied(sender), progress=False).content
    for name, reason in (("none", "do not come back"), ("other", "do not come back"), ("narrow", "mask here has")):
        with pytest.raises(FileError, match=reason):
            decode_two_part(two_part, "the file", [f"data.path={tmp_path / name}.npz"])


def test_targets_that_are_not_coded_need_a_mask(tasks, tmp_path):
    _, arrays, _ = tasks["tagger"]
    np.savez(tmp_path / "d.npz", inputs=arrays["inputs"], targets=wanted(arrays))
    config = config_of("tagger", tmp_path / "d.npz", epochs=1)
    reason = "receiver cannot know which; put an array 'mask'"
    for code, more in (("bits_back", {"payload": b"x" * 999}), ("two_part", {})):
        with pytest.raises(FileError, match=reason):
            bb.send(config, code=code, progress=False, **more)
    with pytest.raises(FileError, match=reason):  # as of a run, which was trained before
        Sender.of(Experiment.build(config))


@pytest.mark.parametrize("ignore", [None, 255])
def test_a_mask_needs_a_likelihood_that_leaves_it_out(tmp_path, ignore):
    arrays = arrays_of("answers")
    np.savez(tmp_path / "d.npz", **arrays)
    config = config_of("answers", tmp_path / "d.npz")
    config = config.model_copy(update={"likelihood": config.likelihood.model_copy(update={"ignore": ignore})})
    with pytest.raises(DataError, match=r"likelihood.ignore=-100"):
        Experiment.build(config)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": np.full((N, 2), 2)}, "other values than 0 and 1"),
        ({"mask": np.ones((N, 3))}, r"has shape \(24, 3\)"),
        ({"targets": np.full((N, 2), -100), "mask": np.ones((N, 2))}, "is 1 where a target is -100"),
        ({"mask": np.zeros((N, 2))}, "hides every target"),
        ({"mask": np.full((N, 2), "a")}, "other values than 0 and 1"),
    ],
)
def test_masks_that_make_no_sense(tmp_path, change, reason):
    np.savez(tmp_path / "d.npz", **{**arrays_of("answers"), **change})
    with pytest.raises(DataError, match=reason):
        Experiment.build(config_of("answers", tmp_path / "d.npz"))


def test_a_mask_of_the_test_split_and_a_receiver_that_holds_the_targets(tmp_path):
    arrays = arrays_of("answers")
    more = {f"test_{name}": array for name, array in arrays.items()}
    np.savez(tmp_path / "d.npz", **arrays, **more)
    data = config_of("answers", tmp_path / "d.npz").data
    for part in (data.load().train, data.load().test):
        assert np.array_equal(part.targets.numpy(), wanted(arrays))
    for part in (data.load_inputs().train, data.load_inputs().test):
        assert np.array_equal(part.targets.numpy(), np.where(arrays["mask"], 0, NOT_CODED))
    assert data.load_inputs().train.assumed == (MASK_NOTE,)


def test_one_label_for_each_example_may_be_left_out(tmp_path, fresh):
    """The labels of some examples are not coded, and the classes have names of their own."""
    rng = np.random.default_rng(0)
    inputs, mask = rng.normal(size=(N, 3)).astype(np.float32), np.arange(N) % 3 > 0
    targets = np.where(inputs[:, 0] > 0, "up", "down")
    np.savez(tmp_path / "d.npz", inputs=inputs, targets=targets, mask=mask)
    np.savez(tmp_path / "r.npz", inputs=inputs, mask=mask)
    config = config_of("tagger", tmp_path / "d.npz")
    config = config.model_copy(update={"network": config_of("poisson", tmp_path / "d.npz").network})
    bb.send(config, code="two_part", out=tmp_path / "t.bb", progress=False)
    out = fresh()
    bb.receive(tmp_path / "t.bb", out, [f"data.path={tmp_path / 'r.npz'}"])
    assert np.load(out / "labels.npy").tolist() == np.where(mask, targets, "").tolist()


def tokens_config():
    return Config.model_validate(
        {
            "network": {"kind": "sequential", "layers": NETWORKS["tagger"]},
            "likelihood": {"kind": "tokens", "classes": 9},
            "training": {"epochs": 5, "batch_size": 8},
        }
    )


def test_tokens_are_packed_and_never_sent(tmp_path):
    words = np.random.default_rng(0).integers(0, 9, (N, 7))
    words[:, 1::2] = words[:, ::2][:, :3]
    np.savez(tmp_path / "d.npz", inputs=words, targets=words)
    data = config_of("tagger", tmp_path / "d.npz").data
    config = tokens_config().model_copy(update={"data": data})
    for code, more in (("bits_back", {"payload": b"x" * 999}), ("two_part", {})):
        with pytest.raises(FileError, match="the inputs are the labels, so a receiver would hold what is sent"):
            bb.send(config, code=code, progress=False, **more)
    experiment = Experiment.build(config)
    experiment.train(None, progress=False)
    packed = bb.pack(experiment, tmp_path / "f.bb", progress=False)
    assert packed.label_bits is not None
    assert abs(packed.label_bits - packed.train_data_bits) < 0.01 * packed.train_data_bits
    assert bb.load(tmp_path / "f.bb").predict(torch.from_numpy(words)).shape == (N, 7, 9)


@pytest.mark.parametrize("task", ["masks", "poisson", "tagger"])
def test_the_prequential_code_says_that_it_has_one_label_for_each_example(tasks, task):
    config = tasks[task][2].experiment.config
    with pytest.raises(ConfigError, match="prequential code"):
        bb.send(config, code="prequential", progress=False)


def test_the_prequential_code_codes_every_label(tmp_path):
    inputs, mask = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32), np.arange(N) % 3 > 0
    np.savez(tmp_path / "d.npz", inputs=inputs, targets=(inputs[:, 0] > 0).astype(int), mask=mask)
    config = config_of("tagger", tmp_path / "d.npz")
    config = config.model_copy(update={"network": config_of("poisson", tmp_path / "d.npz").network})
    calls = {
        "the prequential code": [
            lambda: bb.send(config, code="prequential", progress=False),
            lambda: bb.codelengths(config, codes=["uniform", "prequential"], progress=False),
        ],
        "BIC": [lambda: bb.codelengths(config, codes=["bic"], progress=False)],
        "Laplace's approximation": [lambda: bb.codelengths(config, codes=["laplace"], progress=False)],
    }
    for code, each in calls.items():
        for call in each:
            with pytest.raises(ConfigError, match=f"{code} is of one label for each example, and all of them"):
                call()


def test_approximations_of_targets_with_axes_have_a_row_that_says_why(tasks):
    config = config_of("tagger", tasks["tagger"][0] / "sender.npz", epochs=1)
    rows = bb.codelengths(config, progress=False).to_dict()
    assert rows["variational"]["total_bits"] > 0
    for name in ("bic", "laplace", "prequential", "label_spreading", "logistic"):
        assert rows[name]["total_bits"] is None
        assert "one label for each example" in rows[name]["how"]


CLASSES = {"kind": "categorical", "classes": 3}
BINOMIAL = {"kind": "negative_binomial", "learn": "none"}
LIES = [
    ("masks", "two_part", {"targets": [5, 6]}, "outputs of shape"),
    ("masks", "two_part", {"targets": [6, 50]}, "outputs of shape|too large"),
    ("masks", "two_part", {"targets": [60_000, 60_000]}, "what its inputs look like"),
    ("masks", "two_part", {"targets": [0]}, "what its inputs look like"),
    ("masks", "two_part", {"targets": "6"}, "what its inputs look like"),
    ("masks", "two_part", {"targets": []}, "outputs of shape"),
    ("masks", "two_part", {"likelihood": {**CLASSES, "class_axis": 2}}, "outputs of shape"),
    ("masks", "two_part", {"likelihood": {"kind": "tokens", "classes": 3}}, "the inputs are the labels"),
    ("masks", "message", {"target_shape": [5, 6]}, "outputs of shape"),
    ("masks", "message", {"target_shape": [60_000, 60_000]}, "answers for each example|look like"),
    ("masks", "message", {"target_shape": [-1]}, "what its targets look like"),
    ("masks", "message", {"target_shape": []}, "outputs of shape"),
    ("masks", "message", {"coded": 3}, "mask of the targets here"),
    ("masks", "message", {"coded": "all"}, "mask of the targets here"),
    ("masks", "message", {"likelihood": {**CLASSES, "class_axis": 0}}, "does not suit this bitsback"),
    ("masks", "message", {"likelihood": {"kind": "poisson"}}, "outputs of shape"),
    ("poisson", "two_part", {"targets": [6]}, "what its inputs look like"),
    ("poisson", "two_part", {"outputs": 6, "targets": [6]}, "come back"),
    ("poisson", "two_part", {"outputs": 10**13, "targets": [10**13]}, "what its inputs look like"),
    ("poisson", "two_part", {"outputs": 2**16 + 1, "targets": [2**16 + 1]}, "what its inputs look like"),
    ("poisson", "two_part", {"likelihood": CLASSES | {"classes": 2}}, "outputs of shape"),
    ("poisson", "two_part", {"likelihood": {**BINOMIAL, "dispersion": 1e-300}}, "dispersions from|positive, finite"),
    ("poisson", "message", {"target_shape": [2]}, "the payload was not"),
    ("poisson", "message", {"likelihood": {**BINOMIAL, "dispersion": 1e-300}}, "dispersions from|positive, finite"),
    ("poisson", "message", {"likelihood": {**BINOMIAL, "dispersion": 1e300}}, "dispersions from|positive, finite"),
    ("poisson", "message", {"likelihood": {"kind": "gaussian", "std": 1.0}}, "codes labels and counts"),
]


@pytest.mark.parametrize(("task", "kind", "lie", "reason"), LIES)
def test_files_that_lie_are_refused_in_one_sentence(tasks, task, kind, lie, reason, tmp_path, fresh):
    folder, _, sender = tasks[task]
    whole = sender.send(bytes(600)).content if kind == "message" else send_two_part(copied(sender), progress=False).content
    (tmp_path / "f.bb").write_bytes(make.with_settings(whole, **lie))
    with pytest.raises(BitsbackError, match=reason) as error:
        bb.receive(tmp_path / "f.bb", fresh(), [f"data.path={folder / 'receiver.npz'}"], progress=False)
    assert "\n" not in str(error.value)


def test_a_mean_beyond_the_code_is_refused(tmp_path):
    inputs = np.full((N, 1), 40.0, dtype=np.float32)
    np.savez(tmp_path / "d.npz", inputs=inputs, targets=np.zeros(N, dtype=int))
    experiment = Experiment.build(config_of("poisson", tmp_path / "d.npz"))
    with torch.no_grad():
        for weight in experiment.model.weights:
            weight.posterior.mean.fill_(1.0)
    experiment.model.honour_edits(everywhere=True)
    with pytest.raises(FileError, match="mean above 2"):
        send_two_part(experiment, progress=False)
