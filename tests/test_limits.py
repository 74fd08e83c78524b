"""Files and configurations that ask for too much are refused before anything is taken, made or trained; the limit can be raised."""

import gzip
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hostile import make

from bitsback import limits
from bitsback.analysis.predict import read_inputs
from bitsback.config import load_config
from bitsback.config.load import parse_value
from bitsback.data.idx import read_idx
from bitsback.data.settings import FriedmanSettings, IdxSettings, NpzSettings
from bitsback.errors import ConfigError, DataError, FileError
from bitsback.formats._exact_outputs import BATCH
from bitsback.formats.message.read import receive_file
from bitsback.formats.model_file.read import decode
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.two_part import receive_two_part

RECEIVE = {"message": receive_file, "prequential": receive_prequential, "two_part": receive_two_part}
FRIEDMAN = {"kind": "friedman", "examples": 10**9}
SMALL = 8 << 20


@pytest.fixture(scope="module")
def whole():
    return make.valid()


@pytest.fixture
def little_memory():
    """Inside, Python and NumPy may take no more than a few megabytes."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SMALL


def received(content, folder, kind):
    (folder / "file").write_bytes(content)
    options = {} if kind == "two_part" else {"progress": False}
    return RECEIVE[kind](folder / "file", folder / "out", **options)


# limits


def test_every_limit_has_a_variable_of_its_own_and_a_default():
    assert len({limit.variable for limit in limits.LIMITS}) == len(limits.LIMITS)
    assert all(limit.value > 0 for limit in limits.LIMITS)


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("1e6", 10**6), (" 8e9 ", 8 * 10**9), ("", limits.STEPS.default)])
def test_a_limit_is_raised_by_its_variable(monkeypatch, text, value):
    monkeypatch.setenv("BITSBACK_LIMIT_STEPS", text)
    assert limits.STEPS.value == value
    limits.STEPS.check(value, "the file", FileError)
    with pytest.raises(
        FileError, match=rf"the file asks for {value + 1:,} steps of training, and at most {value:,} are allowed"
    ):
        limits.STEPS.check(value + 1, "the file", FileError)


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf", "1e999", "9" * 5000 + "x"])
def test_a_limit_that_is_none_is_named(monkeypatch, text):
    monkeypatch.setenv("BITSBACK_LIMIT_STEPS", text)
    with pytest.raises(ConfigError, match=r"BITSBACK_LIMIT_STEPS='.{1,40}' is no limit; give a whole number such as"):
        _ = limits.STEPS.value


def test_depth_is_found_without_recursion():
    tree = []
    for _ in range(100_000):
        tree = [tree]
    assert limits.depth_of(tree) == 100_001
    assert limits.depth_of({"a": {"b": [{}]}, "c": 1}) == 4


# files of ours


@pytest.mark.parametrize("kind", RECEIVE)
def test_a_file_that_has_its_data_made_is_refused(whole, tmp_path, kind, little_memory):
    with pytest.raises(FileError, match=r"names data without labels \(friedman\); it is damaged"):
        received(make.with_settings(whole[kind], data=FRIEDMAN), tmp_path, kind)


@pytest.mark.parametrize(
    ("kind", "changes", "steps"),
    [
        ("message", {"training": {"epochs": 10**9}}, 10**9),
        ("message", {"training": {"epochs": 10**6, "batch_size": 1}}, 40 * 10**6),
        ("prequential", {"training": {"epochs": 10**9}}, 2 * 10**9 + 2),
        ("prequential", {"prequential": {"least_steps": 10**9}}, 10**9 + 1 + 2),
        ("prequential", {"prequential": {"predict": "samples", "members": 10**9}}, 2 * 10**9 + 2),
        ("prequential", {"prequential": {"predict": "ensemble", "members": 10**9}}, 4 * 10**9),
    ],
)
def test_a_file_that_trains_for_ever_is_refused_before_a_step(whole, tmp_path, monkeypatch, kind, changes, steps):
    def never(*_arguments, **_options):
        raise AssertionError("trained")

    monkeypatch.setattr("bitsback.config.Experiment.train", never)
    monkeypatch.setattr("bitsback.formats.prequential.walk.train", never)
    tree = make.settings_of(whole[kind])
    sections = {name: tree[name] | values for name, values in changes.items()}
    with pytest.raises(FileError, match="steps of training, and at most 2,000,000 are allowed; if you trust it") as refused:
        received(make.with_settings(whole[kind], **sections), tmp_path, kind)
    asked = int(str(refused.value).split("BITSBACK_LIMIT_STEPS=")[1])
    assert abs(asked / steps - 1) < 0.6  # the first block trains nothing, the last of two on half of the labels
    assert not (tmp_path / "out").exists()


def test_a_raised_limit_lets_the_file_through(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("BITSBACK_LIMIT_STEPS", "0")
    with pytest.raises(FileError, match="asks for 1 steps of training, and at most 0 are allowed"):
        received(whole["message"], tmp_path, "message")
    monkeypatch.setenv("BITSBACK_LIMIT_STEPS", "1")
    assert received(whole["message"], tmp_path, "message").payload == bytes(200)


def test_features_of_a_model_file_are_not_made_of_data_beyond_measure(whole):
    import torch

    content = make.with_settings(whole["quantised"], data=FRIEDMAN | {"features": make.FEATURES})
    with pytest.raises(FileError, match="the file asks for 1,000,000,000 examples, and at most 10,000,000 are allowed"):
        decode(content, "the file").predict(torch.zeros(2, 4))
    content = make.with_settings(whole["quantised"], data={"kind": "friedman", "inputs": 10**5, "features": make.FEATURES})
    with pytest.raises(FileError, match="the file asks for data of 10,100,000,000 numbers, and at most 4,194,304 are allowed"):
        decode(content, "the file").predict(torch.zeros(2, 4))


def test_answers_of_all_examples_count(whole, tmp_path, little_memory):
    tree = make.settings_of(whole["message"])
    wide = tree["likelihood"] | {"classes": 200_000}
    with pytest.raises(FileError, match=r"too large for a file of \d+ bytes: .* BITSBACK_LIMIT_NUMBERS=\d+"):
        received(make.with_settings(whole["message"], likelihood=wide), tmp_path, "message")


def test_wide_layers_are_put_through_in_smaller_parts(whole):
    """Ten outputs after a layer of 250,000 numbers: 268 examples at once take 2^26."""
    wide = [{"Unflatten": {"dim": 1, "unflattened_size": [1, 2, 2]}}, {"Upsample": {"scale_factor": 250}},
            {"AvgPool2d": {"kernel_size": 250}}, "Flatten", {"Linear": {"bias": False}}]  # fmt: skip
    content = make.with_settings(whole["quantised"], network={"kind": "sequential", "layers": wide})
    assert decode(content, "the file").rows == (1 << 26) // 250_000
    assert decode(whole["quantised"], "the file").rows == BATCH


HEAVY = {
    "recurrent layers": (["Flatten", {"Unflatten": {"dim": 1, "unflattened_size": [2, 2]}}, {"LSTM": {"hidden_size": 2, "num_layers": 10**9}},
                          "Flatten", "Linear"], "the file's network asks for 1,000,000,00. layers, and at most 4,096"),
    "a wide kernel": ([{"Unflatten": {"dim": 1, "unflattened_size": [1, 2, 2]}}, {"Upsample": {"scale_factor": 300}},
                       {"Conv2d": {"out_channels": 1, "kernel_size": 301, "padding": "same"}}, "Flatten", "Linear"],
                      r"each of its numbers asks for [\d,]+ uses of it, and at most 512 are allowed; it is damaged, or if"),
    "a wide pool": ([{"Unflatten": {"dim": 1, "unflattened_size": [1, 2, 2]}}, {"Upsample": {"scale_factor": 300}},
                     {"AvgPool2d": {"kernel_size": 301, "stride": 1}}, "Flatten", "Linear"],
                    r"each of its numbers asks for [\d,]+ uses of it"),
    "attention": ([{"Unflatten": {"dim": 1, "unflattened_size": [1, 4]}}, {"Upsample": {"scale_factor": 2000}},
                   {"Unflatten": {"dim": 2, "unflattened_size": [4000, 2]}},
                   {"Flatten": {"start_dim": 1, "end_dim": 2}}, {"TransformerEncoderLayer": {"d_model": 2, "nhead": 1, "batch_first": True}},
                   "Flatten", "Linear"], r"too large for a file of \d+ bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEAVY)
def test_a_network_that_computes_beyond_measure_is_refused(whole, name, little_memory):
    layers, said = HEAVY[name]
    with pytest.raises(FileError, match=said):
        decode(make.with_settings(whole["quantised"], network={"kind": "sequential", "layers": layers}), "the file")


def test_nesting_and_digits_inside_a_file(whole):
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(FileError, match=r"the file's configuration asks for 1.. levels of nesting, and at most 64 are allowed"):
        decode(make.with_settings(whole["quantised"], network=deep), "the file")
    with pytest.raises(
        FileError, match="a number in the file's configuration asks for 301 digits, and at most 100 are allowed"
    ):
        decode(make.with_settings(whole["quantised"], inputs=[10**300]), "the file")


@pytest.mark.parametrize("shape", [(3, 7), (3, 1, 8, 9), (3, 2)])
def test_inputs_of_another_shape_do_not_suit_features(whole, shape):
    import torch

    with pytest.raises(DataError, match=r"inputs of shape \(.*\) cannot be prepared as the training inputs were \(.*\); give"):
        decode(whole["quantised"], "the file").predict(torch.zeros(shape))


def test_made_data_is_held_to_memory(monkeypatch):
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "1e6")
    with pytest.raises(
        DataError, match=r"data.kind=friedman asks for 3,640,000,000 bytes of memory, .*; make fewer examples, or"
    ):
        FriedmanSettings(examples=10**7).load()
    assert len(FriedmanSettings(examples=1000).load().train) == 800


# arrays


def npy(header, version=(1, 0), content=b""):
    width = {1: "<H", 2: "<I", 3: "<I"}[version[0]]
    return b"\x93NUMPY" + bytes(version) + struct.pack(width, len(header)) + header + content


def header(shape, descr="'<f4'", order=False):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()


LYING = {
    "7 TiB": (npy(header((1 << 40, 2))), "asks for .* bytes of memory, and at most 1,000,000 are allowed; use fewer, or"),
    "more than it has": (npy(header((100,))), r"it holds \d+ bytes, fewer than its header says \(float32, shape \(100,\)\)"),
    "a product beyond 2^64": (npy(header((1 << 40,) * 5)), "asks for more than 10.18 bytes of memory"),
    "255 dimensions": (npy(header((1,) * 255)), "asks for 255 dimensions, and at most 32 are allowed"),
    "objects": (npy(header((3,), "'|O'")), "Object arrays are not read"),
    "objects inside": (npy(header((3,), "[('a', '|O')]")), "Object arrays are not read"),
    "below zero": (npy(header((-1,))), "the header of its array .*(names no shape|cannot be read)"),
    "no shape": (npy(header("'x'")), "the header of its array cannot be read"),
    "no literal": (npy(b"{" * 5000), "the header of its array cannot be read"),
    "a deep literal": (npy(b"(" * 9000 + b")" * 9000, (2, 0)), "the header of its array is longer|cannot be read"),
    "a header of 4 GiB": (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "the header of its array is longer than any that NumPy writes"),
    "a wide type": (npy(header((3,), "'V2000000000'")), "asks for 6,000,000,060 bytes of memory"),
    "a version to come": (npy(header((1,)), (3, 0)), "is of a kind that holds no plain numbers, or damaged"),
    "nothing more": (b"\x93NUMPY", "is of a kind that holds no plain numbers, or damaged"),
    "one byte more": (npy(header((1,)), content=bytes(5)), "it is not as long as its header says"),
}


@pytest.mark.parametrize("packing", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", LYING)
def test_an_array_whose_header_lies(tmp_path, monkeypatch, name, packing, little_memory):
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "1e6")
    content, said = LYING[name]
    path = tmp_path / ("x.npy" if packing is None else "x.npz")
    path.write_bytes(content) if packing is None else write_zip(path, {"inputs.npy": content}, packing)
    with pytest.raises(DataError, match=f"{said}|fewer than its header says") as refused:  # a mapped array takes no memory
        read_inputs(path)
    assert "\n" not in str(refused.value)
    if packing is not None:
        with pytest.raises(DataError, match=f"{said}|fewer than its header says"):
            NpzSettings(path=path).load()


def write_zip(path, members, packing):
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_arrays_in_any_order_and_byte_order_read_back(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    for number, one in enumerate(
        [array, np.asfortranarray(array), array.astype(">f8"), array[:, ::2], array.astype(np.float16)]
    ):
        np.save(tmp_path / f"{number}.npy", one)
        assert np.array_equal(read_inputs(tmp_path / f"{number}.npy").numpy(), one.astype(np.float32))
        np.savez_compressed(tmp_path / f"{number}.npz", inputs=one, names=np.array(["a", "b"]))
        assert np.array_equal(read_inputs(tmp_path / f"{number}.npz").numpy(), one.astype(np.float32))


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """272 megabytes of zeros in 280 kilobytes, as NPZ and as IDX."""
    folder, piece = tmp_path_factory.mktemp("bombs"), bytes(1 << 24)
    zeros = gzip.compress(piece, 9)
    (folder / "bomb.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 17 << 14, 32, 32)) + 17 * zeros)
    (folder / "zeros.gz").write_bytes(zeros)
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("inputs.npy", "w") as member:
        member.write(npy(header((17 << 16, 64))))
        for _ in range(17):
            member.write(piece)
    return folder


def test_a_bomb_is_refused_whatever_the_memory(bombs, monkeypatch, little_memory):
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "1e12")
    said = r"asks for 1,0\d\d times its compressed size, and at most 256 are allowed; .* set BITSBACK_LIMIT_EXPANSION=1"
    for read in (lambda: read_inputs(bombs / "bomb.npz"), lambda: NpzSettings(path=bombs / "bomb.npz").load()):
        with pytest.raises(DataError, match=said):
            read()
    with pytest.raises(DataError, match=said):
        read_idx(bombs / "bomb.gz")


def test_a_bomb_is_held_to_memory_where_it_is_trusted(bombs, monkeypatch, little_memory):
    monkeypatch.setenv("BITSBACK_LIMIT_EXPANSION", "2000")
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "1e8")
    for read in (lambda: read_inputs(bombs / "bomb.npz"), lambda: read_idx(bombs / "bomb.gz")):
        with pytest.raises(DataError, match=r"bytes of memory, and at most 100,000,000 are allowed; .*BITSBACK_LIMIT_MEMORY="):
            read()


def test_a_directory_that_lies_does_not_help(bombs, tmp_path, little_memory):
    """The archive claims an array of 400 bytes, and unpacks to 272 megabytes."""
    content = bytearray((bombs / "bomb.npz").read_bytes())
    at = content.rindex(b"PK\1\2") + 24
    content[at : at + 4] = struct.pack("<I", 400 + len(npy(header((100,)))))
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"it holds \d+ bytes, fewer than its header says|Bad CRC-32|times its compressed size"):
        read_inputs(tmp_path / "x.npz")


def test_gzip_that_goes_on_is_not_unpacked_to_its_end(bombs, tmp_path, little_memory):
    head, zeros = b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(5), (bombs / "zeros.gz").read_bytes()
    (tmp_path / "x.gz").write_bytes(gzip.compress(head) + 17 * zeros)
    with pytest.raises(DataError, match=r"x.gz holds more than \d+ bytes, not what its header \(5,\) says"):
        read_idx(tmp_path / "x.gz")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_of_255_dimensions_and_one_of_terabytes(tmp_path, suffix, little_memory, monkeypatch):
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "1e6")
    pack = gzip.compress if suffix else bytes
    (tmp_path / f"wide{suffix}").write_bytes(pack(b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\0"))
    with pytest.raises(DataError, match="asks for 255 dimensions, and at most 32 are allowed"):
        read_idx(tmp_path / f"wide{suffix}")
    (tmp_path / f"large{suffix}").write_bytes(pack(b"\0\0\x08\x03" + b"\xff" * 12))
    with pytest.raises(DataError, match=r"holds 16 bytes, not what its header|bytes of memory, and at most"):
        read_idx(tmp_path / f"large{suffix}")


def test_an_archive_packed_in_another_way_is_not_unpacked(tmp_path):
    write_zip(tmp_path / "x.npz", {"inputs.npy": npy(header((1,)), content=bytes(4))}, zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match=r"its array 'inputs' is compressed in a way that NumPy does not write"):
        read_inputs(tmp_path / "x.npz")


# files of another kind, and under another name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"a,b\n1,2\n", r"it is text, such as CSV; read it with numpy.loadtxt"),
        ("x.parquet", b"PAR1" + bytes(9), r"it is a Parquet file; read it with pandas.read_parquet"),
        ("x.npy", npy(header((1,)), content=bytes(4)), r"it is a single array \(.npy\); load it with x = numpy.load\(FILE\)"),
        ("x.npz.gz", gzip.compress(b"x", mtime=0), "it is compressed with gzip; unpack it"),
        ("x.pkl", b"\x80\x04.", "it is a pickle, and code in files is never run"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "it is an HDF5 file; read it with h5py"),
        ("empty.npz", b"", "it is empty"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_way_to_an_npz(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DataError, match=rf"as NPZ: {said}.*; write it with numpy.savez\('data.npz', inputs=x, targets=y\)"
    ) as error:
        NpzSettings(path=tmp_path / name).load()
    assert "allow_pickle" not in str(error.value)


def test_predict_names_a_file_of_another_kind(tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"it is text, such as CSV; .*; write the inputs with numpy.save"):
        read_inputs(tmp_path / "x.csv")


def test_a_path_of_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert NpzSettings(path="~/data.npz").path == tmp_path / "data.npz"
    assert IdxSettings(root="~").root == tmp_path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("train", "test"), [("train-{}-idx{}-ubyte", "test-{}-idx{}-ubyte"), ("train-{}.idx{}-ubyte", "t10k-{}.idx{}-ubyte"),
                        ("train-{}.idx{}-ubyte", "test-{}.idx{}-ubyte")]
)  # fmt: skip
def test_idx_files_under_their_other_usual_names(tmp_path, train, test, suffix):
    pack = gzip.compress if suffix else bytes
    for pattern, count in ((train, 4), (test, 2)):
        images = b"\0\0\x08\x03" + struct.pack(">3I", count, 2, 2) + bytes(4 * count)
        labels = b"\0\0\x08\x01" + struct.pack(">I", count) + bytes(range(count))
        (tmp_path / (pattern.format("images", 3) + suffix)).write_bytes(pack(images))
        (tmp_path / (pattern.format("labels", 1) + suffix)).write_bytes(pack(labels))
    data = IdxSettings(root=tmp_path).load()
    assert data.train.targets.tolist() == [0, 1, 2, 3]
    assert data.test.targets.tolist() == [0, 1]
    (tmp_path / (train.format("labels", 1) + suffix)).unlink()
    assert IdxSettings(root=tmp_path).load_inputs().train.targets.tolist() == [0, 0, 0, 0]


# yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9)
)
BAD_YAML = {
    "alias bomb": (LAUGHS, r":5: with its aliases written out, it asks for [\d,]+ values, and at most 50,000 are allowed"),
    "alias in itself": ("seed: 1\na: &a [*a]", ":2: the alias 'a' stands inside what it stands for; write the value out"),
    "flow lists": ("a: " + "[" * 500, ":1 asks for 65 levels of nesting, and at most 64 are allowed; write it flat, or"),
    "block lists": ("- " * 5000, ":1 asks for 65 levels of nesting"),
    "flow mappings": ("{a: " * 5000, ":1 asks for 65 levels of nesting"),
    "digits": ("a: 1\nseed: " + "1" * 5001, ":2: a number asks for 5,001 digits, and at most 100 are allowed; put text into q"),
    "hexadecimal": ("seed: 0x" + "f" * 5000, ":1: a number asks for 5,001 digits"),
    "base 60": ("%YAML 1.1\n---\nseed: " + "1:" * 5000 + "1", ":3: a number asks for 5,001 digits"),
    "tagged digits": ("seed: !!int '" + "1" * 5001 + "'", ":1: a number asks for 5,001 digits"),
    "no date": ("seed: 2001-99-99", ": a value cannot be read .month must be in 1..12.*; put text into quotes"),
    "no number": ("seed: !!int abc", ": a value cannot be read .*; put text into quotes"),
    "length": ("#" * ((1 << 20) + 1), " asks for 1,048,577 bytes of text, and at most 1,048,576 are allowed"),
    "ordered mapping": ("seed: !!omap [a: 1]", "seed: should be a valid integer|seed: "),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_beyond_the_limits_is_refused_with_its_line(tmp_path, name, little_memory):
    text, said = BAD_YAML[name]
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"x\.yaml.*{said}"):
        load_config(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", [name for name in BAD_YAML if name != "ordered mapping"])
def test_an_override_beyond_the_limits_is_refused(name):
    text, said = BAD_YAML[name]
    with pytest.raises(ConfigError, match=said) as refused:
        parse_value(text)
    assert len(str(refused.value)) < 500


def test_a_file_without_end_is_not_read_to_it(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a" * (1 << 22))
    with pytest.raises(ConfigError, match="asks for 4,194,304 bytes of text"):
        load_config(tmp_path / "x.yaml")


def test_a_long_chain_of_files_is_refused(tmp_path):
    for k in range(80):
        (tmp_path / f"{k}.yaml").write_text(f"extends: {k + 1}.yaml\n")
    with pytest.raises(ConfigError, match=r"64\.yaml|65\.yaml"):
        load_config(tmp_path / "0.yaml")


def test_honest_aliases_still_work(tmp_path):
    (tmp_path / "x.yaml").write_text("data: &d {kind: digits, limit: 20}\nprior: {kind: laplace, scale: &s 0.5}\nseed: 3\n")
    assert load_config(tmp_path / "x.yaml").data.limit == 20
    assert parse_value("[&a 1, *a, {b: *a}]") == [1, 1, {"b": 1}]


# control characters

ESCAPE = "\x1b[31m\x9b2J\u202e"


def clean(said):
    """Nothing that a terminal obeys is in what was printed, and the names are there, written out."""
    assert not any(letter in said for letter in "\x1b\x9b\u202e")
    assert "\\x1b[31m\\x9b2J\\u202e" in said
    return True


def test_names_of_arrays_are_written_out(run_command, tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 8, 8)))
    write_zip(tmp_path / "x.npz", {f"in{ESCAPE}puts.npy": stream.getvalue()}, zipfile.ZIP_STORED)
    (tmp_path / "model").write_bytes((make.HERE.parent / "golden" / "decimal.bb").read_bytes())
    assert clean(run_command("predict", tmp_path / "model", "--data", tmp_path / "x.npz").err)


def test_names_of_files_and_keys_are_written_out(run_command, tmp_path):
    assert clean(run_command("inspect", tmp_path / f"x{ESCAPE}").err)
    (tmp_path / "x.yaml").write_text('"a\\e[31m\\x9b2J\\u202e": 1\n')
    assert clean(run_command("train", tmp_path / "x.yaml").err)


def test_class_names_of_a_file_are_written_out(run_command, whole, tmp_path):
    names = [f"{k}{ESCAPE}" for k in range(10)]
    likelihood = make.settings_of(whole["quantised"])["likelihood"] | {"class_names": names}
    data = {"kind": "digits", "limit": 40, "features": make.FEATURES}
    (tmp_path / "model").write_bytes(make.with_settings(whole["quantised"], likelihood=likelihood, data=data))
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8)))
    said = run_command("predict", tmp_path / "model", "--data", tmp_path / "x.npy")
    assert said.code == 0
    assert clean(said.out)


def test_the_live_picture_of_a_run_writes_its_name_out(tmp_path):
    from bitsback.cli.watch import frame
    from bitsback.terminal.live_metrics import Progress, Tail

    run = tmp_path / f"x{ESCAPE}"
    lines = frame(run, Tail(run / "metrics.jsonl"), Progress.of(run), 300, 20)
    assert clean("\n".join(line.plain for line in lines))


def test_text_without_control_characters_is_printed_as_it_is(run_command):
    from bitsback.cli.text import printable

    text = "Größe 8 → 3 µs\tund\nmehr 日本"
    assert printable(text) == text
    assert "Usage" in run_command("--help").out
