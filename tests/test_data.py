"""Data sources: the digits, IDX files, NPZ files; what is read, how it is split and scaled, what is refused."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bitsback.data import Examples
from bitsback.data._digits import read_digits
from bitsback.data.idx import read_idx
from bitsback.data.settings import DigitsSettings, IdxSettings, NpzSettings
from bitsback.errors import DataError

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}
MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not in ../shared/data/mnist beside the repository")


def idx_bytes(array):
    head = struct.pack(">BBBB", 0, 0, CODES[array.dtype.name], array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx(path, array):
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mnist_like(folder, suffix="", **changes):
    """Four small files; returns their settings."""
    arrays = {
        "train-images-idx3-ubyte": np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "t10k-images-idx3-ubyte": np.full((3, 4, 4), 255, dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.array([1, 3, 0], dtype=np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / (name + suffix), changes.get(name.split("-idx")[0].replace("-", "_"), array))
    return IdxSettings(root=folder)


def npz(folder, **arrays):
    """An NPZ file of ten examples unless told otherwise; returns its path."""
    defaults = {"inputs": np.arange(20.0).reshape(10, 2), "targets": np.arange(10) % 3}
    np.savez(folder / "data.npz", **{**defaults, **arrays})
    return folder / "data.npz"


def read_npz(folder, **arrays):
    return NpzSettings(path=npz(folder, **arrays), scaling="none").load()


# digits


def test_digits_are_those_of_scikit_learn():
    images, labels = read_digits()
    reference = load_digits()
    assert np.array_equal(images.numpy().reshape(-1, 8, 8), reference.images)
    assert np.array_equal(labels.numpy(), reference.target)


def test_digits_are_split_into_1437_and_360_with_every_example_once():
    data = DigitsSettings(scaling="none").load()
    assert (len(data.train), len(data.test), data.classes) == (1437, 360, 10)
    both = torch.cat([data.train.inputs, data.test.inputs]).flatten(1)
    assert sorted(both.tolist()) == sorted(read_digits()[0].flatten(1).tolist())


def test_the_split_follows_its_seed():
    first, same, other = (DigitsSettings(split_seed=seed).load().train.inputs for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_test_fraction_of_zero_keeps_everything_for_training():
    data = DigitsSettings(test_fraction=0).load()
    assert (len(data.train), data.test) == (1797, None)


def test_limit_takes_training_examples_by_seed_and_leaves_the_test_split():
    whole, part, other = (DigitsSettings(limit=n, split_seed=s).load() for n, s in ((None, 0), (50, 0), (50, 1)))
    known = {tuple(row) for row in whole.train.inputs.flatten(1).tolist()}
    assert len(part.train) == 50
    assert {tuple(row) for row in part.train.inputs.flatten(1).tolist()} <= known
    assert torch.equal(part.test.inputs, whole.test.inputs)
    assert not torch.equal(part.train.inputs, other.train.inputs)


def test_a_limit_above_the_number_of_examples_changes_nothing():
    assert len(DigitsSettings(limit=5000).load().train) == 1437


# scaling


def test_unit_scaling_divides_by_the_largest_grey_level():
    raw, unit = DigitsSettings(scaling="none").load(), DigitsSettings().load()
    assert raw.train.inputs.max() == 16
    assert torch.equal(unit.train.inputs, raw.train.inputs / 16)
    assert torch.equal(unit.test.inputs, raw.test.inputs / 16)


def test_standard_scaling_uses_mean_and_std_of_the_training_inputs_and_keeps_constant_features_finite():
    raw, standard = (DigitsSettings(scaling=how).load() for how in ("none", "standard"))
    mean, std = raw.train.inputs.mean(0), raw.train.inputs.std(0, correction=0)
    varies = std > 0
    assert not varies.all()
    assert standard.train.inputs.mean(0).abs().max() < 1e-5
    assert torch.allclose(standard.train.inputs.std(0, correction=0), varies.float(), atol=1e-5)
    assert torch.allclose(standard.test.inputs[:, varies], ((raw.test.inputs - mean) / std)[:, varies], atol=1e-4)


# idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dtype", list(CODES))
def test_an_idx_file_reads_back_as_written(tmp_path, dtype, suffix):
    array = np.arange(-12 if dtype != "uint8" else 0, 12).astype(dtype)[:12].reshape(2, 3, 2)
    read = read_idx(write_idx(tmp_path / f"array{suffix}", array))
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_four_idx_files_make_a_data_set(tmp_path, suffix):
    data = mnist_like(tmp_path, suffix).load()
    assert (data.name, data.classes, data.labels[-1]) == (tmp_path.name, None, 3)
    assert (tuple(data.train.inputs.shape), tuple(data.test.inputs.shape)) == ((6, 1, 4, 4), (3, 1, 4, 4))
    assert data.test.inputs.min() == 1  # 255 of 255
    assert data.train.targets.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda content: content[:6]])
def test_an_idx_file_that_is_shorter_or_longer_than_its_header_says_is_refused(tmp_path, change, suffix):
    content = change(idx_bytes(np.zeros((2, 3), dtype=np.int16)))
    path = tmp_path / f"array{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=rf"array{suffix} holds {len(content)} bytes, not what its header .* says; fetch"):
        read_idx(path)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\x89PNG\r\n", b"\0\0\x07\x01\0\0\0\0"])
def test_what_does_not_begin_like_idx_is_refused(tmp_path, content):
    (tmp_path / "array").write_bytes(content)
    with pytest.raises(DataError, match=r"array is not an IDX file \(it must begin with 00 00 and a known type\)"):
        read_idx(tmp_path / "array")


@pytest.mark.parametrize("damage", [lambda c: c[:20], lambda c: b"not gzip" + c, lambda c: c[:14] + b"\xff" * 8 + c[22:]])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    (tmp_path / "array.gz").write_bytes(damage(gzip.compress(idx_bytes(np.arange(100, dtype=np.int32)))))
    with pytest.raises(DataError, match=r"cannot read .*array\.gz: .*; fetch the file again"):
        read_idx(tmp_path / "array.gz")


def test_a_missing_idx_file_is_named_with_the_key_to_set(tmp_path):
    settings = mnist_like(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte \(or the same with \.gz\) does not exist; .* set data\.root"):
        settings.load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros(5, np.uint8)}, "the training split has 6 inputs but 5 targets"),
        ({"t10k_images": np.zeros((0, 4, 4), np.uint8), "t10k_labels": np.zeros(0, np.uint8)}, "the test split is empty"),
        ({"train_images": np.full((6, 4, 4), np.nan, np.float32)}, "input of training example 0 is NaN or infinite"),
        ({"train_labels": np.array([0, 1, 1.5, 0, 1, 0])}, "label.* whole number"),
        ({"train_labels": np.array([0, 1, np.nan, 0, 1, 0])}, "(label|target).* (NaN|whole number)"),
        ({"t10k_images": np.zeros((3, 4, 5), np.uint8)}, r"test.*\(1, 4, 5\).*\(1, 4, 4\)"),
    ],
)
def test_idx_files_that_make_no_data_set_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        mnist_like(tmp_path, **changes).load()


@needs_mnist
@pytest.mark.parametrize("name", list(MD5))
def test_mnist_is_the_published_one(name):
    assert hashlib.md5(gzip.decompress((MNIST / f"{name}.gz").read_bytes())).hexdigest() == MD5[name]


@needs_mnist
def test_mnist_has_sixty_thousand_training_images():
    data = IdxSettings(root=MNIST).load()
    assert (tuple(data.train.inputs.shape), tuple(data.test.inputs.shape)) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert (data.labels, data.train.inputs.min(), data.train.inputs.max()) == (tuple(range(10)), 0, 1)
    assert torch.bincount(data.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# npz


def test_an_npz_file_without_test_arrays_is_split(tmp_path):
    data = read_npz(tmp_path)
    assert (data.name, len(data.train), len(data.test), data.labels) == ("data", 8, 2, (0, 1, 2))
    assert sorted([*data.train.inputs[:, 0].tolist(), *data.test.inputs[:, 0].tolist()]) == list(range(0, 20, 2))


def test_an_npz_file_with_test_arrays_is_not_split(tmp_path):
    data = read_npz(tmp_path, test_inputs=np.full((4, 2), 7.0), test_targets=np.array([0, 1, 2, 1]))
    assert (len(data.train), len(data.test)) == (10, 4)
    assert data.test.inputs.unique().tolist() == [7]


def test_one_training_example_beside_test_arrays_is_enough(tmp_path):
    test = {"test_inputs": np.ones((2, 2)), "test_targets": np.array([0, 1])}
    assert len(read_npz(tmp_path, inputs=np.ones((1, 2)), targets=np.array([1]), **test).train) == 1


def test_real_targets_are_no_labels_and_one_column_is_flattened(tmp_path):
    data = read_npz(tmp_path, targets=np.linspace(0, 1, 10)[:, None])
    assert (data.labels, data.train.targets.shape, data.train.targets.dtype) == (None, (8,), torch.float64)


def test_bytes_of_images_are_scaled_by_255_and_whole_numbers_stay_whole_where_that_is_said(tmp_path):
    grey = NpzSettings(path=npz(tmp_path, inputs=np.full((10, 2, 2), 255, np.uint8))).load().train.inputs
    assert (grey.dtype, grey.unique().tolist()) == (torch.float32, [1])
    tokens = NpzSettings(path=npz(tmp_path, inputs=np.full((10, 2), 9)), scaling="none").load().train.inputs
    assert (tokens.dtype, tokens.unique().tolist()) == (torch.int64, [9])


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.float64])
def test_tables_are_standardised_whatever_their_numbers_are(tmp_path, kind):
    table = np.stack([np.arange(10) * 20, np.arange(10)[::-1]], axis=1).astype(kind)
    data = NpzSettings(path=npz(tmp_path, inputs=table), test_fraction=0).load()
    assert torch.allclose(data.train.inputs.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(data.train.inputs.std(0, correction=0), torch.ones(2), atol=1e-6)
    assert torch.allclose(data.preprocessing(torch.tensor([[90.0, 4.5]])), torch.zeros(1, 2), atol=1e-6)


def test_inputs_of_1e30_are_standardised_too(tmp_path):
    table = (np.arange(20.0)[:, None] - 3) * 1e30
    inputs = NpzSettings(path=npz(tmp_path, inputs=table, targets=np.arange(20.0)), test_fraction=0).load().train.inputs
    assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.array([[1]] * 10, dtype=object)}, r"cannot read .*data\.npz as NPZ: Object arrays .*without objects"),
        ({"inputs": np.array(["a"] * 10)}, r"array 'inputs' in .* has type <U1; numbers are needed"),
        ({"targets": np.arange(9)}, r"data\.npz has 10 inputs but 9 targets; give as many of each"),
        ({"inputs": np.array([[0.0]] * 9 + [[np.nan]])}, r"input of .* example \d+ is NaN or infinite; clean the data first"),
        ({"targets": np.array([0.0] * 9 + [np.inf])}, r"target of .* example \d+ is NaN or infinite; clean the data first"),
        ({"inputs": np.ones((0, 2)), "targets": np.ones(0)}, r"array 'inputs' in .* is empty; give at least one example"),
        ({"test_inputs": np.ones((4, 2))}, r"has no array 'test_targets' \(did you mean '.*'\?\); arrays there: inputs, targ"),
        ({"test_inputs": np.ones((4, 2)), "test_targets": np.ones(3)}, "the test split has 4 inputs but 3 targets"),
    ],
)
def test_an_npz_file_that_makes_no_data_set_is_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read_npz(tmp_path, **arrays)


def test_a_missing_array_names_the_near_miss_and_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"has no array 'target' \(did you mean 'targets'\?\); arrays there: inputs, targets"):
        NpzSettings(path=npz(tmp_path), targets="target").load()


def damaged(folder, at=500):
    generator = np.random.default_rng(0)
    np.savez_compressed(folder / "data.npz", inputs=generator.integers(0, 9, (500, 20)), targets=np.zeros(500))
    content = (folder / "data.npz").read_bytes()
    return content[:at] + b"\xff" * 100 + content[at + 100 :]


@pytest.mark.parametrize("content", [lambda _: b"", damaged, lambda d: damaged(d, at=3000), lambda d: damaged(d)[:3000]])
def test_a_damaged_npz_file_is_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content(tmp_path))
    with pytest.raises(DataError, match=r"cannot read .*bad\.npz as NPZ: .+; write it with numpy\.savez"):
        NpzSettings(path=tmp_path / "bad.npz").load()


def test_a_single_npy_array_named_npz_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"cannot read .*one\.npz as NPZ"):
        NpzSettings(path=tmp_path / "one.npz").load()


def test_a_missing_npz_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.npz as NPZ: .*No such file"):
        NpzSettings(path=tmp_path / "nowhere.npz").load()


def test_examples_without_content_are_refused():
    with pytest.raises(DataError, match="the test split is empty; give at least one example"):
        Examples(torch.zeros(0, 2), torch.zeros(0), "test")


@pytest.mark.parametrize("kind", ["random_walk_modes", "principal_components"])
def test_features_do_not_depend_on_the_threads_of_the_process(kind):
    """A resumed run makes its features again, and must find the same ones."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(DigitsSettings(features={"kind": kind}).load().train.inputs)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
