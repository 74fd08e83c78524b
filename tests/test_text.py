"""Texts: windows of tokens, networks that do not look ahead, and files of a network and a text that decode anywhere."""

import binascii
import math
import os
import subprocess
import sys
from fractions import Fraction
from operator import mul
from pathlib import Path

import numpy as np
import pytest
import torch

import bitsback
from bitsback.config import Config, Experiment
from bitsback.data.settings import TextSettings
from bitsback.data.text_windows import text_bytes, windows
from bitsback.errors import BitsbackError, ConfigError, DataError, FileError
from bitsback.formats.text._exact_lstm import ExactLSTM
from bitsback.formats.text._steps import steps
from bitsback.formats.text.text import decode_text, send_text
from bitsback.networks import LSTM, Transformer

DOCS = Path(__file__).parent.parent / "docs"
LIKELIHOOD = {"kind": "categorical", "ignore": -100, "class_axis": -1}
PREFIX_NETWORK = {"kind": "sequential", "layers": [{"Embedding": {"num_embeddings": 9, "embedding_dim": 4}},
                                                   {"LSTM": {"hidden_size": 6, "batch_first": True}}, "Linear"]}  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("abra ca dabra\r\né".encode() * 40)
    return path


def experiment(path, network=None, context=32, epochs=2, bayesian=None, **data):
    return Experiment.build(
        Config.model_validate(
            {
                "bayesian": bayesian or {},
                "data": {"kind": "text", "path": str(path), "context": context, **data},
                "network": network or {"kind": "lstm", "embedding": 4, "width": 6},
                "likelihood": LIKELIHOOD,
                "training": {"epochs": epochs, "batch_size": 8},
                "ledger": {"samples": 2},
            }
        )
    )


def sent(path, network=None, **settings):
    e = experiment(path, network, **settings)
    e.train(None, progress=False)
    return send_text(e, progress=False)


@pytest.mark.parametrize("length", [1, 5, 6, 12, 13])
def test_every_token_is_a_target_once_and_an_input_only_of_later_ones(length):
    tokens = np.random.default_rng(0).integers(1, 9, length)
    inputs, targets = windows(tokens, 6)
    coded = targets.flatten()
    assert coded[coded != -100].tolist() == tokens.tolist()
    for row in range(len(targets)):
        before = 0
        for column in range(targets.shape[1]):
            assert int(inputs[row, column]) == before
            before = max(int(targets[row, column]), 0)


@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_tokens_are_the_file(text, tokens):
    settings = TextSettings(path=text, tokens=tokens, context=10)
    data = settings.load()
    targets = data.train.targets.flatten().numpy()
    assert text_bytes(targets[targets != -100], data.labels, tokens) == text.read_bytes()
    assert len(data.labels) == len(set(text.read_bytes() if tokens == "bytes" else text.read_bytes().decode()))


def test_the_last_windows_are_the_test_split(text):
    whole, part = (TextSettings(path=text, context=10, test_fraction=share).load() for share in (0.0, 0.25))
    assert torch.equal(torch.cat([part.train.targets, part.test.targets]), whole.train.targets)
    assert len(part.test) == len(whole.train) // 4


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (b"", {}, "is empty"),
        (b"aaaa", {}, "repeats the one token 'a'"),
        (b"abc\xff\xfe", {}, "byte 3 is 0xff"),
        (b"abcd", {"test_fraction": 0.5}, "leaves a split empty"),
        (None, {}, "cannot read"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, settings, said):
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        TextSettings(path=path, **settings).load()


def test_any_file_is_a_text_of_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)))
    assert len(TextSettings(path=path, tokens="bytes").load().labels) == 256


def test_a_network_that_looks_ahead_is_refused(text):
    layers = [*PREFIX_NETWORK["layers"]]
    layers[1] = {"LSTM": {"hidden_size": 6, "batch_first": True, "bidirectional": True}}
    with pytest.raises(ConfigError, match="looks ahead"):
        experiment(text, {"kind": "sequential", "layers": layers})


class Gated(torch.nn.Module):
    """A network whose look ahead, or at other windows, begins at zero."""

    def __init__(self, axis):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)
        self.gate, self.axis = torch.nn.Parameter(torch.zeros(4)), axis

    def forward(self, tokens):
        states = self.embedding(tokens)
        return self.head(states + self.gate * states.roll(-1, self.axis))


@pytest.mark.parametrize(("axis", "said"), [(0, "the tokens of other windows"), (1, "the tokens behind position")])
@pytest.mark.parametrize("exclude", [[], ["gate"]])
def test_a_look_ahead_that_begins_at_zero_is_found(text, axis, said, exclude):
    text.write_bytes(b"abcdefghi" * 60)
    network = {"kind": "factory", "factory": "test_text:Gated", "arguments": {"axis": axis}}
    with pytest.raises(ConfigError, match=said):
        experiment(text, network, bayesian={"exclude": exclude}).train(None, progress=False)


def network_and_values(layers=2):
    torch.manual_seed(0)
    network = LSTM(inputs=7, outputs=7, embedding=5, width=9, layers=layers).double()
    return network, {name: tensor.detach() * 2 for name, tensor in network.named_parameters()}


@torch.no_grad()
def test_the_steps_of_a_transformer_are_its_outputs():
    torch.manual_seed(0)
    network = Transformer(inputs=7, outputs=7, context=20, width=12, layers=3, heads=3).double().eval()
    tokens, state, found = torch.randint(7, (5, 20)), None, []
    for number in range(20):
        outputs, state = network.step(tokens[:, number], state)
        found.append(outputs)
    torch.testing.assert_close(torch.stack(found, dim=1), network(tokens))


@pytest.mark.parametrize("layers", [1, 2])
def test_whole_numbers_are_those_of_an_lstm(layers):
    network, values = network_and_values(layers)
    tokens = torch.randint(7, (11, 40), generator=torch.Generator().manual_seed(1))
    step = ExactLSTM(network, values, 11)
    found = torch.stack([step(tokens[:, number]) for number in range(40)], dim=1)
    network.load_state_dict(values)
    assert found.dtype == torch.int64
    torch.testing.assert_close(found.double() / 4096, network(tokens).detach(), atol=2e-3, rtol=0)


def test_whole_numbers_do_not_depend_on_the_order_of_sums():
    network, values = network_and_values()
    tokens = torch.randint(7, (33, 25), generator=torch.Generator().manual_seed(1))
    together = ExactLSTM(network, values, 33)
    found = torch.stack([together(tokens[:, number]) for number in range(25)], dim=1)
    for row in range(33):  # products of other shapes, whose sums are taken in another order
        alone = ExactLSTM(network, values, 1)
        assert torch.equal(torch.stack([alone(tokens[row : row + 1, number])[0] for number in range(25)]), found[row])
    order = torch.arange(8, -1, -1)  # units in the opposite order, which sums them the other way
    turned = dict(values)
    for layer in range(2):
        gates = torch.cat([order + 9 * gate for gate in range(4)])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            turned[f"lstm.{name}_l{layer}"] = turned[f"lstm.{name}_l{layer}"][gates]
        turned[f"lstm.weight_hh_l{layer}"] = turned[f"lstm.weight_hh_l{layer}"][:, order]
        if layer:
            turned[f"lstm.weight_ih_l{layer}"] = turned[f"lstm.weight_ih_l{layer}"][:, order]
    turned["head.weight"] = turned["head.weight"][:, order]
    other = ExactLSTM(network, turned, 33)
    assert torch.equal(torch.stack([other(tokens[:, number]) for number in range(25)], dim=1), found)


def test_weights_that_are_too_large_are_refused():
    network, values = network_and_values()
    with pytest.raises(FileError, match="too large for exact arithmetic"):
        ExactLSTM(network, {**values, "head.weight": values["head.weight"] + 2.0**16}, 1)


class Stepping(torch.nn.Module):
    """A network of a user that has a step of its own."""

    def __init__(self):
        super().__init__()
        self.embedding, self.cell, self.head = torch.nn.Embedding(9, 4), torch.nn.GRUCell(4, 6), torch.nn.Linear(6, 9)

    def step(self, tokens, state):
        state = self.cell(self.embedding(tokens), state)
        return self.head(state), state

    def forward(self, tokens):
        found, state = [], None
        for number in range(tokens.shape[1]):
            outputs, state = self.step(tokens[:, number], state)
            found.append(outputs)
        return torch.stack(found, dim=1)


NETWORKS = {
    "lstm": None,
    "transformer": {"kind": "transformer", "width": 8, "heads": 2, "layers": 2},
    "layers": PREFIX_NETWORK,
    "step": {"kind": "factory", "factory": "test_text:Stepping"},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_model_and_text_come_back(text, tmp_path, name, tokens):
    if tokens == "bytes":
        text.write_bytes(b"abcdefg\x00\xff" * 60)
    else:
        text.write_bytes("abcdefgh\u00e9".encode() * 60)
    network = NETWORKS[name]
    message = sent(text, network, tokens=tokens)
    locations = [f"network.factory={network['factory']}"] if name == "step" else []
    received = decode_text(message.content, "the file", locations, progress=False)
    assert received.content == text.read_bytes()
    assert message.total_bits == 8 * len(message.content)
    assert 8 * len(message.packed.content) + message.label_bits < message.total_bits < message.packed.net_bits * 1.1 + 6000


def test_odd_characters_come_back(text):
    text.write_bytes("ab\0c\u0085d\u2028\ufeff\r\n\t'\"\U0001f600".encode() * 40)
    assert decode_text(sent(text).content, "the file", progress=False).content == text.read_bytes()


def test_tokens_are_not_scaled(text):
    for settings in ({"scaling": "standard"}, {"fraction_bits": 4}, {"features": {"kind": "principal_components"}}):
        with pytest.raises(ValueError, match="tokens are not scaled"):
            TextSettings(path=text, **settings)


def test_the_commands_send_and_receive(text, tmp_path):
    trained = bitsback.train(experiment(text), out=tmp_path / "run", progress=False)
    bitsback.send(tmp_path / "run", code="two_part", out=tmp_path / "text.bb", progress=False)
    found = bitsback.receive(tmp_path / "text.bb", tmp_path / "back", progress=False)
    assert (tmp_path / "back" / "text.txt").read_bytes() == text.read_bytes()
    assert found.to_dict()["tokens"] == len(text.read_bytes().decode())
    assert str(found).startswith(f"{found.labels:,} tokens and the network")
    described = bitsback.inspect(tmp_path / "text.bb")
    assert described.kind == "text"
    assert sum(part["bits"] for part in described.records()) == 8 * (tmp_path / "text.bb").stat().st_size
    assert trained.ledger.net_bits > 0
    other = tmp_path / "other.txt"
    other.write_text("abra bra da c")
    for source in (tmp_path / "run", tmp_path / "model.bb"):
        if source.suffix:
            bitsback.pack(tmp_path / "run", source, progress=False)
        predicted = bitsback.predict(source, other)
        assert np.array(predicted.records()[0]["class"]).shape == (32,)
        assert float(predicted.bits.sum()) > 0
        other.write_text("xyz")
        with pytest.raises(DataError, match="has the token 'x', which the text that the network was trained on has not"):
            bitsback.predict(source, other)
        other.write_text("abra bra da c")


def test_a_machine_that_computes_otherwise_is_noticed_in_the_first_part(text, monkeypatch):
    message = sent(text, PREFIX_NETWORK)
    forward = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda layer, x: forward(layer, x) + 0.001)
    with pytest.raises(FileError, match="in part 1 of 32 of the text this machine computes other outputs"):
        decode_text(message.content, "the file", progress=False)


def test_a_part_of_a_text_is_not_sent(text):
    for data in ({"limit": 4}, {"test_fraction": 0.3}, {"prior_fraction": 0.5, "part": "prior"}):
        with pytest.raises(FileError, match="the file of a text holds all of it"):
            send_text(experiment(text, **data), progress=False)


def test_damaged_files_are_refused(text):
    content = sent(text).content
    rng = np.random.default_rng(0)
    for place in rng.integers(3, len(content) - 4, 60).tolist():
        changed = bytearray(content[:-4])
        changed[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(BitsbackError):
            decode_text(bytes(changed) + binascii.crc32(changed).to_bytes(4, "little"), "the file", progress=False)
    for end in (10, len(content) // 2, len(content) - 1):
        with pytest.raises(FileError):
            decode_text(content[:end], "the file", progress=False)


@pytest.mark.slow
def test_twenty_thousand_characters_come_back_in_another_process_under_other_threads(tmp_path):
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))[:20_000]
    path, directory = tmp_path / "docs.txt", tmp_path / "back"
    path.write_text(text, encoding="utf-8", newline="")
    with_threads = torch.get_num_threads()
    message = sent(path, {"kind": "lstm", "embedding": 12, "width": 24}, context=250, epochs=30)
    (tmp_path / "docs.bb").write_bytes(message.content)
    environment = {**os.environ, "OMP_NUM_THREADS": str(with_threads + 1), "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-m", "bitsback", "receive", str(tmp_path / "docs.bb"), "-o", str(directory)]
    subprocess.run(command, check=True, env=environment, timeout=600)
    assert (directory / "text.txt").read_bytes() == path.read_bytes()
    assert message.packed.net_bits < 0.9 * 8 * len(text)


def test_streams_are_read_side_by_side(text):
    e = experiment(text)
    loaded = sent(text).packed.loaded
    inputs = e.dataset.train.inputs
    with steps(loaded, len(inputs), inputs.shape[1]) as step:
        found = torch.stack([step(inputs[:, number]) for number in range(inputs.shape[1])], dim=1)
    torch.testing.assert_close(found.double() / 4096, loaded(inputs).detach().double(), atol=5e-3, rtol=0)


def plain_lstm(values, tokens, layers, width):
    """Outputs for one stream by section 26 of FORMAT.md, in Python's whole numbers, whose sums are exact by themselves."""
    weights = {name: [[round(Fraction(x) * 2**20) for x in row] for row in np.atleast_2d(tensor.numpy()).tolist()]
               for name, tensor in values.items()}  # fmt: skip
    one = 2**16

    def entry(argument, curve):
        j = min(max(round(Fraction(argument) * 4096), -49152), 49152)
        e = math.exp(-abs(j) / 4096)
        sigmoid = 1 / (1 + e) if j >= 0 else e / (1 + e)
        return round((sigmoid if curve == "sigmoid" else math.copysign((1 - e * e) / (1 + e * e), j)) * one)

    state = [([0] * width, [0] * width) for _ in range(layers)]
    found = []
    for token in tokens:
        given = [round(Fraction(x, 16)) for x in weights["embedding.weight"][token]]  # in units of 2^-16
        for layer in range(layers):
            hidden, cell = state[layer]
            names = [f"lstm.{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            into, again, (first,), (second,) = (weights[name] for name in names)
            gates = [
                Fraction(sum(map(mul, into[k], given)) + sum(map(mul, again[k], hidden)) + (first[k] + second[k]) * one, 2**36)
                for k in range(4 * width)
            ]
            enter, forget, change, leave = (gates[k * width : (k + 1) * width] for k in range(4))
            cell = [
                round(Fraction(entry(f, "sigmoid") * c + entry(i, "sigmoid") * entry(g, "tanh"), one))
                for i, f, g, c in zip(enter, forget, change, cell, strict=True)
            ]
            given = [
                round(Fraction(entry(o, "sigmoid") * entry(Fraction(c, one), "tanh"), one))
                for o, c in zip(leave, cell, strict=True)
            ]
            state[layer] = given, cell
        (bias,) = weights["head.bias"]
        found.append(
            [
                round(Fraction(sum(map(mul, row, given)) + b * one, 2**24))
                for row, b in zip(weights["head.weight"], bias, strict=True)
            ]
        )
    return found


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_is_what_the_format_says(layers):
    network, values = network_and_values(layers)
    tokens = torch.randint(7, (3, 20), generator=torch.Generator().manual_seed(2))
    step = ExactLSTM(network, values, 3)
    found = torch.stack([step(tokens[:, number]) for number in range(20)], dim=1)
    for row in range(3):
        assert found[row].tolist() == plain_lstm(values, tokens[row].tolist(), layers, 9)
