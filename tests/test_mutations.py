"""Changed files of every kind are refused in one sentence, or decoded to what the plain reference makes of the same bytes."""

import io
import json
import runpy
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.own_codec import HalfPrecision
from hostile import make

from bitsback.atomic_io import read_tensors, write_tensors
from bitsback.config.network import SequentialSettings
from bitsback.data.settings import NpzSettings
from bitsback.errors import ConfigError, DataError, FileError, LayerError, PriorError, RunError
from bitsback.formats.message.read import receive_file
from bitsback.formats.model_file.read import decode

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "mutate_files.py"))


@pytest.fixture(scope="module")
def whole():
    return make.valid()


def test_three_hundred_changed_files(script):
    """Numbers of a campaign: every case is one of the three, and some of every kind of file get through."""
    found = script["run"](first=0, count=300, seed=1, seconds_each=0.0)
    assert found["first_failures"] == []
    assert found["refused"] + found["equal_to_reference"] + found["compared_with_nothing"] == 300
    assert found["equal_to_reference"] >= 30
    assert len(found["kinds"]) == 16


def test_a_case_is_the_same_wherever_a_range_begins(script, tmp_path):
    files = {kind: [bytes(range(100))] for kind in ("idx", "npy")}
    cases = [script["case"](number, 5, files, ["idx", "npy"]) for number in range(40)]
    assert cases[17:20] == [script["case"](number, 5, files, ["idx", "npy"]) for number in (17, 18, 19)]
    assert len({content for _, content in cases}) > 35


def test_settings_that_were_put_into_one_file_do_not_change_in_the_next(script, whole):
    before = repr(script["WISHES"])
    for number in range(200):
        script["case"](number, 3, {"quantised": [whole["quantised"]]}, ["quantised"])
    assert repr(script["WISHES"]) == before


def test_a_reader_that_differs_from_the_reference_is_found(script, monkeypatch, tmp_path):
    """One bit of one weight, one label too many, an exception that is none of ours: each is a failure."""
    from bitsback.coding import grid as lattice
    from bitsback.coding import relative_entropy as blocks

    plain = blocks.BlockCode.values
    monkeypatch.setattr(
        blocks.BlockCode, "values", lambda self, block, index: np.nextafter(plain(self, block, index), np.float32(9))
    )
    with pytest.raises(script["DiffersError"]):
        script["run"](first=0, count=1, seed=0, kinds=["relative_entropy"], seconds_each=0.0)
    monkeypatch.undo()
    monkeypatch.setattr(lattice.GridCode, "pop", lambda self, stack: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        script["run"](first=0, count=1, seed=0, kinds=["quantised"], seconds_each=0.0)
    monkeypatch.undo()
    half = HalfPrecision.read
    monkeypatch.setattr(HalfPrecision, "read", lambda *given: {name: part + 2**-12 for name, part in half(*given).items()})
    with pytest.raises(script["DiffersError"]):
        script["run"](first=0, count=1, seed=0, kinds=["factory"], seconds_each=0.0)


# what the campaign has found


def test_a_member_of_an_archive_without_a_name(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 2)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
    (tmp_path / "x.npz").write_bytes(packed.getvalue().replace(b"x.npy", b"\0.npy"))  # a name ends at its zero
    with pytest.raises(DataError, match="has no array 'inputs'; arrays there: "):
        NpzSettings(path=tmp_path / "x.npz").load()


def test_a_name_with_line_ends_is_quoted_on_one_line(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 2)))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("inp\nuts\r.npy", stream.getvalue())
    with pytest.raises(DataError, match=r"arrays there: inp\\nuts\\r$"):
        NpzSettings(path=tmp_path / "x.npz").load()
    packed = bytearray((tmp_path / "x.npz").read_bytes())
    packed[26:28] = b"\xff\xff"  # the length of the name; the library quotes what it takes for one
    (tmp_path / "y.npz").write_bytes(packed + packed)
    with pytest.raises(DataError, match=r"cannot read .* as NPZ: ") as refused:
        NpzSettings(path=tmp_path / "y.npz").load()
    assert len(str(refused.value)) < 400
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for letter in "abc":
            archive.writestr(60_000 * letter, stream.getvalue())
    with pytest.raises(DataError, match=r"arrays there: aaa.*\.\.\.$") as refused:
        NpzSettings(path=tmp_path / "x.npz").load()
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", ["quantised", "decimal", "message"])
def test_a_prior_whose_location_no_lattice_point_is_near_to(whole, tmp_path, kind):
    """Cast to a whole number, 10^30 steps are another number on every machine, and were decoded to weights of either sign."""
    prior = make.settings_of(whole[kind])["prior"] | {"mean": 10**30}
    (tmp_path / "file").write_bytes(make.with_settings(whole[kind], prior=prior))
    read = {"message": lambda: receive_file(tmp_path / "file", tmp_path / "out", progress=False)}
    with pytest.raises(
        PriorError, match=r"a prior's location lies more than 2\^52 grid steps from zero; choose a coarser grid"
    ):
        read.get(kind, lambda: decode((tmp_path / "file").read_bytes(), "the file"))()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_units(whole):
    layers = [{"Linear": {"out_features": 0}}, "Linear"]
    content = make.with_settings(whole["quantised"], network={"kind": "sequential", "layers": layers})
    with pytest.raises(LayerError, match=r"'linear1.weight' of Linear is empty; give the layer at least one input"):
        decode(content, "the file")


@pytest.mark.parametrize("priors", ['{"other": 1}', "[", "3", '{"weight": 1}', "[" * 100_000])
def test_a_posterior_file_whose_metadata_name_no_tensor(tmp_path, priors):
    write_tensors(tmp_path / "x", {"linear1.weight": torch.zeros(2, 2)}, {"priors": priors})
    settings = SequentialSettings(layers=("Linear",), pretrained=tmp_path / "x")
    with pytest.raises(
        ConfigError, match=r"network.pretrained: .* does not say which of its tensors are means; give a finished"
    ):
        settings.build(torch.zeros(2, 2), 2)


def test_a_library_that_quotes_the_whole_file_is_cut_short(tmp_path):
    head = json.dumps({"__metadata__": {"facts": "x" * 9000}, "a": "no tensor"}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(RunError, match=r"cannot read .*; is the run complete") as refused:
        read_tensors(tmp_path / "x")
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("change", [("optimizer", {"list": []}), ("optimizer", {"value": 3}), ("epoch", "x"), ("beta", [])])
def test_a_checkpoint_whose_facts_are_of_another_form(tmp_path, change):
    from bitsback.config import Experiment
    from bitsback.training.checkpoint import load_checkpoint, save_checkpoint
    from bitsback.training.train import start

    experiment = Experiment.build(make.config())
    fit = start(experiment.model, experiment.likelihood, experiment.dataset.train, experiment.config.training)
    save_checkpoint(tmp_path / "x", fit, {})
    tensors, metadata = read_tensors(tmp_path / "x")
    facts = json.loads(metadata["facts"]) | dict([change])
    write_tensors(tmp_path / "x", tensors, {"facts": json.dumps(facts)})
    with pytest.raises(RunError, match=r"x does not fit this configuration: .*; start a new run"):
        load_checkpoint(tmp_path / "x", fit)


@pytest.mark.parametrize("kind", ["quantised", "factory"])
@pytest.mark.parametrize("name", ["inputs", "statistics", "targets"])
def test_the_sizes_of_a_tensor_are_no_truth_values(whole, kind, name):
    content = make.with_settings(whole[kind], **{name: [True]})
    with pytest.raises(FileError, match=r"^the file does not say what its inputs look like; it is damaged$"):
        decode(content, "the file", make.locations_for(content))


def test_the_sizes_of_targets_are_no_truth_values(whole, tmp_path):
    (tmp_path / "file").write_bytes(make.with_settings(whole["message"], target_shape=[True]))
    with pytest.raises(FileError, match=r"^the message does not say what its targets look like; it is damaged$"):
        receive_file(tmp_path / "file", tmp_path / "out", progress=False)
