"""Bad input to the commands of files: one clear sentence on stderr, exit code 1 or 2, no traceback, nothing half-written."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsback.atomic_io import write_bytes
from bitsback.cli.app import main
from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.formats.message.write import Sender
from bitsback.formats.model_file.write import pack_experiment
from bitsback.formats.prequential.write import prequential
from bitsback.formats.two_part import send_two_part

GOLDEN = Path(__file__).parent / "golden"
BLOCKS = {"blocks": [30, 60], "least_steps": 1}
TOY = "data: {kind: digits, limit: 60}\ntraining: {epochs: 1}\nledger: {samples: 1}\n"


def config(**sections):
    return Config.model_validate(
        {"data": {"kind": "digits", "limit": 60}, "training": {"epochs": 1}, "ledger": {"samples": 1}, **sections}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a file of every kind, runs, payloads and inputs; nobody changes it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "toy.yaml").write_text(TOY)
    (folder / "plain").write_text("a regular file")
    (folder / "payload").write_bytes(bytes(3000))
    (folder / "short").write_bytes(b"short")
    (folder / "full").mkdir()
    (folder / "full" / "kept").write_text("kept")
    write_bytes(folder / "message", Sender.train(config(), progress=False).send(bytes(3000)).content)
    Experiment.build(config()).train(folder / "run", progress=False)
    Experiment.build(config(posterior={"kind": "point"}, prior={"kind": "gaussian", "learn": "none"})).train(
        folder / "point", progress=False
    )
    Experiment.build(config()).train(folder / "unfinished", progress=False)
    (folder / "unfinished" / "ledger.json").unlink()
    for codec in ("relative_entropy", "quantised"):
        experiment = Experiment.build(config())
        experiment.train(None, progress=False)
        write_bytes(folder / f"{codec}.bb", pack_experiment(experiment, PackSettings(codec=codec), progress=False).content)
    for name in ("decimal", "two_part"):
        shutil.copy(GOLDEN / f"{name}.bb", folder)
    write_bytes(folder / "prequential.bb", prequential(config(prequential=BLOCKS), progress=False).content)
    np.savez(folder / "labelled.npz", inputs=np.eye(40, 4, dtype=np.float32), targets=np.arange(40) % 2)
    np.savez(folder / "others.npz", inputs=np.zeros((40, 4), dtype=np.float32), targets=np.zeros(40, dtype=np.int64))
    elsewhere = {"data": {"kind": "npz", "path": str(folder / "labelled.npz")}, "pack": {"codec": "quantised"}}
    experiment = Experiment.build(config(network={"kind": "sequential", "layers": ["Linear"]}, **elsewhere))
    experiment.train(None, progress=False)
    write_bytes(folder / "elsewhere.bb", send_two_part(experiment, progress=False).content)
    arrays = {
        "good": np.zeros((3, 8, 8)), "flat": np.zeros((3, 64)), "narrow": np.zeros((3, 7, 8)), "one": np.zeros(64), "none": np.zeros((0, 8, 8)),
        "nan": np.where(np.arange(64).reshape(8, 8) == 5, np.nan, 0.0)[None], "scalar": np.zeros(()), "text": np.array(["a", "b"]),
        "infinite": np.full((1, 8, 8), np.inf),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(folder / "misnamed.npz", input=arrays["good"])
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:-9])
    (folder / "cut.npz").write_bytes((folder / "misnamed.npz").read_bytes()[:-9])
    (folder / "empty.npy").write_bytes(b"")
    (folder / "empty").write_bytes(b"")
    return folder


def state(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def call(made, monkeypatch, run_command):
    """Runs a command in the folder, which must not change; returns exit code, stdout and stderr."""
    monkeypatch.chdir(made)

    def run(*arguments):
        before = state(made)
        said = run_command(*arguments)
        assert state(made) == before
        return said

    return run


REFUSED = {
    "send without payload": ("send toy.yaml -o out", "say what to send: `bitsback send CONFIG --payload FILE -o MSG`"),
    "send without anything": ("send --payload payload -o out", "say what to send: "),
    "send with both": ("send toy.yaml seed=3 --run run --payload payload -o out", "run was trained with another configuration than toy.yaml; leave CONFIG out"),
    "send without out": ("send toy.yaml --payload payload", "say where the message goes: -o MSG"),
    "send a payload that is gone": ("send toy.yaml --payload gone -o out", "cannot read gone: No such file or directory; give an existing file"),
    "send a folder": ("send toy.yaml --payload full -o out", "cannot read full: Is a directory; give an existing file"),
    "send a short payload": ("send toy.yaml --payload short -o out", r"too short to draw all weights: [\d,]+ more bits \([\d,]+ bytes\) are needed"),
    "send an empty payload": ("send toy.yaml --payload empty -o out", "too short to draw all weights"),
    "send a step of words": ("send toy.yaml --payload payload -o out --step fine", "--step fine is not a power of two; write 2.-8 or 0.00390625"),
    "send a step of three": ("send toy.yaml --payload payload -o out --step 3", r"--step 3 is not a power of two; the nearest is 2\^2"),
    "send a step of zero": ("send toy.yaml --payload payload -o out --step 0", "--step 0 is not a power of two"),
    "send a step below zero": ("send toy.yaml --payload payload -o out --step=-2", "--step -2 is not a power of two"),
    "send a step of nan": ("send toy.yaml --payload payload -o out --step nan", "--step nan is not a power of two"),
    "send an infinite step": ("send toy.yaml --payload payload -o out --step inf", "--step inf is not a power of two"),
    "send a huge power": ("send toy.yaml --payload payload -o out --step 2^99999", "--step 2.99999 is not a power of two"),
    "send a tiny power": ("send toy.yaml --payload payload -o out --step 2^-99999", "--step 2.-99999 is not a power of two"),
    "send steps with a hole": ("send toy.yaml --payload payload -o out --step 2^-8,", "--step  ?is not a power of two"),
    "send a step out of range": ("send toy.yaml --payload payload -o out --step 2^-60", "a step of 2.-60 is out of range; choose one between"),
    "send a point estimate": ("send --run point --payload payload -o out", "a point estimate has no bits to give back; .*--codec quantised"),
    "send an unfinished run": ("send --run unfinished --payload payload -o out", "unfinished has no ledger yet; finish it with"),
    "send no run": ("send --run full --payload payload -o out", "full is not a run directory"),
    "send to a folder": ("send toy.yaml --payload payload -o full", "cannot write full: "),
    "send below a file": ("send toy.yaml --payload payload -o plain/out", "cannot write plain/out: "),
    "receive without out": ("receive message", "say where the contents go: -o DIR"),
    "receive what is gone": ("receive gone -o out", "cannot read gone: No such file"),
    "receive a folder": ("receive full -o out", "cannot read full: Is a directory"),
    "receive a model file": ("receive quantised.bb -o out", "quantised.bb is a model file .quantised., not a message; use `bitsback unpack`"),
    "receive a decimal file": ("receive decimal.bb -o out", "decimal.bb is a model file .decimal., not a message; use `bitsback unpack`"),
    "receive labels of inputs elsewhere": ("receive elsewhere.bb -o out", r"elsewhere.bb needs the sender's inputs; say where they are \(--data.root=..., --data.path=...\)"),
    "receive labels of other inputs": ("receive elsewhere.bb -o out --data.path=others.npz", "the labels do not come back: these inputs are not the sender's"),
    "receive a two-part file into a full folder": ("receive two_part.bb -o full", "full is not empty; choose another --out"),
    "receive a prequential file into a full folder": ("receive prequential.bb -o full", "full is not empty; choose another --out"),
    "receive a two-part file with a setting": ("receive two_part.bb -o out --likelihood.classes=3", "says no place"),
    "receive text": ("receive plain -o out", "plain is not a bitsback file .it does not begin with 'bb'.; give one that send or pack has written"),
    "receive nothing": ("receive empty -o out", "empty is empty; copy it again"),
    "receive into a full folder": ("receive message -o full", "full is not empty; choose another --out"),
    "receive into a file": ("receive message -o plain", "plain is a file, not a directory"),
    "receive below a file": ("receive message -o plain/out", "cannot write plain/out: .*not a directory you may write to"),
    "receive with a setting": ("receive message -o out --training.epochs=1", "'--training.epochs=1' says no place: write --data.root=DIR"),
    "receive with a fixed place": ("receive message -o out --data.limit=9", "'data.limit' is fixed by the file; only places"),
    "receive with a place that is none": ("receive message -o out --data.root=full", "does not suit this bitsback .data.*root: Extra"),
    "receive with words": ("receive message -o out more", "'more' says no place"),
    "pack without out": ("pack run", "say where the model file goes: -o FILE"),
    "pack no run": ("pack full -o out", "full is not a run directory"),
    "pack what is gone": ("pack gone -o out", "gone is not a run directory"),
    "pack to a folder": ("pack run -o full", "cannot write full: it is a directory"),
    "pack below a file": ("pack run -o plain/out", "cannot write plain/out: "),
    "pack a point as blocks": ("pack point -o out --codec relative_entropy", "a point estimate has no bits to give back; use --codec quantised"),
    "pack a small budget as blocks": ("pack run -o out --codec relative_entropy --budget 20", r"a budget of 20 bytes is too small; the least for this network is \d+ bytes"),
    "pack a small budget on grids": ("pack run -o out --codec quantised --budget 20", r"a budget of 20 bytes is too small; the least for this network is \d+ bytes"),
    "pack with an unknown setting": ("pack run -o out --set tuning.step=3", "pack.tuning.step: Extra inputs are not permitted"),
    "pack with half a setting": ("pack run -o out --set index_bits", "--set index_bits: write KEY=VALUE"),
    "pack with wide indices": ("pack run -o out --set index_bits=60", "pack.index_bits: Input should be less than or equal to 24"),
    "pack with a setting inside a number": ("pack run -o out --set index_bits.more=1", "index_bits"),
    "pack with no value": ("pack run -o out --set index_bits=[", "cannot read '\\['"),
    "unpack without out": ("unpack quantised.bb", "say where the network goes: -o DIR"),
    "unpack a message": ("unpack message -o out", "message is a message, not a model file; use `bitsback receive`"),
    "unpack a two-part file": ("unpack two_part.bb -o out", "two_part.bb is a two_part message, not a model file; use `bitsback receive`"),
    "unpack a prequential file": ("unpack prequential.bb -o out", "prequential.bb is a prequential message, not a model file; use `bitsback receive`"),
    "unpack text": ("unpack plain -o out", "plain is not a bitsback file"),
    "unpack what is gone": ("unpack gone -o out", "cannot read gone: No such file"),
    "unpack into a full folder": ("unpack quantised.bb -o full", "full is not empty"),
    "unpack below a file": ("unpack quantised.bb -o plain/out", "cannot write plain/out: "),
    "unpack with a setting": ("unpack quantised.bb -o out --likelihood.classes=3", "says no place"),
    "inspect text": ("inspect plain", "plain is not a bitsback file"),
    "inspect nothing": ("inspect empty", "empty is empty"),
    "inspect a run": ("inspect run", "cannot read run: Is a directory"),
    "predict without data": ("predict quantised.bb", "say which inputs: --data FILE .\\.csv, \\.tsv, \\.parquet, \\.npy, \\.npz or IDX."),
    "predict what is gone": ("predict quantised.bb --data gone.npy", "cannot read gone.npy: .*No such file"),
    "predict a message": ("predict message --data good.npy", "message is a message, not a model file"),
    "predict a two-part file": ("predict two_part.bb --data good.npy", "two_part.bb is a two_part message, not a model file; use `bitsback receive`"),
    "predict a prequential file": ("predict prequential.bb --data good.npy", "prequential.bb is a prequential message, not a model file; use"),
    "predict text": ("predict plain --data good.npy", "plain is not a bitsback file"),
    "predict with a model that is gone": ("predict gone --data good.npy", "cannot read gone: No such file"),
    "predict narrow images": ("predict quantised.bb --data narrow.npy", r"the model takes inputs of shape \(1, 8, 8\), got \(7, 8\); give such inputs"),
    "predict narrow images by a run": ("predict run --data narrow.npy", r"the run takes inputs of shape \(1, 8, 8\), got \(7, 8\); give such inputs"),
    "predict one image": ("predict quantised.bb --data one.npy", "the model takes inputs of shape"),
    "predict no images": ("predict quantised.bb --data none.npy", "none.npy holds no inputs"),
    "predict a number": ("predict quantised.bb --data scalar.npy", "scalar.npy holds no inputs"),
    "predict words": ("predict quantised.bb --data text.npy", "text.npy holds no inputs .an array of type <U1, shape .2,..; numbers are needed"),
    "predict objects": ("predict quantised.bb --data objects.npy", "cannot read objects.npy: .*give an .npy, .npz or IDX file of inputs"),
    "predict NaN": ("predict quantised.bb --data nan.npy", "an input in nan.npy is NaN or infinite; clean the data first"),
    "predict infinity": ("predict run --data infinite.npy", "an input in infinite.npy is NaN or infinite"),
    "predict a cut array": ("predict quantised.bb --data cut.npy", "cannot read cut.npy"),
    "predict a cut archive": ("predict quantised.bb --data cut.npz", "cannot read cut.npz"),
    "predict an empty array": ("predict quantised.bb --data empty.npy", "cannot read empty.npy"),
    "predict misnamed arrays": ("predict quantised.bb --data misnamed.npz", r"misnamed.npz has no array 'inputs' \(did you mean 'input'\?\); arrays there: input"),
    "predict what is no IDX file": ("predict quantised.bb --data plain", "plain is not an IDX file"),
    "predict below a file": ("predict quantised.bb --data good.npy -o plain/means.npy", "cannot write plain/means.npy: "),
    "predict to a folder": ("predict quantised.bb --data good.npy -o full", "cannot write full: "),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused_in_one_sentence_without_a_trace(call, case):
    line, message = REFUSED[case]
    said = call(*line.split())
    assert said.code == 1
    assert said.out == ""
    assert re.search(message, said.err)
    assert said.err.splitlines()[-1].startswith("bitsback: ")
    assert said.err.count("bitsback: ") == 1
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "pack run -o out --codec zip",
            "Invalid value for '--codec': .*'zip' is not one of 'auto', 'relative_entropy', 'quantised'",
        ),
        ("pack run -o out --budget 0", "Invalid value for '--budget'"),
        ("pack run -o out --budget many", "Invalid value for '--budget'"),
        ("send toy.yaml --payload payload -o out --draws 0", "Invalid value for '--draws'"),
        ("send toy.yaml --payload payload --loud -o out", "No such option: --loud"),
        ("pack", "(?i)Missing argument 'run'"),
        ("receive", "(?i)Missing argument 'message'"),
        ("unpack -o out", "(?i)Missing argument 'file'"),
    ],
)
def test_the_parser_refuses_what_is_no_choice(call, line, message):
    said = call(*line.split())
    assert said.code == 2
    assert re.search(message, said.err)
    assert "Traceback" not in said.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("line", ["pack run -o {}/out", "receive message -o {}/out", "unpack quantised.bb -o {}/out",
                                  "send toy.yaml --payload payload -o {}/out", "predict run --data good.npy -o {}/out"])  # fmt: skip
def test_a_place_that_may_not_be_written_is_refused(call, tmp_path, line):
    tmp_path.chmod(0o500)
    said = call(*line.format(tmp_path).split())
    assert said.code == 1
    assert "cannot write" in said.err
    tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


FILLED = {
    "message": "receive",
    "quantised.bb": "unpack",
    "decimal.bb": "unpack",
    "two_part.bb": "receive",
    "prequential.bb": "receive",
}


@pytest.mark.parametrize("file", FILLED)
def test_an_empty_folder_is_filled(call, tmp_path, file):
    assert call(FILLED[file], file, "-o", tmp_path).code == 0
    assert (tmp_path / ("labels.npy" if file == "prequential.bb" else "model.safetensors")).stat().st_size > 0


@pytest.mark.parametrize("kind", ["decimal", "two_part", "prequential"])
def test_inspect_says_which_kind_it_is_and_where_every_byte_goes(call, made, kind):
    said = call("inspect", f"{kind}.bb", "--json")
    assert said.code == 0
    found = json.loads(said.out)
    assert found["kind"] == kind
    size = (made / f"{kind}.bb").stat().st_size
    assert found["file_bytes"] == size
    assert round(sum(part["bits"] for part in found["parts"])) == 8 * size
    assert [part["bits"] for part in found["parts"] if part["name"] == "decimal digits"] == ([4] if kind == "decimal" else [])


@pytest.mark.parametrize("command", ["send", "pack", "receive", "unpack", "predict"])
def test_a_target_that_cannot_be_written_is_refused_before_any_training(call, monkeypatch, command):
    def never(*_arguments, **_options):
        raise AssertionError("trained or packed for nothing")

    monkeypatch.setattr(Experiment, "train", never)
    monkeypatch.setattr("bitsback.formats.model_file.write.pack_experiment", never)
    monkeypatch.setattr("bitsback.analysis.predict.predict_file", never)
    line = {"send": "send toy.yaml --payload payload -o plain/out", "pack": "pack run -o plain/out",
            "receive": "receive message -o plain/out", "unpack": "unpack quantised.bb -o plain/out",
            "predict": "predict quantised.bb --data good.npy -o plain/out"}[command]  # fmt: skip
    assert "cannot write plain/out" in call(*line.split()).err


@pytest.mark.parametrize("wrong", [float("nan"), -1e6])
@pytest.mark.parametrize("command", ["pack", "send"])
def test_a_run_whose_std_is_nan_or_zero_is_refused(made, tmp_path, monkeypatch, capsys, command, wrong):
    from bitsback.atomic_io import read_tensors, write_tensors

    run = shutil.copytree(made / "run", tmp_path / "run")
    path = run / "checkpoint" / "state.safetensors"
    tensors, metadata = read_tensors(path)
    name = next(name for name in tensors if name.endswith("log_std") and name.startswith("model/"))
    tensors[name] = torch.full_like(tensors[name], wrong)
    write_tensors(path, tensors, metadata)
    monkeypatch.chdir(tmp_path)
    options = ["--run", "run", "--payload", str(made / "payload")] if command == "send" else ["run"]
    monkeypatch.setattr(sys, "argv", ["bitsback", command, *options, "-o", "out"])
    monkeypatch.setenv("BITSBACK_DEBUG", "")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert re.search(r"bitsback: .*(NaN|not above zero|infinite).*; train it again", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
