"""Networks that need no code: their sizes, what they compute, and that they train, are counted, packed and predict."""

import importlib.metadata
import importlib.util
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zoo
from torch import nn

import bitsback
from bitsback.config import Config
from bitsback.errors import ConfigError, FileError, MissingExtraError
from bitsback.formats._size_limits import check_size
from bitsback.formats.model_file._input_kinds import InputKinds
from bitsback.formats.model_file.write import Packed
from bitsback.networks import MLP
from bitsback.training.loop import Fit

LIBRARY = zoo.LIBRARY
"""Operators that timm's import of torchvision expects."""

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

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
    return {
        "lstm": made(inputs, kind="lstm", width=6, layers=2, embedding=4),
        "transformer": made(inputs, kind="transformer", width=8, layers=2, heads=2),
    }


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


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_outputs_per_sequence_are_those_at_its_last_position(kind):
    whole = made(TOKENS, kind=kind, width=8)
    last = made(TOKENS, kind=kind, width=8, per="sequence")
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


def normalised(states, norm, over):
    """Mean 0 and variance 1 over some axes."""
    mean, variance = states.mean(over, keepdim=True), states.var(over, correction=0, keepdim=True)
    return (states - mean) / (variance + norm.eps).sqrt()


def attended(states, layer, heads, is_causal):
    """A layer of attention and its dense layers, for one example (L, width), head by head."""
    length, width = states.shape
    size = width // heads
    seen = normalised(states, layer.norm1, -1) * layer.norm1.weight + layer.norm1.bias
    joined = seen @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias
    found = []
    for head in range(heads):
        query, key, value = (joined[:, part * width + head * size :][:, :size] for part in range(3))
        scores = query @ key.T / math.sqrt(size)
        if is_causal:
            scores = scores.masked_fill(torch.arange(length)[None] > torch.arange(length)[:, None], -math.inf)
        found.append(scores.softmax(1) @ value)
    attention = layer.self_attn.out_proj
    states = states + torch.cat(found, 1) @ attention.weight.T + attention.bias
    seen = normalised(states, layer.norm2, -1) * layer.norm2.weight + layer.norm2.bias
    wide = nn.functional.gelu(seen @ layer.linear1.weight.T + layer.linear1.bias)
    return states + wide @ layer.linear2.weight.T + layer.linear2.bias


def randomised(network):
    """The network in float64 with other numbers in its norms and biases, which begin as ones and zeros."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.double()


@pytest.mark.parametrize("mode", [True, False])
@torch.no_grad()
def test_a_transformer_is_attention_written_out(mode):
    network = randomised(made(TOKENS, kind="transformer", width=8, layers=2, heads=2)).train(mode)
    states = network.embedding.weight[TOKENS[1]] + network.positions
    for layer in network.blocks.layers:
        states = attended(states, layer, 2, is_causal=True)
    norm, head = network.blocks.norm, network.head
    states = normalised(states, norm, -1) * norm.weight + norm.bias
    torch.testing.assert_close(network(TOKENS)[1], states @ head.weight.T + head.bias)
    layer = 4 * 8 * 8 + 4 * 8 + 2 * 4 * 8 * 8 + 4 * 8 + 8 + 2 * 2 * 8
    assert numbers(network) == (5 + 7) * 8 + 2 * layer + 2 * 8 + 5 * (8 + 1)


def test_a_transformer_reads_shorter_sequences_and_refuses_longer_ones():
    network = made(TOKENS, kind="transformer", width=8).eval()
    torch.testing.assert_close(network(TOKENS[:, :4]), network(TOKENS)[:, :4])
    with pytest.raises(ConfigError, match=r"a sequence has 14 positions, and the network knows 7; set network.context"):
        network(TOKENS.repeat(1, 2))
    assert made(TOKENS, kind="transformer", width=8, context=14)(TOKENS.repeat(1, 2)).shape == (24, 14, 5)


@pytest.mark.parametrize("mode", [True, False])
@torch.no_grad()
def test_a_vision_transformer_is_attention_over_patches(mode):
    images = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    network = randomised(made(images, kind="vit", width=8, layers=2, heads=2)).train(mode)
    patches = [images[1, :, row : row + 2, column : column + 2] for row in (0, 2, 4) for column in (0, 2)]
    patches = torch.stack(patches).flatten(1)
    states = patches @ network.patches.weight.flatten(1).T + network.patches.bias + network.positions
    for layer in network.blocks.layers:
        states = attended(states, layer, 2, is_causal=False)
    norm, head = network.blocks.norm, network.head
    states = normalised(states, norm, -1) * norm.weight + norm.bias
    torch.testing.assert_close(network(images)[1], states.mean(0) @ head.weight.T + head.bias)
    layer = 4 * 8 * 8 + 4 * 8 + 2 * 4 * 8 * 8 + 4 * 8 + 8 + 2 * 2 * 8
    assert numbers(network) == 8 * (2 * 2 * 2 + 1) + 6 * 8 + 2 * layer + 2 * 8 + 5 * (8 + 1)


def grouped(images, norm):
    """Normalised over groups of channels of each image, in the order of the channels."""
    parts = images.chunk(norm.num_groups, 1)
    joined = torch.cat([normalised(part, norm, (1, 2, 3)) for part in parts], 1)
    return joined * norm.weight[:, None, None] + norm.bias[:, None, None]


@torch.no_grad()
def test_a_residual_network_adds_subsampled_inputs():
    images = torch.randn(3, 2, 9, 8, dtype=torch.float64)
    network = randomised(made(images, kind="resnet", blocks=2, width=4))
    states = grouped(nn.functional.conv2d(images, network.stem[0].weight, padding=1), network.stem[1]).relu()
    for number, block in enumerate(network.blocks):
        stride = 2 if number in (2, 4) else 1
        inside = nn.functional.conv2d(states, block.first[0].weight, stride=stride, padding=1)
        inside = nn.functional.conv2d(grouped(inside, block.first[1]).relu(), block.second[0].weight, padding=1)
        shortcut = torch.zeros_like(inside)
        shortcut[:, : states.shape[1]] = states[:, :, ::stride, ::stride]
        states = (grouped(inside, block.second[1]) + shortcut).relu()
    wanted = states.mean((2, 3)) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(images), wanted)


@pytest.mark.parametrize(("blocks", "thousands"), [(3, 270), (5, 460), (9, 850)])
def test_a_residual_network_has_as_many_weights_as_published(blocks, thousands):
    """Of He et al. 2016, table 6: ResNet-20, 32 and 56 on CIFAR-10."""
    for norm in ("group", "batch"):
        network = made(torch.randn(2, 3, 32, 32), outputs=10, kind="resnet", blocks=blocks, norm=norm)
        assert round(numbers(network) / 1e4) * 10 == thousands
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert len(layers) == 6 * blocks + 2


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
    "tokens as real numbers": ({"kind": "transformer"}, torch.randn(3, 7), "data.scaling=none"),
    "channels last": ({"kind": "resnet"}, torch.randn(3, 32, 32, 3), r"inputs.permute\(0, 3, 1, 2\)"),
    "no channels": ({"kind": "vit"}, torch.randn(3, 8, 8), r"inputs.unsqueeze\(1\)"),
    "a table to resnet": ({"kind": "resnet"}, torch.randn(3, 7), "for rows of numbers set network.kind=mlp"),
    "whole pixels": ({"kind": "resnet"}, torch.ones(3, 1, 8, 8, dtype=torch.long), "data.scaling=standard"),
    "columns to vit": ({"kind": "vit"}, {"numbers": torch.randn(3, 2)}, "for such inputs set network.kind=mlp"),
    "no patch fits": ({"kind": "vit"}, torch.randn(3, 1, 13, 17), "no side of a patch divides them into at most 64"),
    "another patch": ({"kind": "vit", "patch": 5}, torch.randn(3, 1, 8, 8), "of 8 x 8 pixels 5 does not divide both"),
    "categories of a tensor": ({"kind": "mlp", "categories": [3]}, torch.randn(3, 1), "leave network.categories out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_inputs_are_refused_with_the_fix(name):
    network, inputs, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        made(inputs, **network)


FILES = {
    "lstm": ({"kind": "lstm", "width": 6, "embedding": 4}, TOKENS, TOKENS, {"kind": "tokens", "classes": 5}),
    "lstm per sequence": ({"kind": "lstm", "width": 6, "per": "sequence"}, torch.randn(24, 7, 2), None, {"kind": "gaussian"}),
    "transformer": (
        {"kind": "transformer", "width": 8, "heads": 2, "layers": 1}, TOKENS, TOKENS, {"kind": "tokens", "classes": 5},
    ),
    "resnet": ({"kind": "resnet", "width": 2}, torch.randn(24, 3, 8, 8), LABELS, {"kind": "categorical"}),
    "resnet with batch norm": (
        {"kind": "resnet", "width": 2, "norm": "batch"}, torch.randn(24, 1, 8, 8), LABELS, {"kind": "categorical"},
    ),
    "vit": ({"kind": "vit", "width": 4, "heads": 1, "layers": 1}, torch.randn(24, 1, 8, 8), LABELS, {"kind": "categorical"}),
    "mlp": ({"kind": "mlp", "hidden": [6]}, torch.randn(24, 2, 3), LABELS, {"kind": "categorical"}),
}  # fmt: skip


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


def test_heads_that_do_not_divide_the_width_are_refused():
    for kind in ("transformer", "vit"):
        with pytest.raises(ValueError, match="3 heads do not divide a width of 8; set width to a multiple of heads"):
            Config.model_validate({"network": {"kind": kind, "width": 8, "heads": 3}})


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_tokens_stay_whole_unless_told_otherwise(kind):
    data = {"kind": "npz", "path": "tokens.npz"}
    assert Config.model_validate({"data": data, "network": {"kind": kind}}).data.scaling == "none"
    told = {**data, "scaling": "standard"}
    assert Config.model_validate({"data": told, "network": {"kind": kind}}).data.scaling == "standard"
    assert Config.model_validate({"data": data, "network": {"kind": "mlp"}}).data.scaling == "auto"


@pytest.mark.parametrize("name", FILES)
def test_a_run_in_float64_goes_on_where_it_stopped(name, settings_of, tmp_path, monkeypatch):
    config = Config.model_validate(settings_of(name, precision="float64"))
    whole = bitsback.train(config, out=tmp_path / "whole", progress=False)
    real = Fit.run_epoch

    def killed(fit):
        if fit.epoch == 1:
            raise KeyboardInterrupt
        return real(fit)

    monkeypatch.setattr(Fit, "run_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        bitsback.train(config, out=tmp_path / "cut", progress=False)
    monkeypatch.setattr(Fit, "run_epoch", real)
    resumed = bitsback.train(config, out=tmp_path / "cut", resume=True, progress=False)
    assert resumed.ledger.net_bits == pytest.approx(whole.ledger.net_bits, rel=1e-9)
    held = bitsback.load_run(tmp_path / "cut").experiment().model
    assert {tensor.dtype for tensor in held.parameters()} == {torch.float64}


def test_a_file_that_asks_for_a_huge_network_is_refused_before_it_is_built():
    for network, inputs, whole in (
        ({"kind": "mlp", "hidden": [1 << 20, 1 << 20]}, [4], False),
        ({"kind": "lstm", "width": 1 << 20}, [7], True),
        ({"kind": "transformer", "width": 1 << 20}, [7], True),
        ({"kind": "transformer", "width": 8, "context": 1 << 20}, [7], True),
        ({"kind": "transformer", "width": 4, "layers": 1}, [1 << 15], True),
        ({"kind": "resnet", "width": 1 << 18}, [1, 8, 8], False),
        ({"kind": "vit", "width": 1 << 18}, [1, 8, 8], False),
    ):
        config = Config.model_validate({"network": network})
        with pytest.raises(FileError, match="too large for a file of 500 bytes"):
            check_size(config, inputs, 5, whole=whole, file_bytes=500)
    columns = InputKinds({"categories": {"shape": [2], "kind": "whole"}})
    config = Config.model_validate({"network": {"kind": "mlp", "categories": [1 << 20] * 2}})
    with pytest.raises(FileError, match="too large"):
        check_size(config, columns.sizes, 5, file_bytes=500, blank=columns.blank)


@pytest.mark.parametrize("kind", ["lstm", "sequential"])
def test_the_size_of_a_recurrent_network_is_known_without_its_steps(kind, monkeypatch):
    length, outputs = 1 << 17, 5
    network, inputs, weights = {"kind": "lstm", "width": 8, "embedding": 4, "vocabulary": 5}, [length], 20
    if kind == "sequential":
        recurrent = {"LSTM": {"hidden_size": 8, "batch_first": True}}
        network, inputs, weights = {"kind": kind, "layers": [recurrent, {"Linear": {"out_features": outputs}}]}, [length, 4], 0
    config = Config.model_validate({"network": network})
    numbers = weights + 4 * 8 * (4 + 8 + 2) + 8 * outputs + outputs + 2 * 8 * length + 2 * outputs
    monkeypatch.setenv("BITSBACK_LIMIT_NUMBERS", str(numbers))
    assert check_size(config, inputs, outputs, whole=kind == "lstm") == 64
    monkeypatch.setenv("BITSBACK_LIMIT_NUMBERS", str(numbers - 1))
    with pytest.raises(FileError, match=f"asks for {numbers:,} numbers"):
        check_size(config, inputs, outputs, whole=kind == "lstm")


@pytest.mark.parametrize("name", ["mlp", "lstm", "transformer", "resnet", "vit"])
def test_the_least_number_of_weights_is_less_than_the_network_has(name):
    network = {"lstm": {"layers": 3}, "mlp": {"hidden": [300, 200, 10]}, "resnet": {"blocks": 2}}.get(name, {})
    settings = Config.model_validate({"network": {"kind": name, **network}}).network
    inputs = torch.rand(2, 1, 8, 8) if name in ("resnet", "vit") else torch.rand(2, 4, 3)
    weights = sum(weight.numel() for weight in settings.build(inputs, 2).parameters())
    assert weights / 2 < settings.least_weights <= weights


@needs_timm
@pytest.mark.parametrize(
    ("model", "arguments"), [("resnet10t", {}), ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12, "num_heads": 2})]
)
def test_a_network_of_timm_by_name_fits_the_images(model, arguments, tmp_path, monkeypatch):
    images = torch.randn(8, 1, 32, 48)
    network = {"kind": "timm", "model": model, "arguments": arguments}
    config = Config.model_validate({"network": network, "data": {"kind": "npz", "path": str(tmp_path / "data.npz")}})
    assert config.network.build(images, 3)(images).shape == (8, 3)
    assert check_size(config, [1, 32, 48], 3, file_bytes=1 << 20) > 1
    monkeypatch.setenv("BITSBACK_LIMIT_NUMBERS", "1000")
    with pytest.raises(FileError, match="too large"):
        check_size(config, [1, 32, 48], 3)


@needs_timm
def test_a_packed_network_of_timm_names_the_version_that_made_it():
    said = {}
    for network in ({"kind": "timm", "model": "resnet10t"}, {"kind": "mlp"}):
        loaded = SimpleNamespace(config=Config.model_validate({"network": network}), parts=[])
        packed = Packed(b"file", "quantised", "as set", loaded, 1.0, None, 0.5, None, "error", 2.0)
        said[network["kind"]] = (str(packed), packed.to_dict().get("needs"))
    needs = f"timm {importlib.metadata.version('timm')}"
    assert f"A receiver needs {needs}: " in said["timm"][0]
    assert said["timm"][1] == needs
    assert "receiver" not in said["mlp"][0]
    assert said["mlp"][1] is None


@needs_timm
def test_an_unknown_network_of_timm_is_refused_by_name():
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ConfigError, match=r"timm has no 'resnet1' \(did you mean 'resnet1"):
        made(images, kind="timm", model="resnet1")
    with pytest.raises(ConfigError, match=r"resnet18 of timm cannot be made .* 'depth'"):
        made(images, kind="timm", model="resnet18", arguments={"depth": 3})


def test_a_network_of_timm_reads_no_path_and_loads_nothing():
    for given in ({"model": "hf-hub:a/b"}, {"model": "resnet18", "arguments": {"checkpoint_path": "x.pth"}},
                  {"model": "resnet18", "arguments": {"pretrained": True}}, {"model": "resnet18", "arguments": {"depth": 1e9}}):  # fmt: skip
        with pytest.raises(ValueError, match=r"network\.timm"):
            Config.model_validate({"network": {"kind": "timm", **given}})


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("bitsback.extras._is_installed", lambda module: False)
    with pytest.raises(MissingExtraError, match=r"a network of timm needs timm, of the extra 'vision': pip install"):
        made(torch.randn(2, 3, 8, 8), kind="timm", model="resnet18")
