"""What a machine does to a training: flipped bits, kills, signals, two at a time, output that cannot be written."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bitsback import __version__
from bitsback.atomic_io import (
    check_new_directory,
    file_name,
    new_directory,
    new_neighbour,
    read_tensors,
    whole_directory,
    write_bytes,
    write_tensors,
)
from bitsback.cli import interrupt
from bitsback.cli.app import COMMANDS, main
from bitsback.config import Experiment, load_config
from bitsback.errors import RunError
from bitsback.locks import LOCK, InUseError, exclusive, remove_left_over_files
from bitsback.training.loop import Fit
from bitsback.training.session import Session

ROOT = Path(__file__).parent.parent
TOY = "data: {kind: digits, limit: 60}\ntraining: {epochs: 3, checkpoint_seconds: 0}\nledger: {samples: 2}\nlogging: {report: false}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.yaml").write_text(TOY)
    Experiment.build(load_config(folder / "toy.yaml")).train(folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    return shutil.copytree(finished, tmp_path / "run").relative_to(tmp_path)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def process(*arguments, **options):
    """A command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    words = [sys.executable, "-m", "bitsback", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(words, env=environment, **options)


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


# A bit that flipped


def test_every_flipped_bit_of_a_tensor_file_is_found(tmp_path):
    path = tmp_path / "file"
    write_tensors(path, {"é": torch.randn(2)}, {"z": '"\n'})
    whole = read_tensors(path)
    unsealed, sentences = set(), set()
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        try:
            read_tensors(path)
            unsealed.add(bit // 8)
        except RunError as error:
            sentences.add(str(error).partition(":")[0])
        flip(path, bit)
    begin = path.read_bytes().index(b"sha256")
    assert sentences == {f"cannot read {path}"}
    assert unsealed == set(range(begin, begin + 6))  # under another name there is no checksum; the rest is as it was
    assert read_tensors(path)[1] == whole[1] == {"z": '"\n'}


def test_other_programs_read_what_was_written(tmp_path):
    write_tensors(tmp_path / "file", {"a": torch.tensor([1.5, -2.0])}, {"facts": "x"})
    with safe_open(tmp_path / "file", framework="np") as file:
        assert file.get_tensor("a").tolist() == [1.5, -2.0]
        assert file.metadata()["facts"] == "x"
        assert re.fullmatch("[0-9a-f]{64}", file.metadata()["sha256"])


def test_equal_tensors_make_equal_files(tmp_path):
    for name in ("left", "right"):
        write_tensors(tmp_path / name, {"b": torch.ones(2), "a": torch.zeros(1)}, {"y": "1", "x": "2", "z": "3"})
    assert (tmp_path / "left").read_bytes() == (tmp_path / "right").read_bytes()


OPENING = (["ledger", "--recompute"], ["widen"], ["pack", "-o", "x.bb"], ["report"], ["plot", "RUN", "bells"], ["prune"], ["certify"],
           ["codelengths", "--codes", "variational"], ["predict", "--data", "x.npy"], ["send", "--payload", "toy.yaml", "-o", "m", "--run"],
           ["send", "--code", "two_part", "-o", "m", "--run"])  # fmt: skip


@pytest.mark.parametrize("command", OPENING, ids=" ".join)
def test_a_flipped_bit_of_the_checkpoint_stops_every_command_that_opens_the_run(run_command, run, command):
    np.save("x.npy", np.zeros((2, 8, 8), np.float32))
    path = run / "checkpoint" / "state.safetensors"
    flip(path, 8 * (path.stat().st_size - 3) + 5)
    before = files_of(Path("."))
    said = run_command(*[run if word == "RUN" else word for word in command], *([] if "RUN" in command else [run]))
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        f"bitsback: cannot read {path}: it is damaged, its checksum does not fit what is in it; take it from a copy, or write it "
        f"anew; or go on from the checkpoint before: bitsback train {run} --resume"
    )
    assert files_of(Path(".")) == before


@pytest.mark.parametrize("place", ["length", "checksum's name", "header", "first tensor", "last byte", "missing", "empty"])
def test_a_training_goes_on_from_the_checkpoint_before_to_the_same_end(run_command, run, finished, place):
    path = run / "checkpoint" / "state.safetensors"
    size, header = path.stat().st_size, int.from_bytes(path.read_bytes()[:8], "little")
    bits = {
        "length": 3,
        "checksum's name": 8 * 28,
        "header": 8 * 200 + 4,
        "first tensor": 8 * (8 + header) + 7,
        "last byte": 8 * size - 1,
    }
    if place in bits:
        flip(path, bits[place])
    elif place == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    said = run_command("train", run, "--resume", "--json")
    (sentence,) = (line for line in said.err.splitlines() if line.startswith("bitsback: "))
    state = "missing" if place == "missing" else "damaged"
    assert sentence == f"bitsback: {path} is {state}; going on from the checkpoint before, of epoch 3"
    assert said.code == 0
    for name in ("ledger.json", "posterior.safetensors", "config.yaml"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert run_command("ledger", run, "--recompute", "--json").out == (run / "ledger.json").read_text() + "\n"


def interrupted(monkeypatch, run_command, epochs):
    """A training in ``out`` that was interrupted after some epochs."""
    run_epoch = Fit.run_epoch

    def some_epochs(fit):
        if fit.epoch == epochs:
            raise KeyboardInterrupt
        return run_epoch(fit)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "run_epoch", some_epochs)
        assert run_command("train", "toy.yaml", "--out", "out").code == 130


def test_an_interrupted_training_goes_on_from_the_checkpoint_before_to_the_same_end(run_command, run, monkeypatch):
    interrupted(monkeypatch, run_command, 2)
    out = Path("out")
    flip(out / "checkpoint" / "state.safetensors", 8 * 1000)
    said = run_command("train", out, "--resume")
    assert "state.safetensors is damaged; going on from the checkpoint before, of epoch 1" in said.err
    for name in ("ledger.json", "posterior.safetensors"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    timeless = [
        [re.sub(r', "seconds": [^,}]+', "", line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (run, out)
    ]
    assert timeless[0] == timeless[1]
    assert len(timeless[0]) == 3


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_good_one(run_command, run, monkeypatch):
    """Killed right after it went on from the one before, a training has that one still."""
    path = run / "checkpoint" / "state.safetensors"
    good = path.with_name("previous.safetensors").read_bytes()
    flip(path, 8 * 1000)
    monkeypatch.setattr(Session, "run", lambda _session: signal.raise_signal(signal.SIGINT))
    assert run_command("train", run, "--resume").code == 130
    assert path.read_bytes() == good


def test_with_both_checkpoints_damaged_nothing_is_changed(run_command, run):
    for name in ("state", "previous"):
        flip(run / "checkpoint" / f"{name}.safetensors", 8 * 1000)
    before = files_of(run)
    said = run_command("train", run, "--resume")
    assert said.code == 1
    assert said.err == (
        "bitsback: cannot read run/checkpoint/state.safetensors, nor run/checkpoint/previous.safetensors: both checkpoints are "
        "damaged, and nothing was changed; take one from a copy, or train anew with another --out\n"
    )
    assert files_of(run) == before


@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_of_an_earlier_release_is_opened_and_not_resumed(run_command, run, number):
    path = run / "checkpoint" / "state.safetensors"
    tensors, metadata = read_tensors(path)
    facts = {"facts": metadata["facts"].replace("bitsback checkpoint 3", f"bitsback checkpoint {number}")}
    assert facts["facts"] != metadata["facts"]
    save_file(tensors, path, facts) if number == 1 else write_tensors(path, tensors, facts)  # the first had no checksum
    path.with_name("previous.safetensors").unlink()
    assert run_command("ledger", run, "--recompute", "--json").out == (run / "ledger.json").read_text() + "\n"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    said = run_command("train", run, "--resume")
    assert said.code == 1
    assert re.fullmatch(
        r"bitsback: .*state.safetensors was written by an earlier release, whose training took other steps: its results can be "
        r"read, but it cannot be resumed; train anew with another --out\n",
        said.err,
    )
    assert {file: file.read_bytes() for file in before} == before


def test_a_checkpoint_that_lost_its_checksum_is_damaged(run_command, run):
    path = run / "checkpoint" / "state.safetensors"
    save_file(*read_tensors(path)[:1], path, read_tensors(path)[1])
    assert "it is damaged, or of a later release" in run_command("widen", run).err


def test_an_earlier_run_with_a_flipped_bit_is_no_prior(run_command, run):
    path = run / "posterior.safetensors"
    flip(path, 8 * path.stat().st_size - 20)
    said = run_command("train", "toy.yaml", "prior={kind: checkpoint, run: run}", "--out", "out")
    assert said.code == 1
    assert re.search(r"cannot read .*run.posterior\.safetensors: .*its checksum does not fit", said.err)
    assert not Path("out").exists()


def test_a_training_that_begins_keeps_no_checkpoint_of_another(tmp_path):
    experiment = Experiment.build(
        load_config(ROOT / "configs" / "digits.yaml", ["data.limit=60", "training.epochs=1", "ledger.samples=1"])
    )
    for name in ("state", "previous"):
        write_bytes(tmp_path / "checkpoint" / f"{name}.safetensors", b"of another training")
    experiment.train(tmp_path, progress=False)
    with safe_open(tmp_path / "checkpoint" / "previous.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["facts"])["epoch"] == 0


# Two at a time


@pytest.mark.slow
def test_a_second_training_into_a_directory_is_refused_at_once(run_command, run):
    first = process("train", "toy.yaml", "training.epochs=100000", "--out", "out")
    try:
        out = Path("out")
        wait_for(lambda: (out / "config.yaml").exists())
        told = json.loads((out / LOCK).read_text())
        who = f"process {first.pid} on {told['host']} since {told['since']}"
        config, started = (out / "config.yaml").read_bytes(), first.pid
        for words in (["toy.yaml", "--out", "out"], ["out", "--resume"]):
            said = run_command("train", *words)
            assert said.code == 1
            assert (
                said.err
                == f"bitsback: out is being written by {who}; wait until it has finished, end it, or choose another place\n"
            )
        assert told["pid"] == started
        assert (out / "config.yaml").read_bytes() == config
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert (out / LOCK).exists()  # of a process that was killed: it blocks nobody
    assert run_command("compare", "toy.yaml", "seed=1,2", "--out", "out").err.startswith(
        "bitsback: out is not empty; choose another --out"
    )
    with exclusive(out / LOCK, out):
        assert json.loads((out / LOCK).read_text())["pid"] == os.getpid()
    assert not (out / LOCK).exists()


HOLD = """
import sys, time
from pathlib import Path
from bitsback.locks import exclusive
with exclusive(Path(sys.argv[1]), Path("it")):
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def held():
    """Lets another process hold a lock file until it is killed."""
    others = []

    def hold(path):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-c", HOLD, str(path)]
        others.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
        assert others[-1].stdout.readline() == "held\n"
        return others[-1]

    yield hold
    for other in others:
        other.kill()
        other.communicate()


@pytest.mark.parametrize("words", [
    ["receive", "plain", "-o", "out"], ["unpack", "plain", "-o", "out"], ["prune", "run", "-o", "out"],
    ["compare", "toy.yaml", "seed=1,2", "--out", "out"],
], ids=lambda words: words[0])  # fmt: skip
def test_verbs_that_fill_a_directory_are_refused_while_another_does(run_command, run, held, words):
    Path("plain").write_text("a regular file")
    other = held(Path("out") / LOCK if words[0] == "compare" else Path(f".out{LOCK}"))
    before = files_of(Path("."))
    assert f"bitsback: out is being written by process {other.pid} on " in run_command(*words).err
    assert files_of(Path(".")) == before


def test_a_lock_whose_process_was_killed_blocks_nobody(tmp_path, held):
    other = held(tmp_path / LOCK)
    with (
        pytest.raises(InUseError, match=f"it is being written by process {other.pid} on .* since 20"),
        exclusive(tmp_path / LOCK, Path("it")),
    ):
        pass
    other.kill()
    other.wait()
    with exclusive(tmp_path / LOCK, Path("it")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_somebody_filled_meanwhile_is_not_said_to_be_in_use_by_the_caller(tmp_path):
    with exclusive(tmp_path / LOCK, tmp_path):
        (tmp_path / "file").write_text("theirs")
        with pytest.raises(RunError, match="is not empty; choose another --out"), new_directory(tmp_path):
            pass
    assert files_of(tmp_path) == {"file": b"theirs"}


def test_a_lock_that_cannot_say_whose_it_is_holds(tmp_path, monkeypatch, held):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with exclusive(tmp_path / LOCK, Path("it")):
        refused = [sys.executable, "-c", HOLD, str(tmp_path / LOCK)]
        said = subprocess.run(refused, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert "it is being written by process unknown on unknown since unknown" in said.stderr


def test_a_thread_may_hold_a_lock_twice_and_another_thread_may_not(tmp_path):
    errors = []

    def other():
        try:
            with exclusive(tmp_path / LOCK, Path("it")):
                pass
        except InUseError as error:
            errors.append(str(error))

    with exclusive(tmp_path / LOCK, Path("it")), exclusive(tmp_path / LOCK, Path("it")):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    (error,) = errors
    assert error.startswith(f"it is being written by another thread of this process ({os.getpid()})")
    other()
    assert len(errors) == 1


@pytest.mark.parametrize(("owner", "is_free"), [
    ({"pid": 2**22 + 1, "host": "HERE"}, True), ({"pid": os.getpid(), "host": "HERE"}, False), ({"pid": 2**22 + 1, "host": "elsewhere"}, False),
    ({"pid": "\x1b[31m", "host": 5}, False), ([], False), ("x", False), ({"pid": -1, "host": "HERE"}, False), ({"pid": 10**30, "host": "HERE"}, False),
])  # fmt: skip
def test_where_a_file_system_has_no_locks_the_process_number_decides(tmp_path, monkeypatch, owner, is_free):
    monkeypatch.setattr("bitsback.locks.lock_file", lambda _handle: None)
    (tmp_path / LOCK).write_text(json.dumps(owner).replace("HERE", __import__("socket").gethostname()))
    if is_free:
        with exclusive(tmp_path / LOCK, tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []
        return
    before = files_of(tmp_path)
    with pytest.raises(InUseError) as refused, exclusive(tmp_path / LOCK, tmp_path):
        pass
    assert "\x1b" not in str(refused.value)
    assert files_of(tmp_path) == before


def test_folders_made_for_a_lock_go_away_unless_something_is_written(tmp_path):
    with new_directory(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "a" / "b"):
        write_bytes(tmp_path / "a" / "b" / "file", b"")
    assert files_of(tmp_path) == {"a/b/file": b""}


def test_trainings_of_one_second_get_directories_of_their_own(run_command, run, monkeypatch):
    class Clock:
        @staticmethod
        def now():
            return __import__("datetime").datetime(2026, 11, 28, 12)

    monkeypatch.setattr("bitsback.runs.datetime", Clock)
    for _ in range(2):
        assert run_command("train", "toy.yaml", "training.epochs=1").code == 0
    assert {path.name for path in Path("runs").iterdir()} == {"toy-20261128-120000", "toy-20261128-120000-2"}


# Signals


def ended(words, condition, number=signal.SIGTERM):
    """A command that got a signal when a condition held."""
    command = process(*words)
    try:
        wait_for(lambda: condition() or command.poll() is not None)
        command.send_signal(number)
        out, err = command.communicate()
    finally:
        command.kill()
    return SimpleNamespace(code=command.returncode, out=out, err=err)


@pytest.mark.slow
def test_sigterm_ends_a_training_as_ctrl_c_does(run_command, run):
    overrides = ["training.epochs=100000", "training.checkpoint_seconds=0"]
    metrics = Path("out/metrics.jsonl")
    said = ended(["train", "toy.yaml", *overrides, "--out", "out"], lambda: metrics.exists() and metrics.stat().st_size)
    assert said.code == 143
    assert said.err.splitlines()[-1] == "bitsback: interrupted by SIGTERM; continue with: bitsback train out --resume"
    assert "Traceback" not in said.err
    assert {path.name for path in Path("out").iterdir()} == {"config.yaml", "metrics.jsonl", "checkpoint"}
    with safe_open("out/checkpoint/state.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["facts"])["epoch"] >= 0
    read_tensors(Path("out/checkpoint/state.safetensors"))


@pytest.mark.parametrize(("number", "code", "by"), [
    (signal.SIGINT, 130, ""), (signal.SIGTERM, 143, " by SIGTERM"), (getattr(signal, "SIGHUP", signal.SIGTERM), None, " by SIG"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["report", "pack", "send", "train report"])
def test_a_signal_ends_every_command_with_one_line_and_whole_files(run_command, run, monkeypatch, number, code, by, place):
    """The signal comes while the command works: at its first look at an experiment, or while it writes."""
    words, where, now = {
        "report": (["report", "run"], "bitsback.report._page.page", ""),
        "train report": (["train", "run", "--resume"], "bitsback.report._page.page", "; the run is complete, and its page is written by: bitsback report run"),
        "pack": (["pack", "run", "-o", "x.bb"], "os.fsync", ""),
        "send": (["send", "--run", "run", "--code", "two_part", "-o", "x.bb"], "os.fsync", ""),
    }[place]  # fmt: skip
    if place == "train report":
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("report: false", "report: true"))
        (run / "report.html").unlink(missing_ok=True)
    monkeypatch.setattr(where, lambda *_: signal.raise_signal(number))
    before = {
        name: content for name, content in files_of(Path(".")).items() if "checkpoint" not in name and "summary" not in name
    }
    said = run_command(*words)
    assert said.code == (code or 128 + number)
    assert re.search(rf"bitsback: interrupted{by}\w*{re.escape(now)}\n$", said.err)
    after = {
        name: content for name, content in files_of(Path(".")).items() if "checkpoint" not in name and "summary" not in name
    }
    assert after == before


def test_signals_that_the_caller_ignores_stay_ignored(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupt.ended_by_signals():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_that_a_library_makes_of_a_signal_is_an_interruption(run_command, monkeypatch):
    def swallowed(_settings):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("half of numpy") from None

    monkeypatch.setattr("bitsback.config.json_schema", lambda: swallowed(None))
    said = run_command("schema")
    assert (said.code, said.err) == (143, "\nbitsback: interrupted by SIGTERM\n")


# What was left over

WRITE = """
import os, sys, time
from pathlib import Path
from bitsback.atomic_io import whole_directory, write_bytes
def stop(*_):
    print("writing", flush=True)
    time.sleep(1000)
if sys.argv[1] == "file":
    os.fsync = stop
    write_bytes(Path("file"), b"new")
else:
    with whole_directory(Path("folder")) as place:
        write_bytes(place / "part", b"half")
        stop()
"""


@pytest.fixture
def writing(tmp_path, monkeypatch):
    """Starts a process that stops in the middle of a write."""
    monkeypatch.chdir(tmp_path)
    others = []

    def start(what):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        others.append(subprocess.Popen([sys.executable, "-c", WRITE, what], env=environment, stdout=subprocess.PIPE, text=True))
        assert others[-1].stdout.readline() == "writing\n"
        return others[-1]

    yield start
    for other in others:
        other.kill()
        other.communicate()


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_killed_writer_s_file_is_removed_by_the_next_and_a_living_one_s_is_not(writing):
    writing("file")
    (living,) = names()
    killed = writing("file")
    killed.kill()
    killed.wait()
    assert len(names()) == 2
    Path(".other.abcdefgh.tmp").write_text("of another target")
    write_bytes(Path("file"), b"newer")
    assert names() == sorted([living, "file", ".other.abcdefgh.tmp"])
    remove_left_over_files(Path("."))
    assert names() == sorted([living, "file"])


def test_only_names_of_our_making_are_removed(tmp_path):
    theirs = {".file.swp", ".file.tmp", "file.abcdefgh.tmp", ".file.ABCDEFGH.tmp", ".file.abcdefghi.tmp", ".env"}
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    (tmp_path / ".file.abcdefgh.tmp").mkdir()
    remove_left_over_files(tmp_path)
    assert set(names(tmp_path)) == theirs | {".file.abcdefgh.tmp"}


def test_a_killed_writer_s_directory_is_removed_by_the_next(writing):
    other = writing("folder")
    with pytest.raises(InUseError, match=f"folder is being written by process {other.pid}"), whole_directory(Path("folder")):
        pass
    assert len(names()) == 2
    other.kill()
    other.wait()
    with whole_directory(Path("folder")) as place:
        write_bytes(place / "part", b"whole")
    assert files_of(Path(".")) == {"folder/part": b"whole"}


def test_a_directory_is_written_through_a_link_and_onto_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with new_neighbour(tmp_path / "link"), whole_directory(tmp_path / "link") as place:
        write_bytes(place / "part", b"1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_neighbour(Path(".")), whole_directory(Path(".")) as place:
        write_bytes(place / "part", b"2")
    assert (
        files_of(tmp_path) == {"real/part": b"1", "here/part": b"2", "link/part": b"1"}
        or (tmp_path / "link" / "part").read_bytes() == b"1"
    )
    assert sorted(names(tmp_path)) == ["here", "link", "real"]


def test_a_resumed_training_removes_what_a_killed_one_left(run_command, run):
    left = [run / ".ledger.json.abcdefgh.tmp", run / "checkpoint" / ".state.safetensors.a_cd3fgh.tmp", run / LOCK]
    for path in left:
        path.write_bytes(b"half")
    assert run_command("train", run, "--resume").code == 0
    assert not any(path.exists() for path in left)


def test_a_directory_in_which_no_training_has_begun_counts_as_empty(tmp_path, run_command, run):
    out = Path("out")
    write_bytes(out / "metrics.jsonl", b"")
    write_bytes(out / "checkpoint" / "state.safetensors", b"of epoch 0")
    write_bytes(out / "checkpoint" / ".state.safetensors.abcdefgh.tmp", b"")
    write_bytes(out / LOCK, b"")
    check_new_directory(out)
    write_bytes(out / "config.yaml", b"")
    with pytest.raises(RunError, match="out is not empty"):
        check_new_directory(out)
    (out / "config.yaml").unlink()
    write_bytes(out / "metrics.jsonl", b"{}\n")
    with pytest.raises(RunError, match="out is not empty"):
        check_new_directory(out)
    write_bytes(out / "metrics.jsonl", b"")
    assert run_command("train", "toy.yaml", "--out", "out").code == 0
    assert (out / "ledger.json").read_bytes() == (run / "ledger.json").read_bytes()
    assert names(out / "checkpoint") == ["previous.safetensors", "state.safetensors"]


# Standard output


class Raw(io.RawIOBase):
    """A stream that fails when it is written to, or takes what is written."""

    def __init__(self, error=None):
        self.error, self.content = error, b""

    def writable(self):
        return True

    def write(self, content):
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self.content += bytes(content)
        return len(content)


STREAMS = {"closed": (errno.EPIPE, "utf-8"), "full": (errno.ENOSPC, "utf-8"), "ascii": (None, "ascii")}
QUICK = ["watch", "ledger", "inspect", "priors", "schema", "unpack"]


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    """A folder with a run of a name that is not ASCII, a model file, a message and inputs."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(finished, folder / "Läufe")
    (folder / "toy.yaml").write_text(TOY)
    (folder / "letter").write_bytes(b"x" * 4000)
    np.save(folder / "x.npy", np.zeros((2, 8, 8), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (["pack", "Läufe", "-o", "ä.bb"], ["send", "toy.yaml", "--code", "two_part", "-o", "ä.bbm"]):
            patch.setattr(sys, "argv", ["bitsback", *words])
            with pytest.raises(SystemExit) as stopped:
                main()
            assert stopped.value.code == 0
    return folder


WORDS = {
    "train": ["toy.yaml", "logging.report=true", "--out", "NEW"], "watch": ["Läufe"], "report": ["Läufe", "-o", "NEW"],
    "plot": ["Läufe", "ledger", "-o", "NEW.svg"], "ledger": ["Läufe"], "widen": ["Läufe"], "compare": ["toy.yaml", "seed=1,2"],
    "codelengths": ["Läufe", "--codes", "uniform,variational"], "send": ["toy.yaml", "--payload", "letter", "-o", "NEW"],
    "receive": ["ä.bbm", "-o", "NEW"], "pack": ["Läufe", "-o", "NEW"], "unpack": ["ä.bb", "-o", "NEW"], "inspect": ["ä.bb"],
    "predict": ["ä.bb", "--data", "x.npy"], "prune": ["Läufe", "-o", "NEW"], "certify": ["Läufe", "--draws", "100"],
    "priors": ["gaussian"], "schema": [],
}  # fmt: skip
NAMES_A_FILE = ("watch", "plot", "pack", "receive", "report", "send", "train", "unpack", "prune")
assert set(WORDS) == {command.__name__ for command in COMMANDS}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("command", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WORDS])
def test_every_command_takes_an_output_that_is_closed_full_or_ascii(place, monkeypatch, command, stream):
    error, encoding = STREAMS[stream]
    monkeypatch.chdir(place)
    new = f"ü-{command}-{stream}"
    raw, err = Raw(error), io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), encoding))
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "argv", ["bitsback", command, *(word.replace("NEW", new) for word in WORDS[command])])
    monkeypatch.setenv("BITSBACK_DEBUG", "")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code or 0) == {"closed": 141, "full": 1, "ascii": 0}[stream]
    said = [line for line in err.getvalue().splitlines() if "bitsback: " in line]
    sentence = "bitsback: cannot write to standard output: No space left on device; what was to be written to files is there"
    assert said == ([sentence] if stream == "full" else [])
    if stream == "ascii":
        assert raw.content.decode("ascii").strip()
        assert ("\\xe4" in raw.content.decode() or "\\xfc" in raw.content.decode()) == (command in NAMES_A_FILE)
    if any("NEW" in word for word in WORDS[command]):
        written = place / (new + (".svg" if command == "plot" else ""))
        assert written.exists()
        assert command != "train" or {"ledger.json", "report.html"} <= {path.name for path in written.iterdir()}


def test_a_process_with_a_reader_that_went_away_or_without_output_is_quiet(run):
    reader, writer = os.pipe()
    os.close(reader)
    said = process("ledger", "run", stdout=writer)
    os.close(writer)
    assert (said.communicate()[1], said.returncode) == ("", 141)
    closed = process("ledger", "run", stdout=None, preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    closed.wait()
    assert closed.returncode == 0
    closed.communicate()


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_reads_its_progress(run):
    reader, writer = os.pipe()
    os.close(reader)
    training = process("train", "toy.yaml", "--out", "out", stdout=writer, stderr=writer)
    os.close(writer)
    assert training.wait() == 141
    assert (Path("out") / "ledger.json").read_bytes() == (run / "ledger.json").read_bytes()


@pytest.mark.slow
def test_a_machine_without_utf8_writes_the_same_files(run):
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    assert process("train", "toy.yaml", "--out", "out", env=environment).wait() == 0
    for name in ("ledger.json", "config.yaml", "posterior.safetensors"):
        assert (Path("out") / name).read_bytes() == (run / name).read_bytes()


# The page


def test_a_page_that_fails_does_not_fail_the_training(run_command, run, monkeypatch):
    def no_page(*_args, **_options):
        raise ImportError("no matplotlib\nhere")

    monkeypatch.setattr("bitsback.report.write_report", no_page)
    said = run_command("train", "toy.yaml", "logging.report=true", "--out", "out")
    assert said.code == 0
    sentence = "bitsback: the run is complete, but no page could be written: no matplotlib here; try again: bitsback report out"
    assert [line for line in said.err.splitlines() if line.startswith("bitsback")] == [sentence]
    assert said.out.endswith("The run is in out\n")
    assert (Path("out") / "ledger.json").read_bytes() == (run / "ledger.json").read_bytes()
    monkeypatch.setattr("bitsback.report.write_comparison", no_page)
    said = run_command("compare", "toy.yaml", "seed=1,2", "training.epochs=1", "--out", "several")
    assert said.code == 0
    assert (
        "bitsback: the runs are complete, but no page could be written: no matplotlib here; try again: bitsback report several"
        in said.err
    )
    assert "To look at them" not in said.out


def test_nothing_asks_for_the_metadata_of_an_installation(run_command, monkeypatch):
    for path in (ROOT / "bitsback").rglob("*.py"):
        assert "importlib.metadata" not in path.read_text(encoding="utf-8"), path
    assert run_command("--version").out == f"bitsback {__version__}\n"


# Other machines


def test_names_of_files_are_such_as_every_system_takes():
    assert file_name("prior.kind=laplace") == "prior.kind=laplace"
    assert file_name('data.root=C:\\a/b?*"<>|\n') == "data.root=C__a_b_______"
    assert file_name("a. . ") == "a"
    assert file_name("...") == "_"


def test_compare_makes_one_directory_for_each_value_whatever_is_in_it(run_command, run, tmp_path):
    (tmp_path / "A").mkdir()
    for name in ("a:1", "a?1"):
        np.savez(
            tmp_path / f"{name}.npz",
            inputs=np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32),
            targets=np.arange(20) % 2,
        )
    config = "data: {kind: npz, path: x}\nnetwork: {kind: sequential, layers: [Linear]}\ntraining: {epochs: 1}\nledger: {samples: 1}\nlogging: {report: false}\n"
    Path("own.yaml").write_text(config)
    said = run_command("compare", "own.yaml", f"data.path={tmp_path}/a:1.npz,{tmp_path}/a?1.npz", "--out", "several")
    assert said.code == 0, said.err
    stem = file_name(f"data.path={tmp_path}/a:1.npz")
    assert names("several") == sorted([f"{stem}-1", f"{stem}-2", "report.html"])


def test_text_is_opened_in_utf8_everywhere():
    opened = re.compile(r"(?<!os)(?<!archive)\.(?:read_text|open)\(([^()]*)\)")
    for path in (ROOT / "bitsback").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for given in opened.findall(line):
                assert "encoding=" in given or '"rb"' in given, f"{path}: {line}"


def test_metrics_end_their_lines_alike_everywhere(run):
    assert b"\r" not in (run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_killed_trainings_end_as_if_they_had_not_been():
    words = [
        sys.executable,
        ROOT / "scripts" / "kill_and_resume.py",
        "--kills",
        "3",
        "--configurations",
        "digits",
        "--most-per-training",
        "3",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["kills"] == 3
    assert summary["differences"] == summary["left_over"] == []
