"""Inputs of several tensors in model files: what is written comes back, and what makes no sense is refused."""

import pytest
import torch
from torch import nn

import bitsback
from bitsback.config._input_shapes import image_of
from bitsback.errors import ConfigError, DataError, FileError
from bitsback.formats.config_text import take_settings
from bitsback.formats.container import BitReader, unseal
from bitsback.formats.model_file._head import EmptyModel
from bitsback.formats.model_file._input_kinds import InputKinds
from bitsback.inputs import check_channels, looks_channels_last

ONE = torch.zeros(2, 3)
WHOLE = torch.zeros(2, 4, dtype=torch.long)
YES_NO = torch.zeros(2, 4, dtype=torch.bool)


@pytest.mark.parametrize("inputs", [ONE, (ONE, WHOLE), {"ids": WHOLE, "seen": YES_NO}, (YES_NO,), torch.zeros(2)])
def test_inputs_come_back(inputs):
    kinds = InputKinds(InputKinds.tree_of(inputs))
    found, given = kinds.blank(2), inputs
    assert type(found) is type(given)
    for one, other in zip(bitsback.inputs.leaves(found), bitsback.inputs.leaves(given), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
    assert kinds.is_one_tensor == isinstance(inputs, torch.Tensor)


WRONG = [
    None, 3, "x", [0], [-1], [True], [1.5], [[3]], {}, {"a": [3]}, {"a": {"shape": [3]}}, {"a": {"kind": "real"}},
    {"a": {"shape": [3], "kind": "complex"}}, {"a": {"shape": [3], "kind": ["real"]}}, {"a": {"shape": [0], "kind": "real"}},
    [{"shape": [3], "kind": "real"}, 3], [{"shape": "3", "kind": "real"}],
]  # fmt: skip


class Adding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids, seen):
        return self.last((self.embedding(ids) * seen[..., None]).sum(1))


def adding():
    return Adding()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of a network of two inputs, and its settings."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("kinds") / "model.bb"
    ids, seen = torch.randint(9, (12, 5)), torch.rand(12, 5) > 0.3
    model = bitsback.bayesianize(adding())
    data = ({"ids": ids, "seen": seen}, torch.arange(12) % 3)
    bitsback.save(model, path, data, factory="test_input_kinds:adding", progress=False)
    _, contents = unseal(path.read_bytes(), "the file")
    return path, take_settings(BitReader(contents)), ids, seen


def test_the_file_says_its_inputs(written):
    path, tree, ids, seen = written
    assert tree["inputs"] == {"ids": {"shape": [5], "kind": "whole"}, "seen": {"shape": [5], "kind": "yes_no"}}
    assert "rows" not in tree
    loaded = bitsback.load(path, ["network.factory=test_input_kinds:adding"])
    assert loaded.outputs({"seen": seen.float(), "ids": ids.int()}).shape == (12, 3)
    with pytest.raises(FileError, match="the model takes inputs ids"):
        loaded.outputs({"ids": ids})
    with pytest.raises(FileError, match="the model takes inputs ids"):
        loaded.outputs(ids)


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_inputs_that_make_no_sense_are_refused(wrong, written):
    with pytest.raises(FileError, match="what its inputs look like"):
        EmptyModel.of({**written[1], "inputs": wrong}, ["network.factory=test_input_kinds:adding"], 1000)


@pytest.mark.parametrize("rows", [0, -1, True, 2.0, "2", [2]])
def test_rows_that_make_no_sense_are_refused(rows, written):
    with pytest.raises(FileError, match="what its inputs look like"):
        EmptyModel.of({**written[1], "rows": rows}, ["network.factory=test_input_kinds:adding"], 1000)


def test_inputs_that_are_too_large_are_refused_before_they_are_made(written):
    large = {"ids": {"shape": [1 << 50], "kind": "whole"}, "seen": {"shape": [5], "kind": "yes_no"}}
    with pytest.raises(FileError, match="too large"):
        EmptyModel.of({**written[1], "inputs": large}, ["network.factory=test_input_kinds:adding"], 1000)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.first(x), self.second(x)


def two_outputs():
    return TwoOutputs()


def test_the_chosen_output_is_saved(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    model = bitsback.bayesianize(two_outputs(), output=1)
    place = {"factory": "test_input_kinds:two_outputs"}
    bitsback.save(model, tmp_path / "model.bb", (x, y), progress=False, **place)
    loaded = bitsback.load(tmp_path / "model.bb", ["network.factory=test_input_kinds:two_outputs"])
    with model.mean():
        torch.testing.assert_close(loaded(x), model.network(x)[1])


class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, image, shift):
        return self.last(image) + shift


def looking():
    return Looking()


def test_8_bit_inputs_among_several_are_grey_levels_in_files_too(tmp_path):
    torch.manual_seed(0)
    inputs = {"image": torch.randint(256, (12, 6), dtype=torch.uint8), "shift": torch.randn(12, 3)}
    model = bitsback.bayesianize(looking())
    bitsback.save(model, tmp_path / "m.bb", (inputs, torch.arange(12) % 3), factory="test_input_kinds:looking", progress=False)
    loaded = bitsback.load(tmp_path / "m.bb", ["network.factory=test_input_kinds:looking"])
    wanted = loaded({**inputs, "image": inputs["image"] / 255})
    torch.testing.assert_close(loaded.outputs(inputs), wanted)


def test_a_padded_input_is_saved_without_its_length(tmp_path):
    words = [(torch.randint(1, 9, (3 + k % 4,)), k % 3) for k in range(12)]

    def pad(items):
        return nn.utils.rnn.pad_sequence([word for word, _ in items], batch_first=True), torch.tensor([y for _, y in items])

    model = bitsback.bayesianize(nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3)))
    bitsback.save(model, tmp_path / "m.bb", bitsback.data.source(words, collate=pad), progress=False)
    loaded = bitsback.load(tmp_path / "m.bb")
    assert loaded.outputs(torch.ones(2, 11).long()).shape == (2, 3)


def test_a_model_is_saved_with_the_likelihood_of_its_training(tmp_path):
    x, y = torch.randn(20, 4), torch.arange(20) % 4
    model = bitsback.bayesianize(nn.Sequential(nn.Linear(4, 1)))
    counts = bitsback.likelihoods.PoissonLikelihood()
    bitsback.train(model, counts, (x, y), training={"epochs": 1}, progress=False)
    bitsback.save(model, tmp_path / "m.bb", (x, y), progress=False)
    assert bitsback.load(tmp_path / "m.bb").likelihood.kind == "poisson"


def test_the_order_of_channels_is_told_by_one_rule():
    for shape, is_last in (
        ((32, 24, 3), True),
        ((3, 32, 3), False),
        ((16, 3, 3), False),
        ((28, 28, 1), True),
        ((8, 8, 16), False),
    ):
        assert looks_channels_last(shape) == is_last
        if is_last:
            with pytest.raises(ConfigError, match=r"permute\(0, 3, 1, 2\)"):
                image_of(torch.zeros(2, *shape), "resnet")
        else:
            assert image_of(torch.zeros(2, *shape), "resnet") == shape
    for shape in ((32, 24, 3), (4, 4, 3), (3, 4, 3)):
        with pytest.raises(DataError, match="channels last"):
            check_channels(shape, (shape[2], *shape[:2]))
        check_channels(shape, shape)
