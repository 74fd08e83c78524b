"""Files are written whole or not at all, and a file that cannot be read says so."""

import errno
import os

import pytest
import torch

from bitsback.atomic_io import read_tensors, write_bytes, write_tensors, write_text
from bitsback.errors import RunError

WRITERS = {
    "bytes": lambda path: write_bytes(path, b"new"),
    "text": lambda path: write_text(path, "new"),
    "tensors": lambda path: write_tensors(path, {"a": torch.ones(3)}, {}),
}
each_writer = pytest.mark.parametrize("write", list(WRITERS.values()), ids=list(WRITERS))


def failing(error):
    def fail(*_args, **_options):
        raise error

    return fail


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_text_is_written_in_utf8_into_folders_that_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "file.txt", "1 Übung → 2")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == "1 Übung → 2".encode()


def test_an_old_file_is_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "file").write_bytes(b"a longer old content")
    write_bytes(tmp_path / "file", b"new")
    assert contents(tmp_path) == {"file": b"new"}


def test_others_may_read_what_was_written(tmp_path):
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@each_writer
@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, write, step):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, step, failing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RunError, match=r"cannot write .*file: No space left on device; is the disk full\?"):
        write(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"old"}


@each_writer
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, write):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"old"}


@each_writer
def test_a_place_below_a_regular_file_cannot_be_written(tmp_path, write):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RunError, match=r"cannot write .*file/run/new: .+; choose a place you may write to"):
        write(tmp_path / "file" / "run" / "new")
    assert contents(tmp_path) == {"file": b"old"}


@each_writer
def test_a_folder_is_not_overwritten(tmp_path, write):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*folder: Is a directory"):
        write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_tensors_and_metadata_read_back_equal(tmp_path):
    tensors = {"layer/a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.tensor(1.5, dtype=torch.float64)}
    write_tensors(tmp_path / "file", tensors, {"format": "test"})
    read, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"format": "test"}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_truncated_tensor_file_is_refused(tmp_path, kept):
    write_tensors(tmp_path / "file", {"a": torch.randn(100)}, {})
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:kept])
    with pytest.raises(RunError, match=r"cannot read .*file: .+; (is the run complete\?|take it from a copy)"):
        read_tensors(tmp_path / "file")


def test_text_is_no_tensor_file(tmp_path):
    (tmp_path / "file").write_text("seed: 1\n" * 10)
    with pytest.raises(RunError, match=r"cannot read .*file: .+; is the run complete\?"):
        read_tensors(tmp_path / "file")


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_tensor_file_that_is_missing_or_a_folder_is_refused(tmp_path, name):
    with pytest.raises(RunError, match=r"cannot read .+; is the run complete\?"):
        read_tensors(tmp_path / name)
