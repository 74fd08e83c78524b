"""Networks that need no code: their sizes, what they compute, and that they train, are counted, packed and predict."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import bitsback
from bitsback.config import Config
from bitsback.errors import ConfigError
from bitsback.networks import MLP

TOKENS = torch.arange(24 * 7).reshape(24, 7) ** 2 % 5
LABELS = torch.arange(24) % 3


def made(inputs, outputs=5, **network):
    return Config.model_validate({"network": network}).network.build(inputs, outputs)


def numbers(network):
    return sum(parameter.numel() for parameter in network.parameters())


def later(sequence, position):
    """The sequence with everything behind a position changed."""
    changed = sequence.clone()
    changed[:, position + 1 :] = (sequence[:, position + 1 :] + 1) % 5
    return changed


def sequence_networks(inputs):
    return {"lstm": made(inputs, kind="lstm", width=6, layers=2, embedding=4)}


@pytest.mark.parametrize("inputs", [TOKENS, torch.randn(3, 7, 2)], ids=["tokens", "vectors"])
@pytest.mark.parametrize("mode", [True, False])
def test_outputs_depend_on_their_position_and_those_before_it_alone(inputs, mode):
    for name, network in sequence_networks(inputs).items():
        network.train(mode)
        with torch.no_grad():
            before = network(inputs)
            assert before.shape == (*inputs.shape[:2], 5), name
            for position in range(6):
                after = network(later(inputs, position))
                torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1])
                assert not torch.allclose(after[:, position + 1], before[:, position + 1], atol=1e-6), name


def test_outputs_per_sequence_are_those_at_its_last_position():
    whole = made(TOKENS, kind="lstm", width=6)
    last = made(TOKENS, kind="lstm", width=6, per="sequence")
    last.load_state_dict(whole.state_dict())
    torch.testing.assert_close(last(TOKENS), whole(TOKENS)[:, -1])


def test_an_lstm_is_torchs():
    network = made(TOKENS, kind="lstm", width=6, layers=2, embedding=4)
    embedding, lstm, head = nn.Embedding(5, 4), nn.LSTM(4, 6, 2), nn.Linear(6, 5)
    for mine, own in zip((embedding, lstm, head), (network.embedding, network.lstm, network.head), strict=True):
        mine.load_state_dict(own.state_dict())
    states, _ = lstm(embedding(TOKENS.T))
    torch.testing.assert_close(network(TOKENS), head(states).transpose(0, 1))
    gates = 4 * 6 * (4 + 6 + 2) + 4 * 6 * (6 + 6 + 2)
    assert numbers(network) == 5 * 4 + gates + (6 + 1) * 5


def test_the_vocabulary_of_the_inputs_may_be_another_than_the_outputs():
    network = made(TOKENS, outputs=2, kind="lstm", vocabulary=9, width=4, per="sequence")
    assert network.embedding.num_embeddings == 9
    assert network(TOKENS).shape == (24, 2)
    with pytest.raises(
        ConfigError, match=r"tokens from 0 to 4, and the network knows those from 0 to 1; set network.vocabulary"
    ):
        made(TOKENS, outputs=2, kind="lstm")(TOKENS)


def test_a_perceptron_over_a_tensor_is_a_row_of_layers():
    inputs = torch.randn(4, 2, 3)
    network = made(inputs, kind="mlp", hidden=[7, 8], activation="Tanh")
    assert [type(layer) for layer in network] == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert numbers(network) == 7 * (6 + 1) + 8 * (7 + 1) + 5 * (8 + 1)


def test_a_perceptron_over_columns_joins_numbers_and_embeddings():
    columns = {"numbers": torch.randn(4, 3), "categories": torch.tensor([[0, 6], [1, 2], [1, 0], [0, 5]])}
    network = made(columns, kind="mlp", hidden=[8], categories=[2, 7])
    assert isinstance(network, MLP)
    first, second = network.embeddings
    assert (first.embedding_dim, second.embedding_dim) == (1, 4)
    joined = torch.cat([columns["numbers"], first.weight[[0, 1, 1, 0]], second.weight[[6, 2, 0, 5]]], 1)
    dense, last = network.layers[0], network.layers[2]
    wanted = (joined @ dense.weight.T + dense.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(network(**columns), wanted)
    assert numbers(network) == 2 * 1 + 7 * 4 + 8 * (3 + 1 + 4 + 1) + 5 * (8 + 1)
    with pytest.raises(ConfigError, match=r"column 1 of the categories has values from 1 to 7, and .* from 0 to 6"):
        network(**{**columns, "categories": columns["categories"] + torch.tensor([0, 1])})


def test_a_linear_perceptron_and_columns_of_one_kind():
    network = made({"categories": TOKENS}, kind="mlp", hidden=[], categories=[5] * 7, embedding=2)
    assert network(categories=TOKENS).shape == (24, 5)
    assert numbers(network) == 7 * 5 * 2 + 5 * (14 + 1)
    assert made({"numbers": torch.randn(3, 2)}, kind="mlp")(numbers=torch.randn(3, 2)).shape == (3, 5)


REFUSED = {
    "series of numbers": ({"kind": "lstm"}, torch.randn(3, 7), r"data.scaling=none .* \(n, L, 1\)"),
    "images to lstm": ({"kind": "lstm"}, torch.randn(3, 1, 8, 8), "name another network"),
    "whole vectors": ({"kind": "lstm"}, torch.ones(3, 7, 2, dtype=torch.long), "data.scaling=standard"),
    "columns to lstm": ({"kind": "lstm"}, {"numbers": torch.randn(3, 2)}, r"give shapes numbers \(2,\)"),
    "unknown columns": ({"kind": "mlp"}, {"size": torch.randn(3, 2)}, r"a dict of numbers .* give shapes size \(2,\)"),
    "no number of values": ({"kind": "mlp"}, {"categories": TOKENS}, "7 columns of categories, and network.categories has 0"),
    "categories of a tensor": ({"kind": "mlp", "categories": [3]}, torch.randn(3, 1), "network.categories left out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_inputs_are_refused_with_the_fix(name):
    network, inputs, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        made(inputs, **network)


FILES = {
    "lstm": ({"kind": "lstm", "width": 6, "embedding": 4}, TOKENS, TOKENS, {"kind": "tokens", "classes": 5}),
    "lstm per sequence": ({"kind": "lstm", "width": 6, "per": "sequence"}, torch.randn(24, 7, 2), None, {"kind": "gaussian"}),
    "mlp": ({"kind": "mlp", "hidden": [6]}, torch.randn(24, 2, 3), LABELS, {"kind": "categorical"}),
}


@pytest.fixture
def settings_of(tmp_path):
    """Writes the data of a name of FILES, and returns the settings of a short training on them."""

    def settings(name, **training):
        network, inputs, targets, likelihood = FILES[name]
        targets = inputs.flatten(1).sum(1) if targets is None else targets
        np.savez(tmp_path / "data.npz", inputs=inputs.numpy(), targets=targets.numpy())
        return {
            "data": {"kind": "npz", "path": str(tmp_path / "data.npz")},
            "network": network,
            "likelihood": likelihood,
            "training": {"epochs": 2, "batch_size": 8, **training},
            "ledger": {"samples": 2},
            "logging": {"report": False},
        }

    return settings


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("codec", ["relative_entropy", "quantised"])
def test_a_run_is_counted_whole_packed_unpacked_and_predicts(name, codec, settings_of, tmp_path):
    config = Config.model_validate(settings_of(name))
    trained = bitsback.train(config, out=tmp_path / "run", progress=False)

    experiment = bitsback.load_run(tmp_path / "run").experiment()
    assert math.isfinite(trained.ledger.net_bits)
    entries = {entry.name: entry.weights for entry in trained.ledger.entries}
    assert entries == {name: parameter.numel() for name, parameter in experiment.model.network.named_parameters()}
    packed = bitsback.pack(tmp_path / "run", tmp_path / "model.bb", codec=codec, progress=False)
    loaded = bitsback.load(tmp_path / "model.bb", [f"data.path={tmp_path / 'data.npz'}"])
    few = experiment.dataset.train.inputs[:3]
    torch.testing.assert_close(loaded.outputs(few), packed.loaded.outputs(few), rtol=1e-4, atol=1e-4)
    assert loaded.predict(few).isfinite().all()
    assert loaded.config.network == config.network
