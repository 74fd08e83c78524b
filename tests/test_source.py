"""Whatever holds the examples, the bits are those of the tensors; what cannot be counted is refused with the fix."""

import gzip
import runpy
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

import bitsback
from bitsback.data import IdxSettings, NpzSettings, source
from bitsback.data import _arrays as arrays_module
from bitsback.data import _items as items_module
from bitsback.data import _rows as rows_module
from bitsback.data._rows import Columns, MappedFile, View
from bitsback.errors import ConfigError, DataError

torch.set_num_threads(1)
COUNT, WIDTH, CLASSES = 30, 6, 3
GREY = np.random.default_rng(0).integers(0, 256, (COUNT, WIDTH), dtype=np.uint8)
X = torch.from_numpy(GREY).float() / 255
Y = (torch.arange(COUNT) * 7 % 5) % CLASSES
TEXTS = np.array(["ant", "bee", "cat"])


class Adding(nn.Module):
    """Two inputs, called by place or by name."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def forward(self, a, b):
        return self.left(a) + self.right(b)


class Things(Dataset):
    """A map-style data set of items made by a function."""

    def __init__(self, item, count=COUNT):
        self.item, self.count = item, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.item(index)


class Flow(IterableDataset):
    """An iterable data set, whose passes are made by a function of their number."""

    def __init__(self, items):
        self.items, self.passes = items, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.items(self.passes))


def pair(index):
    return X[index], Y[index]


def pairs(_=0):
    return [pair(index) for index in range(COUNT)]


def trained(examples, kind="one", seed=0):
    """Two epochs of a tiny network; its ledger and its outputs at the mean."""
    torch.manual_seed(1)
    model = bitsback.bayesianize(nn.Linear(WIDTH, CLASSES) if kind == "one" else Adding())
    run = bitsback.train(
        model,
        None,
        examples,
        training={"epochs": 2, "batch_size": 10},
        ledger={"samples": 2},
        logging={"report": False},
        seed=seed,
        progress=False,
    )
    predicted = model.predict(examples, samples=2)
    assert len(predicted.mean) == COUNT
    with torch.no_grad(), model.mean():
        return run.ledger, torch.cat([model.outputs(examples.inputs[:3]), predicted.mean[:3].float()])


_WANTED = {}


def wanted(kind="one"):
    if kind not in _WANTED:
        inputs = {"one": X, "tuple": (X, X.flip(0)), "dict": {"b": X.flip(0), "a": X}}[kind]
        _WANTED[kind] = trained(bitsback.Examples(inputs, Y), kind)
    return _WANTED[kind]


def check_same(examples, kind="one"):
    assert isinstance(examples, bitsback.Examples)
    assert torch.equal(examples.targets, Y)
    ledger, outputs = trained(examples, kind)
    first, expected = wanted(kind)
    assert ledger.net_bits == pytest.approx(first.net_bits, rel=1e-9)
    assert ledger.gross_bits == pytest.approx(first.gross_bits, rel=1e-9)
    assert torch.allclose(outputs, expected, rtol=1e-6, atol=1e-7)


def of_labels(item):
    return {"x": X[item], "label": int(Y[item])}


def stacking(items):
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


# every kind of source

SOURCES = {
    "tensors": lambda: source(X, Y),
    "a pair": lambda: source((X, Y)),
    "8-bit": lambda: source(torch.from_numpy(GREY), Y),
    "8-bit array": lambda: source(GREY, Y.numpy()),
    "float64 array": lambda: source(X.double().numpy(), Y.numpy().astype(np.uint8)),
    "an array of another byte order": lambda: source(X.numpy().astype(">f4"), Y.numpy().astype(">u2")),
    "lists": lambda: source(X.tolist(), Y.tolist()),
    "examples": lambda: source(bitsback.Examples(X, Y)),
    "texts": lambda: source(X, TEXTS[Y].tolist()),
    "a TensorDataset": lambda: source(TensorDataset(X, Y)),
    "an 8-bit TensorDataset": lambda: source(TensorDataset(torch.from_numpy(GREY), Y)),
    "a map-style data set": lambda: source(Things(pair)),
    "a list of items": lambda: source(pairs()),
    "8-bit items": lambda: source(Things(lambda i: (GREY[i], int(Y[i])))),
    "items of lists": lambda: source(Things(lambda i: (X[i].tolist(), int(Y[i])))),
    "items with texts": lambda: source(Things(lambda i: (X[i], str(TEXTS[Y[i]])))),
    "parts of data sets": lambda: source(
        ConcatDataset([Subset(Things(pair), range(11)), Subset(Things(pair), range(11, COUNT))])
    ),
    "a loader": lambda: source(DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, drop_last=True)),
    "a loader of items": lambda: source(DataLoader(Things(pair), batch_size=7, shuffle=True)),
    "a loader that collates": lambda: source(DataLoader(Things(pair), collate_fn=stacking)),
    "a loader of some": lambda: source(DataLoader(Things(pair), sampler=SubsetRandomSampler(list(range(COUNT))))),
    "a collate function": lambda: source(Things(pair), collate=stacking),
    "workers": lambda: source(Things(pair), workers=2),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_bits_are_those_of_the_tensors(kind):
    check_same(SOURCES[kind]())


SEVERAL = {
    "a tuple": ("tuple", lambda: source((X, X.flip(0)), Y)),
    "a TensorDataset of three": ("tuple", lambda: source(TensorDataset(X, X.flip(0), Y))),
    "items of three": ("tuple", lambda: source(Things(lambda i: (X[i], X.flip(0)[i], Y[i])))),
    "items of a pair and a target": ("tuple", lambda: source(Things(lambda i: ((X[i], X.flip(0)[i]), Y[i])))),
    "a dict": ("dict", lambda: source({"b": X.flip(0).numpy(), "a": GREY}, Y)),
    "a dict with its targets": ("dict", lambda: source({"b": X.flip(0), "labels": Y, "a": X})),
    "a dict with named targets": ("dict", lambda: source({"b": X.flip(0), "species": Y, "a": X}, "species")),
    "items that are dicts": ("dict", lambda: source(Things(lambda i: {"b": X.flip(0)[i], "a": X[i], "y": Y[i]}))),
    "a loader of dicts": ("dict", lambda: source(DataLoader(Things(lambda i: {"b": X.flip(0)[i], "a": X[i], "k": Y[i]})), "k")),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_networks_of_several_inputs(name):
    kind, make = SEVERAL[name]
    check_same(make(), kind)


def test_the_random_state_does_not_move():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    examples = source(DataLoader(Things(pair), batch_size=4, shuffle=True, num_workers=1))
    list(examples.batches(torch.arange(COUNT).split(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_used_again_and_their_errors_are_sentences():
    examples = source(Things(pair), workers=1)
    for size in (4, 7, 30):
        found = torch.cat([inputs for inputs, _ in examples.batches(torch.arange(COUNT).flip(0).split(size))])
        assert torch.equal(found, X.flip(0))
    begun = examples.batches(torch.arange(COUNT).split(4))
    next(begun)  # left in the middle
    assert torch.equal(torch.cat([inputs for inputs, _ in examples.batches(torch.arange(COUNT).split(3))]), X)
    with pytest.raises(
        DataError, match=r"^example 3 of the data set cannot be read \(ZeroDivisionError: division by zero\); mend"
    ):
        source(Things(lambda i: (X[i] + 1 / (3 - i), Y[i])), workers=1)


# iterables


@pytest.mark.parametrize(
    "make",
    [lambda: Flow(pairs), lambda: DataLoader(Flow(pairs), batch_size=4), lambda: DataLoader(Flow(pairs), num_workers=1), lambda: type("Again", (), {"__iter__": lambda self: iter(pairs())})()],
    ids=["iterable", "loader", "workers", "plain"],
)  # fmt: skip
def test_an_iterable_trains_in_its_own_order(make):
    examples = source(make())
    assert not examples.has_random_access
    assert torch.equal(examples.targets, Y)
    assert torch.equal(torch.cat(list(examples.inputs.split(7))), X)
    ledger, _ = trained(examples)
    assert 0 < ledger.net_bits < 1000
    with pytest.raises(DataError, match=r"takes examples in any order, and an iterable data set gives them in one; .* list\("):
        examples.subset(torch.tensor([3, 1]))


class Shared(IterableDataset):
    """An iterable whose examples its workers share."""

    def __iter__(self):
        info = get_worker_info()
        return iter(pairs() if info is None else pairs()[info.id :: info.num_workers])


def test_workers_share_an_iterable_or_are_refused():
    with pytest.raises(DataError, match=r"has 30 items, and 2 workers give 60: share them .*get_worker_info, or set workers=0"):
        source(DataLoader(Flow(pairs), num_workers=2))
    examples = source(DataLoader(Shared(), num_workers=2))
    assert len(examples) == COUNT
    assert sorted(examples.targets.tolist()) == sorted(Y.tolist())


def test_the_first_pass_over_an_iterable_reads_few_large_examples_at_once(monkeypatch):
    monkeypatch.setattr(items_module, "FIRST_PASS_BYTES", 10 * WIDTH * 4)
    seen = []

    def counting(items):
        seen.append(len(items))
        return stacking(items)

    assert torch.equal(source(Flow(pairs), collate=counting).targets, Y)
    assert seen == [1, 10, 10, 9]


def test_two_passes_at_once_do_not_disturb_each_other():
    examples = source(Things(pair), workers=1)
    one, two = (examples.batches(torch.arange(COUNT).split(size)) for size in (4, 7))
    first, second = [], []
    for found, other in zip_longest(one, two):
        first.append(found[0])
        second += [] if other is None else [other[0]]
    assert torch.equal(torch.cat(first), X)
    assert torch.equal(torch.cat(second), X)


def test_narrow_whole_numbers_are_read_as_int64():
    ids = torch.arange(6, dtype=torch.int16).reshape(3, 2)
    assert bitsback.Examples(ids, torch.zeros(3)).inputs.dtype == torch.int64
    assert bitsback.Examples((ids,), torch.zeros(3)).inputs[:2][0].dtype == torch.int64


def test_labels_of_examples():
    assert source(bitsback.Examples(X, Y), labels=TEXTS).labels == tuple(TEXTS)
    with pytest.raises(DataError, match="is none of the 2 labels"):
        source(bitsback.Examples(X, Y), labels=TEXTS[:2])


def test_a_source_that_does_not_fit_into_memory(monkeypatch):
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "1000")
    with pytest.raises(DataError, match=r"reading the training inputs as a whole .*BITSBACK_LIMIT_MEMORY"):
        source(Things(pair)).in_memory()


CHANGES = {
    "it reshuffles": (lambda p: pairs() if p == 1 else pairs()[::-1], "not those of the first reading: an iterable data set must not"),
    "it ends": (lambda p: pairs() if p == 1 else pairs()[:20], "gave 30 examples at first, and later it ended after 20; it must"),
    "it goes on": (lambda p: pairs() if p == 1 else pairs() * 2, "gave 30 examples at first, and later it went on; it must give"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_iterable_that_changes_is_refused(change):
    items, said = CHANGES[change]
    examples = source(Flow(items))
    with pytest.raises(DataError, match=said):
        list(examples.batches(torch.arange(COUNT).split(5)))


# text that is padded


def sentence(index):
    return torch.arange(1, 3 + index % 4), torch.arange(2, 4 + index % 4)


def padding(items):
    words, targets = zip(*items, strict=True)
    padded = nn.utils.rnn.pad_sequence(list(words), batch_first=True)
    return {"ids": padded, "mask": padded > 0}, nn.utils.rnn.pad_sequence(list(targets), batch_first=True, padding_value=-100)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_that_are_padded_to_their_own_longest(workers):
    examples = source(DataLoader(Things(sentence, 12), batch_size=4, collate_fn=padding, num_workers=workers))
    assert tuple(examples.targets.shape) == (12, 5)
    assert examples.targets.dtype == torch.int32
    numbers = [torch.tensor([0, 4]), torch.tensor([3, 0])]
    for index, (inputs, targets) in zip(numbers, examples.batches(numbers), strict=True):
        direct, expected = padding([sentence(int(number)) for number in index])
        assert torch.equal(targets, expected)
        assert targets.dtype == torch.int64
        assert torch.equal(inputs["ids"], direct["ids"])
        assert torch.equal(inputs["mask"], direct["mask"])
    part = examples.subset(torch.tensor([4, 8]))
    assert part.batch(slice(0, 2))[1].tolist() == [[2, 3], [2, 3]]


# files


def idx_file(path, array, pack=bytes):
    codes = {"u1": 8, "i4": 12, "f4": 13}
    kind = codes[array.dtype.str[1:]]
    header = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(pack(header + array.astype(array.dtype.newbyteorder(">")).tobytes()))
    return path


def saved(path, array):
    np.save(path, array)
    return path


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


FILES = {
    "npy and npy": lambda d: source(saved(d / "x.npy", GREY), saved(d / "y.npy", Y.numpy())),
    "npy of reals": lambda d: source(saved(d / "x.npy", X.double().numpy()), Y),
    "npy by columns": lambda d: source(saved(d / "x.npy", np.asfortranarray(GREY)), Y),
    "npy and texts": lambda d: source(str(saved(d / "x.npy", GREY)), saved(d / "y.npy", TEXTS[Y])),
    "idx": lambda d: source(idx_file(d / "x", GREY), idx_file(d / "y", Y.numpy().astype(np.uint8))),
    "idx of another name": lambda d: source(idx_file(d / "train-images.idx3-ubyte", GREY), Y),
    "packed idx": lambda d: source(idx_file(d / "x.gz", GREY, gzip.compress), Y),
    "idx of reals": lambda d: source(idx_file(d / "x", X.numpy()), Y),
    "npz": lambda d: source(archive(d / "d.npz", inputs=GREY, targets=Y.numpy())),
    "npz with a name": lambda d: source(archive(d / "d.npz", inputs=X.numpy(), kinds=Y.numpy()), "kinds"),
    "a mapped array": lambda d: source(np.load(saved(d / "x.npy", GREY), mmap_mode="r"), Y),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(kind, tmp_path):
    examples = FILES[kind](tmp_path)
    check_same(examples)
    assert all(np.load(tmp_path / "x.npy").shape == (COUNT, WIDTH) for _ in range("npy" in kind))


def test_a_path_of_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    saved(tmp_path / "x.npy", GREY)
    assert len(source("~/x.npy", Y)) == COUNT


def test_pictures_of_an_idx_file_have_a_channel(tmp_path):
    pictures = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    examples = source(idx_file(tmp_path / "x", pictures), torch.arange(5))
    assert torch.equal(examples.inputs[1:3], torch.from_numpy(pictures[1:3, None]).float() / 255)


def test_a_mapped_file_reads_any_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "HELD_BYTES", 100)  # pages are released after every read
    array = np.arange(40.0).reshape(20, 2)
    mapped = MappedFile(np.load(saved(tmp_path / "x.npy", array), mmap_mode="r"), tmp_path / "x.npy")
    for numbers in (torch.arange(3, 9), torch.tensor([7, 2, 2, 19]), torch.tensor([], dtype=torch.long)):
        assert np.array_equal(mapped[numbers].numpy(), array[numbers.numpy()])


def test_a_file_that_shrinks_while_it_is_used(tmp_path):
    examples = source(saved(tmp_path / "x.npy", GREY), Y)
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"x.npy was changed while it was in use; leave the file as it is until the run has ended"
    ):
        examples.batch(slice(0, 2))


# tables


def frame(**changes):
    pandas = pytest.importorskip("pandas")
    columns = {f"c{place}": X[:, place].double().numpy() for place in range(WIDTH)}
    return pandas.DataFrame({**columns, "label": TEXTS[Y], **changes})


def test_a_frame():
    check_same(source(frame()))
    assert source(frame()).labels == ("ant", "bee", "cat")
    check_same(source(frame(label=Y.numpy()).rename(columns={"label": "kind"}), "kind"))
    assert source(frame(c0=Y.numpy() > 0)).inputs[:, 0].tolist() == (Y > 0).float().tolist()
    pandas = pytest.importorskip("pandas")
    check_same(source(frame(label=pandas.Categorical(TEXTS[Y]))))
    check_same(source(X, frame()["label"]))
    reals = source(frame(label=X[:, 0].double().numpy()))
    assert torch.equal(reals.targets, X[:, 0].double())


def test_a_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    frame().to_parquet(tmp_path / "t.parquet")
    check_same(source(tmp_path / "t.parquet"))
    check_same(source(tmp_path / "t.parquet", "label"))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("bitsback.extras._is_installed", lambda module: False)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(bitsback.errors.MissingExtraError, match=r"pip install 'bitsback\[tables\]'"):
        source(tmp_path / "t.parquet")


def test_a_damaged_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + bytes(30))
    with pytest.raises(DataError, match=r"cannot read .*t.parquet as Parquet: .*; write it again with DataFrame.to_parquet"):
        source(tmp_path / "t.parquet")


TABLES = {
    "a text": (
        {"c1": TEXTS[Y]},
        r"column 'c1' holds .*, such as '\w+' in row 0, and inputs are numbers; encode it \(pandas.get_d",
    ),
    "a missing value": (
        {"c1": [float("nan"), *X[1:, 0].tolist()]},
        "column 'c1' has no value in row 0; fill it, or drop that row",
    ),
    "an infinite one": ({"c1": [0.0, float("inf"), *X[2:, 0].tolist()]}, "column 'c1' is infinite in row 1; fill it"),
    "a missing label": ({"label": ["ant", None, *TEXTS[Y[2:]]]}, "column 'label' has no value in row 1"),
    "two targets": ({"y": Y.numpy()}, "label and y may each be the targets; name them"),
    "a date": ({"c1": np.array(["2026-01-01"] * COUNT, "datetime64[s]")}, r"column 'c1' holds datetime64.*numbers for dates"),
    "an odd label": ({"label": [("a",), *TEXTS[Y[1:]]]}, r"column 'label', row 0, is \('a',\), neither a number nor a text"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_is_no_table_of_numbers(kind):
    changes, said = TABLES[kind]
    with pytest.raises(DataError, match=said):
        source(frame(**changes))


def test_hugging_face_data_sets():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"x": datasets.List(datasets.Value("float32")), "label": datasets.ClassLabel(names=TEXTS.tolist())}
    )
    table = datasets.Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()}, features=features)
    for made in (table.with_format("torch"), table):
        examples = source(made)
        assert examples.labels == tuple(TEXTS)
        assert torch.equal(examples.targets, Y)
        assert torch.equal(examples.inputs[:]["x"], X)
    stream = source(table.to_iterable_dataset())
    assert not stream.has_random_access
    assert torch.equal(stream.inputs[:5]["x"], X[:5])
    with pytest.raises(DataError, match="there is no 'species' to take as targets; there are: x, label"):
        source(table, "species")


# labels and masks


def test_text_labels_are_numbered_alike_in_both_splits():
    train = source(X, TEXTS[Y])
    test = source(X[:4], ["cat", "cat", "bee", "bee"], labels=train.labels, name="test")
    assert test.targets.tolist() == [2, 2, 1, 1]
    bitsback.Dataset("both", train, test)
    with pytest.raises(DataError, match=r"the test split numbers its text labels otherwise.*labels=train.labels"):
        bitsback.Dataset("both", train, source(X[:4], ["cat", "cat", "bee", "bee"]))
    with pytest.raises(DataError, match="the label of example 1, 'dog', is none of the labels of the training examples"):
        source(X[:2], ["cat", "dog"], labels=train.labels)
    with pytest.raises(DataError, match=r"target 3 \(number 1\) is none of the 3 labels; class numbers count from 0"):
        source(X[:2], [0, 3], labels=train.labels)


def test_predictions_are_called_by_their_texts():
    torch.manual_seed(0)
    model = bitsback.bayesianize(nn.Linear(WIDTH, CLASSES))
    run = bitsback.train(model, None, source(X, TEXTS[Y]), training={"epochs": 1}, logging={"report": False}, progress=False)
    assert run.experiment.likelihood.names == tuple(TEXTS)


def test_a_mask_hides_targets():
    targets, mask = torch.arange(12).reshape(3, 4), torch.ones(3, 4).long()
    mask[1, 2:] = 0
    for given in (mask, mask.bool(), mask.tolist(), mask.double().numpy()):
        found = source(X[:3], targets, mask=given).targets
        assert found.tolist() == [[0, 1, 2, 3], [4, 5, -100, -100], [8, 9, 10, 11]]
    assert source(bitsback.Examples(X[:3], targets), mask=mask).targets.tolist() == found.tolist()
    assert source(X[:3], targets.float(), mask=mask.float()).targets.tolist() == found.tolist()


MASKS = {
    "reals": (
        lambda: source(X, X[:, 0], mask=torch.ones(COUNT)),
        "the mask leaves out whole-number targets, and these are real",
    ),
    "shape": (lambda: source(X, Y, mask=torch.ones(COUNT, 2)), r"the mask has shape \(30, 2\) and the targets \(30,\)"),
    "values": (lambda: source(X, Y, mask=torch.arange(COUNT)), "the mask holds other values than 0 and 1"),
    "texts": (lambda: source(X, Y, mask=["a"] * COUNT), "the mask holds other values than 0 and 1"),
    "ragged": (lambda: source(X[:2], Y[:2], mask=[[1], [1, 0]]), "the mask is not an array of 0 and 1"),
    "-100": (lambda: source(X, Y.masked_fill(Y == 1, -100), mask=torch.ones(COUNT)), "the mask is 1 where a target is -100"),
    "all": (
        lambda: source(X, Y, mask=torch.zeros(COUNT)),
        "hides every target, so nothing is left to describe; is it inverted",
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_that_fits_nothing(kind):
    make, said = MASKS[kind]
    with pytest.raises(DataError, match=said):
        make()


# what is refused


class Own(Sampler):
    def __init__(self, lists):
        self.lists = lists

    def __iter__(self):
        return iter(self.lists)

    def __len__(self):
        return len(self.lists)


def loader(**options):
    return source(DataLoader(TensorDataset(X, Y), **options))


def randomly(index):
    return X[index], torch.randint(CLASSES, ())


RAGGED = [(torch.zeros(2 + (index == 4)), 0) for index in range(6)]
REFUSED = {
    "None": (lambda: source(None), "data are a NoneType, which bitsback.data.source cannot read; give tensors, arrays or lists"),
    "inputs alone": (lambda: source(X), r"a torch.Tensor holds inputs alone; give source\(inputs, targets\)"),
    "a triple": (lambda: source((X, Y, Y)), r"a tuple of 3 needs to be told its targets: give source\(\(x1, x2, ...\), targets\)"),
    "lengths": (lambda: source(X, Y[:4]), "the training split has 30 inputs but 4 targets"),
    "lengths of inputs": (lambda: source((X, X[:4]), Y), r"different numbers of examples \(0: 30, 1: 4\); give as many rows"),
    "nothing": (lambda: source(X[:0], Y[:0]), "the training split is empty"),
    "nothing in a data set": (lambda: source(Things(pair, 0)), "the data set is empty; give at least one example"),
    "nothing in an iterable": (lambda: source(Flow(lambda p: [])), "the data set is empty; give at least one example"),
    "NaN": (lambda: source(torch.where(X[3, 1] == X, torch.nan, X), Y), "input of training example 3 is NaN or infinite"),
    "NaN in items": (lambda: source(Things(lambda i: (X[i] / (i != 4), Y[i]))), "input of example 4 is NaN or infinite"),
    "ragged lists": (lambda: source([[1.0], [1.0, 2.0]], [0, 1]), "the inputs cannot be made an array .*give every example one shape"),
    "ragged targets": (lambda: source(X[:2], [[1], [1, 2]]), "the targets have unequal lengths .*pad whole numbers with -100"),
    "ragged items": (lambda: source(RAGGED), r"the inputs of examples 0 and 4 have shapes \(2,\) and \(3,\); .*collate_fn pads"),
    "ragged targets of items": (lambda: source([(0.0, [1, 2]), (0.0, [1])]), r"the targets of examples 0 and 1 have shapes \(2,\) and"),
    "ragged between batches": (lambda: source([(torch.zeros(2 + (i >= 1024)), 0) for i in range(1030)]), "inputs of examples 0 and 1024"),
    "different parts": (lambda: source([{"a": 1.0, "y": 0}, {"b": 1.0, "y": 0}]), r"different inputs \(parts a, and parts b\)"),
    "no target": (lambda: source(Things(lambda i: X[i])), r"an item of the data set \(Tensor\) has no target beside its inputs"),
    "no usual name": (lambda: source({"a": X, "b": Y}), r"none of a, b is called as targets are; name them: source\(data, targets="),
    "a wrong name": (lambda: source({"a": X, "label": Y}, "lable"), r"no 'lable' to take as targets \(did you mean 'label'"),
    "two targets": (lambda: source([{"x": 1.0, "label": 0, "labels": 0}]), "labels and label may each be the targets"),
    "a name for tuples": (lambda: source(Things(pair), "y"), "targets='y' names a part of dicts, and the items are tuples"),
    "a text input": (lambda: source([("a cat", 0)]), "the inputs of example 0 are of type str, without a shape in numbers"),
    "a text array": (lambda: source(np.array(["a"]), [0]), r"the inputs are <U1 of shape \(1,\); give numbers"),
    "dates as targets": (lambda: source(X[:1], np.array(["2026-01-01"], "datetime64[D]")), r"the targets are datetime64\[D\]"),
    "texts and numbers": (lambda: source([(0.0, "a")] * 1024 + [(0.0, 1)]), "texts in some examples and numbers in others"),
    "text targets in two axes": (lambda: source(X[:1], np.array([["a", "b"]])), r"text labels have shape \(1, 2\), and are one for"),
    "targets and a data set": (lambda: source(Things(pair), Y), "the items of a data set hold their targets; leave targets out"),
    "targets and examples": (lambda: source(bitsback.Examples(X, Y), Y), "Examples have their targets; leave targets out"),
    "one tensor": (lambda: source(TensorDataset(X)), r"the TensorDataset holds one tensor; give TensorDataset\(inputs, targets\)"),
    "collate for tensors": (lambda: source(X, Y, collate=stacking), "collate is for data sets .*, and data are a torch.Tensor"),
    "workers for tensors": (lambda: source(X, Y, workers=2), "workers is for data sets whose items are read one by one"),
    "workers for a plain iterable": (lambda: source(type("A", (), {"__iter__": lambda s: iter(pairs())})(), workers=2), "each repeat"),
    "an item that fails": (lambda: source(Things(pair, COUNT + 1)), r"example 30 of the data set cannot be read \(IndexError: .*Subset"),
    "a collate that fails": (lambda: source(Things(pair), collate=lambda items: 1 / 0), r"fails on example 0 \(ZeroDivisionError"),
    "a collate that sums": (lambda: source(Things(pair), collate=lambda items: (X[:3], Y[:3])), "makes 3 targets of 1 examples"),
    "padding of reals": (lambda: source([(0.0, i * [0.5]) for i in (1, 2)] * 600, collate=lambda items: (torch.zeros(len(items)), torch.zeros(len(items), len(items)))), "the targets of different batches have shapes"),
    "a generator": (lambda: source(pair(i) for i in range(3)), r"a generator can be read only once, .*; give list\(data\)"),
    "an iterable that fails": (lambda: source(Flow(lambda p: (1 / 0 for _ in range(3)))), r"fails while it is read \(ZeroDivisionError"),
    "random targets": (lambda: list(source(Things(randomly)).batches([torch.arange(COUNT)])), r"the targets of example \d+ are not those of the first reading: its transforms and collate function must leave"),
    "weights": (lambda: loader(sampler=WeightedRandomSampler([1.0] * COUNT, COUNT)), "sampler WeightedRandomSampler draws some examples several"),
    "replacement": (lambda: loader(sampler=RandomSampler(X, replacement=True)), "RandomSampler draws some examples several times or never"),
    "fewer": (lambda: loader(sampler=RandomSampler(X, num_samples=4)), "RandomSampler draws some examples several times or never"),
    "some in order": (lambda: loader(sampler=SequentialSampler(range(5))), "sampler SequentialSampler may leave out or repeat"),
    "shares": (lambda: loader(sampler=DistributedSampler(TensorDataset(X), 2, 0)), "shows each process a share of the examples"),
    "a sampler of one's own": (lambda: loader(sampler=Own([1, 2])), "sampler Own may leave out or repeat examples"),
    "batches of one's own": (lambda: loader(batch_sampler=Own([[1, 2]])), r"a batch sampler of its own \(Own\)"),
    "whole batches": (lambda: loader(batch_size=None), "batch_size=None: its items are whole batches"),
    "a loader that drops": (lambda: source(DataLoader(Flow(pairs), batch_size=4, drop_last=True)), "drop_last=True, and would lose"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_counted_is_refused(kind):
    make, said = REFUSED[kind]
    with pytest.raises(DataError, match=said) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_augmented_inputs_are_noted():
    assert source(Things(lambda i: (X[i] + torch.rand(WIDTH), Y[i]))).assumed == (
        "the random numbers of the data set's transforms",
    )
    assert source(Things(pair)).assumed == ()


BAD_FILES = {
    "x.csv": (b"a,b\n1,2\n", r"it is text, such as CSV; .*; source\(pandas.read_csv\(FILE\)\)"),
    "x.pkl": (b"\x80\x04.", "it is a pickle, and code in files is never run"),
    "x.npy": (b"\x93NUMPY\1\0", r"cannot read .*x.npy: .*; write it with numpy.save, without objects"),
    "x.npz": (b"PK\3\4", r"cannot read .*x.npz as NPZ: .*numpy.savez"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_holds_no_examples(name, tmp_path):
    content, said = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        source(tmp_path / name, Y)


def test_files_without_what_is_needed(tmp_path):
    saved(tmp_path / "x.npy", GREY)
    saved(tmp_path / "o.npy", np.array([{}] * 3, dtype=object))
    archive(tmp_path / "d.npz", input=GREY, targets=Y.numpy())
    (tmp_path / "y.csv").write_text("1,2")
    for call, said in (
        (lambda: source(tmp_path / "gone.npy", Y), "cannot read .*gone.npy: No such file or directory; give the path"),
        (lambda: source(tmp_path / "x.npy"), r"x.npy holds inputs alone; give source\(inputs, targets\)"),
        (lambda: source(tmp_path / "o.npy", Y), "Object arrays are not read"),
        (
            lambda: source(tmp_path / "d.npz"),
            r"d.npz has no array 'inputs' \(did you mean 'input'\?\); arrays there: input, targets",
        ),
        (lambda: source(tmp_path / "x.npy", tmp_path / "y.csv"), "cannot take targets from .*y.csv: it is text"),
    ):
        with pytest.raises(DataError, match=said):
            call()


def test_whole_numbers_for_a_layer_of_reals():
    model = bitsback.bayesianize(nn.Linear(2, 2))
    with pytest.raises(
        ConfigError, match=r"fails on inputs of shape \(2,\): .*whole numbers \(torch.int64\): convert them with .float"
    ):
        bitsback.train(model, None, bitsback.Examples(torch.ones(4, 2).long(), torch.arange(4) % 2), progress=False)


# large files of the configuration: the same numbers as those that are held ready


def idx_folder(folder, count=40):
    draw = np.random.default_rng(1)
    for name, size in (("train", count), ("t10k", 9)):
        idx_file(folder / f"{name}-images-idx3-ubyte", draw.integers(0, 256, (size, 4, 5), dtype=np.uint8))
        idx_file(folder / f"{name}-labels-idx1-ubyte", (np.arange(size) % 3).astype(np.uint8))
    return IdxSettings(root=folder)


def npz_file(folder, array, save=np.savez):
    save(folder / "data.npz", inputs=array, targets=np.arange(len(array)) % 3)
    return NpzSettings(path=folder / "data.npz")


REAL = np.random.default_rng(2).normal(10, 3, (50, 4)) * np.array([1, 0, 1e-3, 1])
LARGE = {
    "idx": idx_folder,
    "npz": lambda d: npz_file(d, REAL),
    "npz by columns": lambda d: npz_file(d, np.asfortranarray(REAL)),
    "packed npz": lambda d: npz_file(d, REAL.astype(np.float32), np.savez_compressed),
    "8-bit npz": lambda d: npz_file(d, np.arange(250, dtype=np.uint8).reshape(50, 5)),
    "npz of whole numbers": lambda d: npz_file(d, np.arange(250).reshape(50, 5)),
}
CHOICES = {"all": {}, "limit": {"limit": 13}, "part": {"prior_fraction": 0.5, "part": "prior"}, "bits": {"fraction_bits": 3}}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("scaling", ["auto", "unit", "centred", "standard", "none"])
@pytest.mark.parametrize("kind", LARGE)
def test_large_files_give_the_numbers_of_small_ones(kind, scaling, choice, tmp_path, monkeypatch):
    settings = LARGE[kind](tmp_path).model_copy(update={"scaling": scaling, **CHOICES[choice]})
    small = settings.load()
    monkeypatch.setattr(arrays_module, "READY_BYTES", 0)
    large = settings.load()
    for one, other in ((small.train, large.train), (small.test, large.test)):
        assert isinstance(one.inputs, torch.Tensor)
        assert isinstance(other.inputs, View)
        found = torch.cat(list(other.inputs.split(7)))
        assert found.dtype == one.inputs.dtype
        assert torch.allclose(found, one.inputs, rtol=1e-5, atol=1e-5 if choice != "bits" else 0.13)
        assert torch.equal(one.targets, other.targets)
        assert one.name == other.name
    assert large.scaling == small.scaling


def test_features_of_a_large_file_are_fitted_in_memory(tmp_path, monkeypatch):
    settings = idx_folder(tmp_path).model_validate({"root": tmp_path, "features": {"kind": "deskew"}})
    small = settings.load()
    monkeypatch.setattr(arrays_module, "READY_BYTES", 0)
    assert torch.allclose(settings.load().train.inputs, small.train.inputs, rtol=1e-5, atol=1e-6)
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "1000")
    with pytest.raises(DataError, match=r"reading the training inputs as a whole asks for .* set data.limit"):
        settings.load()


def test_a_large_member_of_an_archive_is_mapped_and_its_check_sum_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "READY_BYTES", 0)
    settings = npz_file(tmp_path, REAL)
    view = settings.load().train.inputs
    assert isinstance(view.base, Columns)
    assert isinstance(view.base.columns, MappedFile)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    place = content.index(REAL[3].tobytes())
    content[place] ^= 1
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match="Bad CRC-32"):
        settings.load()


def test_a_large_archive_of_few_reals_that_are_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "READY_BYTES", 0)
    array = REAL.copy()
    array[7, 1] = np.nan
    with pytest.raises(DataError, match="input of training example 7 is NaN or infinite"):
        npz_file(tmp_path, array).load()


def test_a_large_idx_folder_trains_as_a_small_one(tmp_path, monkeypatch):
    idx_folder(tmp_path)
    config = {
        "data": {"kind": "idx", "root": str(tmp_path)},
        "network": {"kind": "sequential", "layers": [{"kind": "Flatten"}, {"kind": "Linear", "out": 3}]},
        "training": {"epochs": 2},
    }
    config = bitsback.config.schema.Config.model_validate({k: v for k, v in config.items() if k != "network"})
    small = bitsback.train(config, progress=False, report=False)
    monkeypatch.setattr(arrays_module, "READY_BYTES", 0)
    large = bitsback.train(config, progress=False, report=False)
    assert large.ledger.net_bits == pytest.approx(small.ledger.net_bits, rel=1e-6)
    assert large.test_error == pytest.approx(small.test_error, rel=1e-6)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_small_beside_a_large_file(tmp_path, monkeypatch, capsys):
    """As float32 the inputs would take 240 MB."""
    monkeypatch.setattr(arrays_module, "READY_BYTES", 0)
    monkeypatch.setattr(rows_module, "HELD_BYTES", 1 << 23)
    monkeypatch.setattr(sys, "argv", ["big_file.py", "--bytes", "6e7", "--folder", str(tmp_path)])
    runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "big_file.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("memory ")]
    assert [words[1] for words in lines] == ["NPY", "IDX", "configuration"]
    assert max(int(words[2]) for words in lines) < 100
    assert not list(tmp_path.iterdir())


def test_a_network_of_8_bit_images_is_saved_with_their_scale(tmp_path):
    images = torch.randint(256, (12, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    model = bitsback.bayesianize(torch.nn.Sequential(torch.nn.Linear(6, 3)))
    bitsback.save(model, tmp_path / "model.bb", (images, torch.arange(12) % 3), progress=False)
    loaded = bitsback.load(tmp_path / "model.bb")
    wanted = loaded(images / 255)
    torch.testing.assert_close(loaded.outputs(images), wanted)
    predicted = model.predict(images, samples=2, likelihood=bitsback.likelihoods.CategoricalLikelihood(3))
    torch.testing.assert_close(predicted.mean, wanted.softmax(-1).double(), rtol=1e-4, atol=1e-4)
