"""Folders and ZIP files of images: what Pillow decodes is what a network is given, and what is wrong is named."""

import csv
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bitsback
from bitsback.analysis.predict import predict
from bitsback.config import Config
from bitsback.config.experiment import Experiment, open_source
from bitsback.data import IdxSettings, ImagesSettings, NpzSettings
from bitsback.errors import BitsbackError, ConfigError, DataError, FileError, MissingExtraError

CLASSES = ("cat", "dog")


def pixels(number: int, shape=(8, 8, 3)) -> np.ndarray:
    """Random grey levels; those of odd numbers, which are dogs, are dark at the top."""
    found = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    found[: shape[0] // 2 if number % 2 else 0] //= 8
    return found


def write(path, array, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **arguments)


def folder(root, count=20, shape=(8, 8, 3), first=0, suffix="png"):
    for number in range(first, first + count):
        write(root / CLASSES[number % 2] / f"{number}.{suffix}", pixels(number, shape))
    return root


def zipped(root, path, method=zipfile.ZIP_DEFLATED, inside=""):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, inside + file.relative_to(root).as_posix())
    return path


def load(path, **settings):
    return ImagesSettings(path=path, **settings).load()


def stored(dataset) -> np.ndarray:
    """Images of the training split as grey levels."""
    return (dataset.train.inputs[:] * 255).round().numpy().astype(np.uint8)


def in_order(root) -> list:
    return sorted(
        (file for file in root.rglob("*") if file.is_file()), key=lambda file: hashlib.sha256(file.read_bytes()).digest()
    )


def config(path, **sections):
    layers = [{"Conv2d": {"out_channels": 4, "kernel_size": 3}}, "ReLU", "Flatten", "Linear"]
    given = {
        "data": {"kind": "images", "path": str(path)},
        "network": {"kind": "sequential", "layers": layers},
        "training": {"epochs": 3},
        "ledger": {"samples": 2},
        "logging": {"report": False},
    }
    return Config.model_validate(given | sections)


def yaml(tmp_path, path, **sections):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config(path, **sections).model_dump(mode="json", exclude_unset=True)))
    return file


# what is read


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "ppm"])
def test_inputs_are_what_pillow_decodes_in_the_order_of_digests(tmp_path, suffix):
    root = folder(tmp_path / "photos", suffix=suffix)
    dataset = load(root, test_fraction=0)
    files = in_order(root)
    expected = np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])
    assert dataset.test is None
    assert dataset.labels == CLASSES
    assert dataset.train.targets.tolist() == [CLASSES.index(file.parent.name) for file in files]
    assert np.array_equal(stored(dataset), expected)
    assert torch.equal(dataset.train.inputs[:], torch.from_numpy(expected).float() / 255)


def test_a_zip_file_is_read_as_its_folder_whatever_folder_is_around_it(tmp_path):
    root = folder(tmp_path / "photos")
    (root / "cat" / ".hidden").write_text("x")
    (root / "dog" / "Thumbs.db").write_text("x")
    write(root / "__MACOSX" / "cat" / "1.png", pixels(1))
    dataset = load(root)
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    (tmp_path / "outer").mkdir()
    os.symlink(root, tmp_path / "outer" / "photos", target_is_directory=True)
    others = [
        load(zipped(root, tmp_path / "a.zip")),
        load(zipped(root, tmp_path / "b.zip", zipfile.ZIP_STORED, inside="photos/")),
        load(tmp_path / "outer"),
    ]
    for other in others:
        assert other.labels == CLASSES
        for one, same in ((dataset.train, other.train), (dataset.test, other.test)):
            assert torch.equal(one.targets, same.targets)
            assert torch.equal(one.inputs[:], same.inputs[:])


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_folders_train_and_test_are_the_splits(tmp_path, name):
    folder(tmp_path / "photos" / "train")
    folder(tmp_path / "photos" / name, 6, first=100)
    dataset = load(tmp_path / "photos")
    assert (len(dataset.train), len(dataset.test)) == (20, 6)
    assert torch.equal(dataset.train.inputs[:], load(tmp_path / "photos" / "train", test_fraction=0).train.inputs[:])
    assert dataset.test.name == "test"


def test_a_class_may_be_called_train_and_hold_folders(tmp_path):
    folder(tmp_path / "cars" / "old" / "red")
    folder(tmp_path / "cars" / "new")
    for number in range(4):
        write(tmp_path / "vehicles" / ("train" if number % 2 else "test") / f"{number}.png", pixels(number))
    assert load(tmp_path / "cars").labels == ("new", "old")
    assert load(tmp_path / "vehicles").labels == ("test", "train")


def test_images_are_the_same_data_as_their_array(tmp_path):
    root = folder(tmp_path / "photos")
    files = in_order(root)
    array = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    np.savez(tmp_path / "first.npz", inputs=array, targets=[file.parent.name for file in files])
    np.savez(tmp_path / "last.npz", inputs=array.transpose(0, 2, 3, 1), targets=[file.parent.name for file in files])
    images = load(root)
    for other in (NpzSettings(path=tmp_path / "first.npz"), NpzSettings(path=tmp_path / "last.npz", channels="last")):
        dataset = other.load()
        assert torch.equal(images.train.inputs[:], dataset.train.inputs[:])
        assert torch.equal(images.test.inputs[:], dataset.test.inputs[:])
        assert (images.labels, images.scaling) == (dataset.labels, dataset.scaling)
    one, other = (Experiment.build(config(root, data=data)) for data in (ImagesSettings(path=root), other))
    assert torch.equal(one.model.outputs(one.dataset.train.inputs[:]), other.model.outputs(one.dataset.train.inputs[:]))


def test_a_folder_of_images_is_no_run(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    opened = open_source(tmp_path / "pets", ["seed=3"])
    assert (opened.data.kind, opened.data.path, opened.seed) == ("images", tmp_path / "pets", 3)
    (tmp_path / "pets" / "config.yaml").touch()
    with pytest.raises(ConfigError, match="a run keeps its configuration"):
        open_source(tmp_path / "pets", ["seed=3"])


def test_grey_images_have_one_channel_unless_three_are_asked_for(tmp_path):
    root = folder(tmp_path / "grey", shape=(8, 8))
    assert load(root).train.inputs.shape == (16, 1, 8, 8)
    colour = stored(load(root, channels=3, test_fraction=0))
    assert np.array_equal(colour, stored(load(root, test_fraction=0)).repeat(3, 1))


def test_grey_and_colour_are_mixed_only_if_a_number_of_channels_is_set(tmp_path):
    root = folder(tmp_path / "mixed")
    write(root / "dog" / "grey.png", pixels(3, (8, 8)))
    with pytest.raises(DataError, match=r"cat/0.png in .* is in colour and dog/grey.png is grey; set data.channels=3"):
        load(root)
    assert load(root, channels=3).train.inputs.shape[1] == 3
    assert load(root, channels=1).train.inputs.shape[1] == 1


def test_opacity_is_kept_in_a_fourth_channel_or_refused_where_it_says_something(tmp_path):
    root = folder(tmp_path / "opaque")
    seen = np.concatenate([pixels(40), np.full((8, 8, 1), 255, np.uint8)], 2)
    write(root / "cat" / "opaque.png", seen)
    assert load(root).train.inputs.shape[1] == 3
    seen[0, 0, 3] = 17
    write(root / "cat" / "seen through.png", seen)
    for channels in (None, 1, 3):
        with pytest.raises(DataError, match=r"seen through.png .* has transparent pixels; set data.channels=4"):
            load(root, channels=channels)
    assert (stored(load(root, channels=4, test_fraction=0)) == seen.transpose(2, 0, 1)).all((1, 2, 3)).any()


def test_size_crops_the_centre_and_resamples_it(tmp_path):
    root = folder(tmp_path / "photos", shape=(8, 14, 3))
    squares = stored(load(root, size=8, test_fraction=0))
    assert np.array_equal(squares, stored(load(root, test_fraction=0))[:, :, :, 3:11])  # nothing to resample
    small = stored(load(root, size=4, test_fraction=0))
    # bilinear weights of a halving: a triangle over four pixels, cut at the edge
    weights = np.array([[0.75 if abs(2 * row + 0.5 - column) < 1 else 0.25 if abs(2 * row + 0.5 - column) < 2 else 0
                         for column in range(8)] for row in range(4)])  # fmt: skip
    weights /= weights.sum(1, keepdims=True)
    assert np.abs(weights @ squares.astype(float) @ weights.T - small).max() < 1.5
    write(root / "dog" / "large.png", pixels(1, (30, 20, 3)))
    assert load(root, size=4).train.inputs.shape[1:] == (3, 4, 4)


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
    upright = np.zeros((16, 8, 3), np.uint8)
    upright[:8] = 255
    for number, name in enumerate(CLASSES):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: the first column is the top
        write(tmp_path / "photos" / name / f"{number}.jpg", np.rot90(upright) // (number + 1), exif=exif, quality=95)
    found = load(tmp_path / "photos", test_fraction=0)
    assert found.train.inputs.shape[1:] == (3, 16, 8)
    assert np.abs(stored(found).astype(int).max(0) - upright.transpose(2, 0, 1)).max() < 20


def test_the_order_of_the_images_says_nothing_of_their_labels(tmp_path):
    root = folder(tmp_path / "photos")
    (tmp_path / "flat").mkdir()
    for number, file in enumerate(sorted(root.rglob("*.png"))):
        (tmp_path / "flat" / f"{number:02}.png").write_bytes(file.read_bytes())
    known, unknown = load(root), ImagesSettings(path=tmp_path / "flat").load_inputs()
    assert torch.equal(known.train.inputs[:], unknown.train.inputs[:])
    assert torch.equal(known.test.inputs[:], unknown.test.inputs[:])
    assert not unknown.train.targets.any()


# the same from a file to predictions


def test_train_ledger_pack_predict_send_and_receive(tmp_path, run_command):
    root, run, file = folder(tmp_path / "photos", 40), tmp_path / "run", tmp_path / "packed.bb"
    found = run_command("train", yaml(tmp_path, root), "--out", run)
    assert found.code == 0, found.err
    assert "the labels are 'cat', 'dog'" in found.out
    assert run_command("ledger", run).code == 0
    assert run_command("pack", run, "--out", file, "--codec", "quantised").code == 0
    network = Experiment.build(config(root)).model.network
    assert network[0].in_channels == 3
    archive = zipped(folder(tmp_path / "new", 6, first=100), tmp_path / "new.zip")
    for model in (run, file):
        for number, data in enumerate((tmp_path / "new", archive)):
            table = tmp_path / f"{model.name}-{number}.csv"
            assert run_command("predict", model, "--data", data, "--out", table).code == 0
        rows = list(csv.DictReader((tmp_path / f"{model.name}-0.csv").open()))
        assert (tmp_path / f"{model.name}-0.csv").read_text() == (tmp_path / f"{model.name}-1.csv").read_text()
        assert [row["file"] for row in rows] == [f"cat/{n}.png" for n in (100, 102, 104)] + [
            f"dog/{n}.png" for n in (101, 103, 105)
        ]
        truth = np.stack([pixels(number).transpose(2, 0, 1) for number in (100, 102, 104, 101, 103, 105)]).astype(np.float32)
        expected = predict(model, truth)
        assert [row["class"] for row in rows] == [answer["class"] for answer in expected.answers]
        for row, answer, mean in zip(rows, expected.answers, expected.mean, strict=True):
            assert float(row["probability"]) == pytest.approx(answer["probability"], abs=1e-4)
            assert float(row["bits"]) == pytest.approx(-np.log2(float(mean[CLASSES.index(row["file"][:3])])), abs=1e-3)
        one = run_command("predict", model, "--data", tmp_path / "new" / "cat" / "100.png")
        assert one.out.split()[:2] == ["100.png", rows[0]["class"]]
    flat, message = tmp_path / "flat", tmp_path / "labels.bb"
    flat.mkdir()
    for image in root.rglob("*.png"):
        (flat / image.name).write_bytes(image.read_bytes())
    assert run_command("send", "--run", run, "--code", "two_part", "--out", message).code == 0
    assert run_command("receive", message, "--out", tmp_path / "received", f"--data.path={flat}").code == 0
    images = Experiment.build(config(root)).dataset.train
    labels = np.load(tmp_path / "received" / "labels.npy")
    assert labels.tolist() == [CLASSES[number] for number in images.targets.tolist()]


def test_predictions_say_their_files_in_every_form(tmp_path, run_command):
    root, run = folder(tmp_path / "photos"), tmp_path / "run"
    assert run_command("train", yaml(tmp_path, root), "--out", run).code == 0
    (tmp_path / "some").mkdir()
    for number in range(3):
        write(tmp_path / "some" / f"{number}.png", pixels(number))
    found = predict(run, tmp_path / "some")
    assert found.bits is None
    assert [record["file"] for record in json.loads(found.to_json())] == ["0.png", "1.png", "2.png"]
    found.save(tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz") as arrays:
        assert arrays["file"].tolist() == ["0.png", "1.png", "2.png"]
        assert np.allclose(arrays["mean"], found.mean)
    write(tmp_path / "some" / "bird" / "9.png", pixels(9))
    assert predict(run, tmp_path / "some").bits is None  # bird is no class
    write(tmp_path / "other" / "grey.png", pixels(1, (8, 8)))
    assert len(predict(run, tmp_path / "other").answers) == 1  # the run's images are in colour
    write(tmp_path / "other" / "large.png", pixels(1, (9, 8, 3)))
    with pytest.raises(DataError, match=r"grey.png .* has 8 x 8 pixels and large.png has 8 x 9 pixels; set data.size=8"):
        predict(run, tmp_path / "other")
    with pytest.raises(DataError, match=r"takes inputs of shape \(3, 8, 8\), got \(3, 9, 8\)"):
        predict(run, tmp_path / "other" / "large.png")
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat" / "1.png").write_text("a text")
    with pytest.raises(DataError, match=r"cat/1.png in .*bad is no image"):
        predict(run, tmp_path / "bad")
    with pytest.raises(DataError, match=r"^/.*bad/cat/1.png is no image"):
        predict(run, tmp_path / "bad" / "cat" / "1.png")


def test_a_run_on_other_numbers_refuses_images(tmp_path):
    write(tmp_path / "one.png", pixels(0, (8, 8)))
    bitsback.train(str(yaml(tmp_path, tmp_path, data={"kind": "digits", "limit": 50})), out=tmp_path / "run", progress=False)
    with pytest.raises(DataError, match="was trained on other numbers than grey levels from 0 to 255"):
        predict(tmp_path / "run", tmp_path / "one.png")


# what is wrong is named


def bad(path):
    with pytest.raises(DataError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_of_several_sizes(tmp_path):
    root = folder(tmp_path / "photos")
    write(root / "dog" / "tall.png", pixels(0, (12, 9, 3)))
    message = bad(root)
    assert "cat/0.png" in message
    assert "has 8 x 8 pixels and dog/tall.png has 9 x 12 pixels; set data.size=8" in message


def test_an_empty_class_folder(tmp_path):
    root = folder(tmp_path / "photos")
    (root / "emu" / "inner").mkdir(parents=True)
    assert "the folder emu in" in bad(root)
    (root / "emu" / "inner" / ".DS_Store").write_text("x")
    assert "holds no images; give it some, or remove it" in bad(root)
    with zipfile.ZipFile(zipped(folder(tmp_path / "other"), tmp_path / "a.zip"), "a") as archive:
        archive.mkdir("emu")
    assert "the folder emu in" in bad(tmp_path / "a.zip")
    folder(tmp_path / "split" / "train")
    folder(tmp_path / "split" / "test", 6)
    (tmp_path / "split" / "test" / "dog2").mkdir()
    assert "the folder test/dog2 in" in bad(tmp_path / "split")


def test_folders_that_are_no_classes(tmp_path):
    write(tmp_path / "flat" / "1.png", pixels(1))
    assert "1.png in" in bad(tmp_path / "flat")
    assert "is in no folder of a class; put the images of each class into a folder of its name" in bad(tmp_path / "flat")
    write(folder(tmp_path / "photos") / "2.png", pixels(2))
    assert "2.png in" in bad(tmp_path / "photos")
    with pytest.raises(DataError, match=r"is a folder; of images .*ImagesSettings\(path=.*\).load\(\) makes a data set"):
        bitsback.data.source(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    assert "holds no images; it takes a folder for each class" in bad(tmp_path / "empty")
    assert "cannot read" in bad(tmp_path / "nowhere")
    write(tmp_path / "alone" / "cat" / "1.png", pixels(1))
    with pytest.raises(DataError, match="give two labels or more"):
        Experiment.build(
            config(tmp_path / "alone", data={"kind": "images", "path": str(tmp_path / "alone"), "test_fraction": 0})
        )


def test_splits_that_do_not_fit(tmp_path):
    root = tmp_path / "photos"
    folder(root / "train")
    folder(root / "test", 4)
    write(root / "test" / "emu" / "1.png", pixels(1))
    assert "test/emu/1.png in" in bad(root)
    assert "is of the class 'emu', of which there are no training images" in bad(root)
    (root / "test" / "emu" / "1.png").unlink()
    (root / "test" / "emu").rmdir()
    folder(root / "val", 4)
    assert "has folders train, test, val, and bitsback takes two" in bad(root)
    (root / "val").rename(root / "cat")
    assert "has folders test and train, and cat/cat/0.png is in neither" in bad(root)


def wide_png() -> bytes:
    """A PNG file of one pixel of 3 x 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")


def test_files_that_cannot_be_read(tmp_path):
    root = folder(tmp_path / "photos", suffix="jpg", shape=(64, 64, 3))
    odd = root / "dog" / "odd.jpg"
    odd.write_text("a text")
    assert "dog/odd.jpg in" in bad(root)
    assert "is no image (of PNG, JPEG, BMP, GIF, WEBP or PPM)" in bad(root)
    odd.write_bytes(b"")
    assert "is no image" in bad(root)
    content = (root / "dog" / "1.jpg").read_bytes()
    odd.write_bytes(content[: len(content) // 2])
    assert "cannot be decoded: image file is truncated" in bad(root)
    for content in (wide_png(), None):
        if content is None:
            write(root / "dog" / "wide.png", np.full((64, 64), 1000, np.uint16))
            odd = root / "dog" / "wide.png"
        else:
            odd.write_bytes(content)
        assert "has more than 8 bits a channel" in bad(root)
        odd.unlink()
    frames = [Image.fromarray(pixels(number, (64, 64))) for number in range(3)]
    frames[0].save(root / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    assert "moving.gif in" in bad(root)
    assert "is an animation" in bad(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_opened(tmp_path):
    root = folder(tmp_path / "photos")
    os.mkfifo(root / "cat" / "pipe")
    assert "is no file that can be read" in bad(root)
    (root / "cat" / "pipe").unlink()
    os.symlink(root, root / "cat" / "round", target_is_directory=True)
    assert "cannot read" in bad(root) or "levels of nesting" in bad(root)


def archive_of(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def png(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png")
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_path_in_a_zip_file_is_followed(tmp_path):
    content = png(pixels(0))
    for name in ("../cat/1.png", "/etc/cat/1.png", "cat/../../1.png", "..\\cat\\1.png"):
        assert "points out of the archive" in bad(archive_of(tmp_path / "a.zip", [("cat/0.png", content), (name, content)]))
    assert "has two members 'cat/0.png'" in bad(archive_of(tmp_path / "a.zip", [("cat/0.png", content)] * 2))
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.zip"]  # nothing was unpacked


def test_damaged_zip_files(tmp_path):
    path = zipped(folder(tmp_path / "photos"), tmp_path / "a.zip", zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[200] ^= 255  # in the first image
    (tmp_path / "b.zip").write_bytes(content)
    assert "cannot read cat/0.png in" in bad(tmp_path / "b.zip")
    (tmp_path / "b.zip").write_bytes(content[:-30])
    assert "as ZIP" in bad(tmp_path / "b.zip")
    assert "compressed in an unusual way" in bad(zipped(tmp_path / "photos", tmp_path / "c.zip", zipfile.ZIP_BZIP2))
    content = bytearray(path.read_bytes())
    for at in [at for at in range(len(content)) if content[at : at + 4] in (b"PK\1\2", b"PK\3\4")]:
        content[at + (8 if content[at + 2] == 1 else 6)] |= 1  # said to be encrypted
    (tmp_path / "d.zip").write_bytes(content)
    assert "encrypted" in bad(tmp_path / "d.zip")


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (11, 40):  # Pillow warns at first, and raises above twice the limit
        write(tmp_path / f"{side}" / "cat" / "1.png", np.zeros((side, side), np.uint8))
        assert "has more pixels than the 100 that an image may have" in bad(tmp_path / f"{side}")
    monkeypatch.undo()
    root = folder(tmp_path / "photos", suffix="jpg")
    archive = zipped(root, tmp_path / "a.zip")
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "30000")
    for path in (root, archive):
        assert "bytes of memory" in bad(path)
    monkeypatch.delenv("BITSBACK_LIMIT_MEMORY")
    monkeypatch.setattr("bitsback.data._arrays.limits.ALWAYS_UNPACKED", 1000)
    assert "times its compressed size" in bad(
        archive_of(tmp_path / "b.zip", [("cat/1.png", bytes(10))]) and packed_zeros(tmp_path)
    )
    monkeypatch.setenv("BITSBACK_LIMIT_EXAMPLES", "3")
    assert "asks for" in bad(root)


def packed_zeros(tmp_path):
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(10**6))
    return tmp_path / "zeros.zip"


def test_errors_of_commands_are_one_sentence(tmp_path, run_command):
    root = folder(tmp_path / "photos")
    (root / "dog" / "1.png").write_bytes(b"no image")
    found = run_command("train", yaml(tmp_path, root), "--out", tmp_path / "run")
    assert found.code != 0
    assert len(found.err.strip().splitlines()) == 1
    assert "dog/1.png" in found.err
    assert not (tmp_path / "run").exists()


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("bitsback.extras._is_installed", lambda module: False)
    with pytest.raises(MissingExtraError, match=r"reading images needs PIL, of the extra 'images': pip install"):
        load(folder(tmp_path / "photos"))


# channels of arrays, and names of IDX files


def test_channels_last_are_permuted_or_refused(tmp_path):
    array = np.stack([pixels(number) for number in range(20)])
    np.savez(tmp_path / "last.npz", inputs=array, targets=np.arange(20) % 2)
    data = {"kind": "npz", "path": str(tmp_path / "last.npz")}
    with pytest.raises(
        ConfigError, match=r"would take inputs of shape \(8, 8, 3\) for images of 8 channels.*data.channels=last"
    ):
        bitsback.train(str(yaml(tmp_path, tmp_path, data=data)), out=tmp_path / "run", progress=False)
    run = tmp_path / "run"
    bitsback.train(str(yaml(tmp_path, tmp_path, data=data | {"channels": "last"})), out=run, progress=False)
    assert bitsback.load_run(run).experiment().dataset.train.inputs.shape[1:] == (3, 8, 8)
    bitsback.pack(run, out=tmp_path / "packed.bb")
    for model in (run, tmp_path / "packed.bb"):
        expected = predict(model, torch.from_numpy(array.transpose(0, 3, 1, 2).astype(np.float32)))
        assert torch.equal(predict(model, tmp_path / "last.npz").mean, expected.mean)
        with pytest.raises((DataError, FileError), match=r"images with channels last, and the network takes \(3, 8, 8\)"):
            predict(model, torch.from_numpy(array.astype(np.float32)))
    np.savez(tmp_path / "flat.npz", inputs=array[:, :, :, 0].reshape(20, 64), targets=np.arange(20) % 2)
    with pytest.raises(DataError, match=r"array 'inputs' .* has shape \(20, 64\), and images with channels last are"):
        NpzSettings(path=tmp_path / "flat.npz", channels="last").load()


def test_a_network_that_takes_channels_last_may(tmp_path):
    class Permuting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 2, 3), nn.Linear(72, 2)

        def forward(self, x):
            return self.last(self.first(x.permute(0, 3, 1, 2)).flatten(1))

    model = bitsback.bayesianize(Permuting())
    data = (torch.rand(20, 8, 8, 3), torch.arange(20) % 2)
    assert (
        bitsback.train(model, None, data, training={"epochs": 1}, ledger={"samples": 2}, progress=False).ledger.examples == 20
    )
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(BitsbackError, match=r"channels last, and torch has them first: inputs.permute\(0, 3, 1, 2\)"):
        bitsback.train(bitsback.bayesianize(network), None, data, progress=False)


@pytest.mark.parametrize("prefix", ["emnist-letters-", "qmnist-"])
def test_idx_files_may_have_a_longer_name(mnist, tmp_path, prefix):
    for file in mnist.iterdir():
        (tmp_path / f"{prefix}{file.name.replace('t10k', 'test')}").write_bytes(file.read_bytes())
    found, expected = IdxSettings(root=tmp_path).load(), IdxSettings(root=mnist).load()
    assert torch.equal(found.train.inputs[:], expected.train.inputs[:])
    assert torch.equal(found.test.targets, expected.test.targets)
    for file in list(tmp_path.iterdir()):
        (tmp_path / file.name.replace(prefix, "emnist-digits-")).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="may each be meant by train-images-idx3-ubyte; name the four files"):
        IdxSettings(root=tmp_path).load()


def test_a_folder_or_a_zip_file_trains_without_yaml(tmp_path, run_command):
    root = folder(tmp_path / "photos", shape=(12, 9, 3))
    quick = ("training.epochs=2", "ledger.samples=2", "logging.report=false")
    for number, path in enumerate((root, zipped(root, tmp_path / "photos.zip"))):
        run = tmp_path / f"run{number}"
        found = run_command("train", path, "size=6", "data.channels=1", *quick, "--out", run)
        assert found.code == 0, found.err
        opened = bitsback.load_run(run)
        assert (opened.config.data.kind, opened.config.data.size, opened.config.data.channels) == ("images", 6, 1)
        assert opened.experiment().dataset.train.inputs.shape == (16, 1, 6, 6)
    assert (tmp_path / "run0" / "ledger.json").read_text() == (tmp_path / "run1" / "ledger.json").read_text()
    again = run_command("train", tmp_path / "run0", *quick)
    assert again.code != 0
    assert "is a directory; to continue a run: bitsback train" in again.err


def test_images_are_not_read_in_another_order_of_their_axes(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "last.npz", inputs=images, targets=labels)
    np.savez(tmp_path / "first.npz", inputs=images.transpose(0, 3, 1, 2), targets=labels)
    sections = {"data": {"kind": "npz", "path": str(tmp_path / "last.npz"), "channels": "last"}, "training": {"epochs": 1}}
    run = Experiment.build(Config.model_validate(sections))
    run.train(tmp_path / "run", progress=False)
    bitsback.pack(tmp_path / "run", tmp_path / "m.bb", progress=False)
    for source in (tmp_path / "run", tmp_path / "m.bb"):
        assert len(bitsback.predict(source, tmp_path / "last.npz").mean) == 20
        with pytest.raises(DataError, match="with the numbers in another order"):
            bitsback.predict(source, tmp_path / "first.npz")
