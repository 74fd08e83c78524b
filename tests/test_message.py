"""The bits-back message: whatever is sent comes out again, and costs what the ledger says."""

import dataclasses
import json
import re
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitsback.atomic_io import read_tensors
from bitsback.coding.philox import whiten
from bitsback.config import Config, Experiment, load_run
from bitsback.errors import BitsbackError, ConfigError, FileError, LayerError, PriorError
from bitsback.formats.message.read import RefundLostError, receive_file
from bitsback.formats.message.write import PayloadTooShortError, Sender
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.prequential.write import prequential
from bitsback.units import nats_to_bits

DATA = {"kind": "digits", "limit": 100}
TRAINING = {"epochs": 2, "batch_size": 50}
MODES = {"kind": "random_walk_modes", "features": 6}


def layers(*names):
    return {"kind": "sequential", "layers": list(names)}


CONFIGS = {
    "linear": {},
    "modes": {"data": {**DATA, "features": MODES}, "network": layers({"Linear": {"bias": False}}), "prior": {"kind": "cauchy"}},
    "conv": {"network": layers({"Conv2d": {"out_channels": 2, "kernel_size": 3}}, "ReLU", {"MaxPool2d": {"kernel_size": 2}},
                               "Flatten", "Linear")},
    "batch_norm": {"network": layers("Flatten", {"Linear": {"out_features": 6}}, "BatchNorm1d", "ReLU", "Linear")},
    "tanh": {"network": layers("Flatten", {"Linear": {"out_features": 6}}, "Tanh", "Linear")},
    "laplace": {"prior": {"kind": "laplace"}},
    "student_t": {"prior": {"kind": "student_t"}},
    "horseshoe": {"prior": {"kind": "horseshoe"}, "data": {**DATA, "features": {"kind": "principal_components", "features": 5}},
                  "network": layers("Linear")},
    "scale_mixture": {"prior": {"kind": "scale_mixture"}},
    "group_gaussian": {"prior": {"kind": "group_gaussian"}},
    "pyro": {"prior": {"kind": "pyro", "distribution": "Normal", "arguments": {"loc": 0.0, "scale": 0.3}}},
    "pyro_learned": {"prior": {"kind": "pyro", "distribution": "StudentT", "learned": ["df"], "arguments": {"df": 5.0}}},
    "per_model": {"prior": {"kind": "laplace", "per": "model"}},
    "excluded": {"bayesian": {"exclude": ["*.bias"]}},
    "mirrored": {"bayesian": {"estimator": "weight"}, "training": {**TRAINING, "draws": 2, "antithetic": True}},
}  # fmt: skip


def config(**sections):
    return Config.model_validate({"data": DATA, "training": TRAINING, **sections})


def train(**sections):
    return Sender.train(config(**sections), progress=False)


@pytest.fixture(scope="module")
def linear():
    """A sender of the plain linear model."""
    return train()


def received(tmp_path, content, locations=(), name="out"):
    """What a receiver finds: payload, labels and tensors as files hold them, and the weights in float64."""
    (tmp_path / "message").write_bytes(content)
    got = receive_file(tmp_path / "message", tmp_path / name, locations, progress=False)
    assert {path.name for path in (tmp_path / name).iterdir()} == {"payload", "labels.npy", "model.safetensors"}
    tensors, _ = read_tensors(tmp_path / name / "model.safetensors")
    payload = (tmp_path / name / "payload").read_bytes()
    return SimpleNamespace(
        payload=payload, labels=np.load(tmp_path / name / "labels.npy"), tensors=tensors, weights=got.weights
    )


def text(length):
    return (b"It was a bright cold day in April, and the clocks were striking thirteen. " * (1 + length // 70))[:length]


def net_bits_of(sender, weights):
    """log2 q/p of these weights and their data bits, by the model's own distributions: nothing of the coder's."""
    model, likelihood, train = sender.experiment.model, sender.experiment.likelihood, sender.experiment.dataset.train
    q = sender.shared.posterior()
    flat = torch.cat([weights[weight.name].flatten() for weight in model.weights])
    log_q = torch.distributions.Normal(torch.from_numpy(q.mean), torch.from_numpy(q.std)).log_prob(flat).sum()
    log_p = sum(weight.prior().log_prob(weights[weight.name]).sum() for weight in model.weights)
    model.eval()
    for weight in model.weights:
        weight.posterior.mean.data.copy_(weights[weight.name])
    with model.mean():
        data = likelihood.bits(model(train.inputs), train.targets).sum()
    return float(nats_to_bits(log_q - log_p).detach()), float(data.detach())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_message_gives_everything_back_at_the_price_of_its_ledger(tmp_path, name):
    sender, payload = train(**CONFIGS[name]), text(2999)
    exponent = 16 if name == "horseshoe" else None  # its density has no bound at zero: on a coarse grid points lie there
    sent = sender.send(payload, exponent=exponent)
    got = received(tmp_path, sent.content)
    assert got.payload == payload
    assert (got.labels == sender.experiment.dataset.train.targets.numpy()).all()
    assert got.tensors.keys() >= got.weights.keys()
    for weight, values in got.weights.items():
        assert torch.equal(got.tensors[weight], values.float())
        assert torch.equal(values / sent.step, (values / sent.step).round())
    side = dict(sender.experiment.model.statistics()) | dict(sender.experiment.model.deterministic())
    assert all(torch.equal(got.tensors[key], tensor.detach().float()) for key, tensor in side.items())
    assert sent.overhead_bits - sent.header_bits < 0.005 * sent.net_bits + 64
    assert sent.header_bits < 1250
    weight_bits, data_bits = net_bits_of(sender, got.weights)
    assert weight_bits == pytest.approx(sent.ledger_weight_bits, rel=1e-9)
    assert data_bits == pytest.approx(sent.ledger_data_bits, rel=1e-3)  # received learned numbers and exact arithmetic


def test_facts_add_up(linear):
    sent = linear.send(text(3000))
    facts = sent.to_dict()
    assert facts["message_bits"] == 8 * len(sent.content)
    assert facts["payload_bits"] == 8 * 3000
    assert facts["message_bits"] - facts["payload_bits"] - facts["net_bits"] == pytest.approx(facts["overhead_bits"])
    assert sum(facts["overhead"].values()) == pytest.approx(facts["overhead_bits"])
    assert sum(facts["ledger"].values()) == pytest.approx(facts["net_bits"])
    coded = facts["coded"]
    parts = coded["label_bits"] + coded["hyperparameter_bits"] + coded["gross_weight_bits"] - coded["refund_bits"]
    assert parts == pytest.approx(coded["net_bits"])
    assert coded["net_bits"] == pytest.approx(facts["net_bits"], rel=0.005)
    assert facts["overhead_bits"] < 0.005 * facts["net_bits"] + 512


def test_two_messages_from_the_same_sender_and_payload_are_equal(linear):
    assert linear.send(text(3000)).content == linear.send(text(3000)).content
    assert linear.send(whiten(text(3000), 1)).content != linear.send(text(3000)).content


@pytest.mark.parametrize("payload", [bytes(2400), bytes(2401), text(2402), text(2403), b"\xff" * 2404],
                         ids=["zeros", "one more", "two more", "three more", "ones"])  # fmt: skip
def test_payloads_of_any_content_and_length_come_back(tmp_path, linear, payload):
    sent = linear.send(payload)
    assert received(tmp_path, sent.content).payload == payload
    assert sent.overhead_bits < 0.005 * sent.net_bits + 512


@pytest.mark.parametrize("exponent", [4, 12, 20])
def test_any_step_comes_back(tmp_path, linear, exponent):
    sent = linear.send(text(4000), exponent=exponent)
    assert sent.step == 2.0**-exponent
    assert received(tmp_path, sent.content).payload == text(4000)


def test_a_finer_grid_costs_nothing_net(linear):
    steps = [linear.send(whiten(bytes(4000), number), exponent=m) for m in (8, 12, 16, 20) for number in range(1, 4)]
    weights = sum(q.numel for q in linear.experiment.model.posteriors())
    for sent in steps:
        assert sent.stack_net_bits == pytest.approx(sent.net_bits, rel=0.002)
    gross = [sum(sent.gross_weight_bits for sent in steps[k : k + 3]) / 3 for k in range(0, 12, 3)]
    refund = [sum(sent.refund_bits for sent in steps[k : k + 3]) / 3 for k in range(0, 12, 3)]
    assert np.diff(gross) / weights == pytest.approx(4, abs=0.1)
    assert np.diff(refund) / weights == pytest.approx(4, abs=0.1)


def test_a_payload_that_is_too_short_says_how_much_is_missing(tmp_path, linear):
    for payload in (b"", text(101)):
        with pytest.raises(PayloadTooShortError, match="the payload is too short to draw all weights: ") as error:
            linear.send(payload)
        missing = error.value.missing_bits
        assert f"{missing:,} more bits ({-(-missing // 8):,} bytes) are needed; give a longer payload" in str(error.value)
        enough = payload + text(-(-missing // 8) + 16)
        assert received(tmp_path, linear.send(enough).content, name=f"{len(payload)}").payload == enough
        with pytest.raises(PayloadTooShortError):
            linear.send(payload + text(missing // 8 - 16))


def test_padding_is_counted_and_comes_back_after_the_payload(tmp_path, linear):
    sent = linear.send(text(50), pad=True)
    assert sent.payload_bits == 400
    assert sent.padding_bits > 0
    assert sum(sent.to_dict()["overhead"].values()) == pytest.approx(sent.overhead_bits)
    assert received(tmp_path, sent.content).payload == text(50)
    assert linear.send(text(3000), pad=True).padding_bits == 0


# receivers without labels


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def arrays(count=80):
    rng = np.random.default_rng(1)
    return {"inputs": rng.standard_normal((count, 5)).astype(np.float32), "targets": rng.integers(0, 3, count)}


def test_a_receiver_of_idx_files_needs_no_labels(tmp_path):
    rng = np.random.default_rng(0)
    sides = {"sender": tmp_path / "sender", "receiver": tmp_path / "receiver"}
    for name, folder in sides.items():
        folder.mkdir()
        for split in ("train", "t10k"):
            images = np.random.default_rng(len(split)).integers(0, 256, (60, 4, 4))
            (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
            if name == "sender":
                (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 3, 60)))
    sender = train(data={"kind": "idx", "root": str(sides["sender"])})
    sent = sender.send(text(1000))
    assert str(tmp_path) not in json.dumps(sender._settings())
    got = received(tmp_path, sent.content, [f"data.root={sides['receiver']}"])
    assert got.payload == text(1000)
    assert (got.labels == sender.experiment.dataset.train.targets.numpy()).all()


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "many bernoulli"])
def test_a_receiver_of_npz_files_needs_no_targets(tmp_path, kind):
    held = arrays()
    if kind != "categorical":
        held["targets"] = (held["inputs"][:, 0] > 0).astype(np.int64)
    if kind == "many bernoulli":
        held["targets"] = (held["inputs"][:, :3] > 0).astype(np.int64)
    np.savez(tmp_path / "sender.npz", **held)
    np.savez(tmp_path / "receiver.npz", inputs=held["inputs"])
    sections = {"network": layers("Linear"), "likelihood": {"kind": kind.split()[-1]}}
    sender = train(data={"kind": "npz", "path": str(tmp_path / "sender.npz")}, **sections)
    got = received(tmp_path, sender.send(text(500)).content, [f"data.path={tmp_path / 'receiver.npz'}"])
    assert got.payload == text(500)
    assert (got.labels == sender.experiment.dataset.train.targets.numpy()).all()
    assert got.labels.shape == tuple(sender.experiment.dataset.train.targets.shape)


def test_other_inputs_than_the_senders_are_refused(tmp_path):
    held = arrays()
    np.savez(tmp_path / "sender.npz", **held)
    held["inputs"][3, 2] += 0.01
    np.savez(tmp_path / "other.npz", **held)
    sender = train(data={"kind": "npz", "path": str(tmp_path / "sender.npz")}, network=layers("Linear"))
    (tmp_path / "message").write_bytes(sender.send(text(500)).content)
    for place, said in {"other": "the inputs here are not those of the sender: their digest differs; .*data.path",
                        "gone": "cannot read .*gone.npz"}.items():  # fmt: skip
        with pytest.raises(BitsbackError, match=said):
            receive_file(tmp_path / "message", tmp_path / "out", [f"data.path={tmp_path / place}.npz"], progress=False)
    with pytest.raises(FileError, match=r"the file needs to know a place on this machine; add --data.path="):
        receive_file(tmp_path / "message", tmp_path / "out", progress=False)
    with pytest.raises(FileError, match=r"'training.epochs=3' says no place"):
        receive_file(tmp_path / "message", tmp_path / "out", ["training.epochs=3"], progress=False)
    with pytest.raises(FileError, match=r"'data.split_seed' is fixed by the file"):
        receive_file(tmp_path / "message", tmp_path / "out", ["data.split_seed=3"], progress=False)
    assert not (tmp_path / "out").exists()


def test_a_few_last_bits_of_the_inputs_do_not_matter(tmp_path):
    held = arrays()
    np.savez(tmp_path / "sender.npz", **held)
    np.savez(tmp_path / "receiver.npz", inputs=held["inputs"] * np.float32(1 + 2**-22))
    sender = train(data={"kind": "npz", "path": str(tmp_path / "sender.npz")}, network=layers("Linear"))
    got = received(tmp_path, sender.send(text(500)).content, [f"data.path={tmp_path / 'receiver.npz'}"])
    assert got.payload == text(500)


def test_labels_and_network_are_delivered_when_the_payload_cannot_be(tmp_path, monkeypatch, linear):
    sent = linear.send(text(3000))
    expected = received(tmp_path, sent.content, name="right")
    real = Experiment.train

    def otherwise(experiment, *arguments, **options):
        other = experiment.config.model_copy(update={"seed": 1})
        return real(dataclasses.replace(experiment, config=other), *arguments, **options)

    monkeypatch.setattr(Experiment, "train", otherwise)
    with pytest.raises(RefundLostError, match=r"the payload was not: .*; labels and network are in .*wrong"):
        receive_file(tmp_path / "message", tmp_path / "wrong", progress=False)
    assert {path.name for path in (tmp_path / "wrong").iterdir()} == {"labels.npy", "model.safetensors"}
    assert (np.load(tmp_path / "wrong" / "labels.npy") == expected.labels).all()
    tensors, _ = read_tensors(tmp_path / "wrong" / "model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.tensors.items())


# what cannot be sent


@pytest.fixture
def untrained(monkeypatch):
    """Training fails: what cannot be sent is refused before."""

    def never(*_arguments, **_options):
        raise AssertionError("trained before it was refused")

    monkeypatch.setattr(Experiment, "train", never)


POINT = {"posterior": {"kind": "point"}, "prior": {"kind": "gaussian", "learn": "none"}}


def test_a_point_estimate_has_no_bits_to_give_back(untrained):
    with pytest.raises(LayerError, match=r"a point estimate has no bits to give back; .*--codec quantised"):
        train(**POINT)


def test_a_point_estimate_of_a_run_has_none_either(tmp_path):
    experiment = Experiment.build(config(**POINT))
    experiment.train(tmp_path / "run", progress=False)
    sender = Sender.of_run(load_run(tmp_path / "run"))
    with pytest.raises(LayerError, match=r"a point estimate has no bits to give back; .*--codec quantised"):
        sender.send(text(3000))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_std_that_is_no_number_or_zero_is_refused(value):
    sender = train()
    next(iter(sender.experiment.model.posteriors())).log_std.data[0] = value
    with pytest.raises(LayerError, match="NaN, infinite or not above zero; train it again"):
        sender.send(text(3000))


def test_real_targets_are_no_labels(tmp_path, untrained):
    np.savez(tmp_path / "data.npz", inputs=arrays()["inputs"], targets=arrays()["inputs"][:, :1])
    with pytest.raises(
        FileError, match=r"the likelihood 'gaussian' describes .*; use likelihood.kind=categorical or bernoulli"
    ):
        train(
            data={"kind": "npz", "path": str(tmp_path / "data.npz")},
            network=layers("Linear"),
            likelihood={"kind": "gaussian"},
        )


def test_a_prior_of_several_weights_at_once_is_refused_before_training(untrained):
    several = {"kind": "pyro", "distribution": "MultivariateNormal",
               "arguments": {"loc": [0.0] * 10, "covariance_matrix": np.eye(10).tolist()}}  # fmt: skip
    with pytest.raises(PriorError, match=r"of 'linear1.bias' does not code its weights one by one; choose another prior"):
        train(prior_overrides={"*.bias": several})


def test_one_of_several_processes_is_refused_before_it_trains_or_receives(tmp_path, untrained, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    said = (
        r"one of 4 processes that train together, and a receiver repeats what one has trained; start bitsback without torchrun"
    )
    with pytest.raises(ConfigError, match=said):
        train()
    with pytest.raises(ConfigError, match=said):
        receive_file(tmp_path / "message", tmp_path / "out")
    with pytest.raises(ConfigError, match=said):
        prequential(config(), progress=False)
    with pytest.raises(ConfigError, match=said):
        receive_prequential(tmp_path / "message", tmp_path / "out")


@pytest.mark.parametrize("exponent", [-17, 48, 400])
def test_a_step_out_of_range_is_refused(linear, exponent):
    with pytest.raises(FileError, match=r"a step of 2\^-?\d+ is out of range; choose one between 2\^-40 and 2\^10"):
        linear.send(text(9000), exponent=exponent)


# the command line


@pytest.fixture
def cli(tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text("data: {kind: digits, limit: 100}\ntraining: {epochs: 2, batch_size: 50}\n")
    (tmp_path / "letter.txt").write_bytes(text(3000))
    return run_command


def test_a_step_out_of_range_is_refused_before_training(cli, untrained):
    said = cli("send", "toy.yaml", "--payload", "letter.txt", "--step", "2^-48", "-o", "message")
    assert (said.code, said.err) == (1, "bitsback: a step of 2^-48 is out of range; choose one between 2^-40 and 2^10\n")


@pytest.mark.parametrize("code", ["bits_back", "prequential"])
def test_that_bfloat16_is_not_used_is_said(cli, code):
    payload = ["--payload", "letter.txt"] if code == "bits_back" else ["prequential.least_steps=1"]
    said = cli("send", "toy.yaml", "training.precision=bfloat16", *payload, "--code", code, "-o", "message")
    assert said.code == 0
    assert "note: training.precision=bfloat16 is not used here: what a receiver repeats is trained in float64" in said.err
    assert cli("receive", "message", "-o", "out").code == 0


def test_send_and_receive_from_the_command_line(cli, tmp_path):
    said = cli("send", "toy.yaml", "--payload", "letter.txt", "-o", "message")
    assert said.code == 0, said.err
    assert re.match(r"A message of [\d,]+ bytes in message carries a payload of 3,000 bytes, on a grid of 2\^-\d+\.", said.out)
    numbers = re.search(r"message less payload +([\d,.]+) +([\d,.]+)", said.out).groups()
    ledger, real = (float(number.replace(",", "")) for number in numbers)
    size = (tmp_path / "message").stat().st_size
    assert real == 8 * (size - 3000)
    over = float(
        re.search(r"Overhead over the ledger of these very weights: ([\d,.]+) bits", said.out).group(1).replace(",", "")
    )
    assert over == pytest.approx(real - ledger, abs=0.15)
    said = cli("receive", "message", "-o", "got")
    assert said.out == "100 labels, 650 weights and a payload of 3,000 bytes are in got\n"
    assert (tmp_path / "got" / "payload").read_bytes() == text(3000)
    report = json.loads(cli("inspect", "message", "--json").out)
    assert report["kind"] == "message"
    assert sum(part["bits"] for part in report["parts"]) == 8 * size == 8 * report["file_bytes"]


def test_pad_says_what_it_wastes(cli, tmp_path):
    (tmp_path / "short").write_bytes(b"short")
    said = cli("send", "toy.yaml", "--payload", "short", "-o", "message")
    assert (said.code, said.out) == (1, "")
    assert "bitsback: the payload is too short to draw all weights: " in said.err
    assert not (tmp_path / "message").exists()
    said = cli("send", "toy.yaml", "--payload", "short", "-o", "message", "--pad")
    assert re.search(r"\n[\d,]+ random bytes had to follow the payload: the message carries them for nothing", said.out)
    assert cli("receive", "message", "-o", "got").code == 0
    assert (tmp_path / "got" / "payload").read_bytes() == b"short"


def test_several_steps_make_a_table(cli):
    rows = json.loads(cli("send", "toy.yaml", "--payload", "letter.txt", "--step", "2^-6,2^-8, 2^-10", "--json").out)
    assert [row["step"] for row in rows] == ["2^-6", "2^-8", "2^-10"]
    assert all(row["stack_net_bits"] == pytest.approx(row["net_bits"], rel=0.005) for row in rows)
    said = cli("send", "toy.yaml", "--payload", "letter.txt", "--step", "2^-6,2^-8", "--draws", "2")
    assert re.search(r"step +gross weights +refund +net coded +ledger +file overhead", said.out)
    assert re.search(r"2\^-6 +[\d,]+\.\d", said.out)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_run_is_sent_as_it_is(cli, tmp_path, precision):
    assert cli("train", "toy.yaml", f"training.precision={precision}", "--out", "run").code == 0
    said = cli("send", "--run", "run", "--payload", "letter.txt", "-o", "message", "--json")
    facts = json.loads(said.out)
    assert facts["overhead"]["payload_padding_bits"] == 0
    assert facts["message_bits"] == 8 * (tmp_path / "message").stat().st_size
    assert cli("receive", "message", "-o", "got").code == 0
    assert (tmp_path / "got" / "payload").read_bytes() == text(3000)
    again = load_run(tmp_path / "run").experiment()
    assert (np.load(tmp_path / "got" / "labels.npy") == again.dataset.train.targets.numpy()).all()
