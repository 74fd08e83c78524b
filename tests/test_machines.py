"""A receiver trains again: under other kernels and threads it ends where the sender did, and where it does not it says so.

What it delivers is always right: labels that were coded, a payload that comes out whole, or a refusal.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from bitsback.config import Config
from bitsback.errors import FileError
from bitsback.formats.container import BitReader, unseal
from bitsback.formats.message.header import Header
from bitsback.formats.message.read import RefundLostError, receive_file
from bitsback.formats.message.write import Sender
from bitsback.formats.prequential import read as reading
from bitsback.formats.prequential.preamble import Head
from bitsback.formats.prequential.read import receive_prequential
from bitsback.formats.prequential.walk import Walk
from bitsback.formats.prequential.write import prequential
from bitsback.formats.repeatable import Checking

DATA = {"kind": "digits", "limit": 100}
CONVOLUTION = [{"Conv2d": {"out_channels": 5, "kernel_size": 3, "bias": False}}, "BatchNorm2d", "ReLU", "Flatten", "Linear"]
BLOCKS = {"blocks": [16, 50, 100], "least_steps": 20}
OPTIMIZER = {"name": "Adam", "lr": 0.02}


def config(layers, training, **sections):
    network = {"kind": "sequential", "layers": layers}
    return Config.model_validate({"data": DATA, "network": network, "training": training, **sections})


MESSAGE = config(
    ["Flatten", {"Linear": {"out_features": 12}}, "ReLU", "Linear"],
    {"epochs": 60, "batch_size": 25, "threads": 1, "optimizer": {"lr": 0.03, "log_std_lr": 0.06}},
    prior={"kind": "laplace"},
)
"""12 weights to a unit: uniform initial weights in float32 would differ between kernels."""

ENSEMBLE = config(
    CONVOLUTION,
    {
        "epochs": 4,
        "batch_size": 16,
        "threads": 1,
        "optimizer": OPTIMIZER,
        "augment": {"shift_pixels": 1.0, "rotate_degrees": 8},
    },
    posterior={"kind": "point"},
    prior={"kind": "gaussian", "scale": 1.0, "learn": "none"},
    prequential={**BLOCKS, "predict": "ensemble", "members": 2},
)
SAMPLES = config(
    ["Flatten", {"Linear": {"out_features": 12}}, "Tanh", "Linear"],
    {"epochs": 4, "batch_size": 16, "threads": 2, "optimizer": OPTIMIZER},
    posterior={"kind": "gaussian", "std": 0.05},
    prior={"kind": "student_t"},
    prequential={**BLOCKS, "predict": "samples", "members": 3},
)
LABELS = MESSAGE.data.load().train.targets.numpy()
PAYLOAD = np.random.default_rng(0).bytes(6001)


@pytest.fixture(scope="module")
def labels_file():
    return prequential(ENSEMBLE, progress=False).content


@pytest.fixture(scope="module")
def message():
    return Sender.train(MESSAGE, progress=False).send(PAYLOAD).content


def received_labels(path, place):
    """How a file of labels was received: in full, or refused with so many labels; every label that was delivered is right."""
    refusal = None
    try:
        found = receive_prequential(path, place, progress=False)
    except FileError as error:
        refusal = str(error)
    if refusal is None:
        assert np.array_equal(found, LABELS)
        assert np.array_equal(np.load(place / "labels.npy"), LABELS)
        return "received"
    found = np.load(place / "labels_so_far.npy")
    known = found >= 0
    assert [file.name for file in place.iterdir()] == ["labels_so_far.npy"]
    assert np.array_equal(found[known], LABELS[known])
    assert known.sum() in (16, 50)
    assert refusal.startswith("this machine's arithmetic differs from the sender's at block")
    assert f"first {known.sum()} examples" in refusal
    return f"refused after {known.sum()}"


def received_message(path, place):
    """How a message was received: in full, or without the payload and why; labels are right in any case."""
    said = "received"
    try:
        assert receive_file(path, place, progress=False).payload == PAYLOAD
    except RefundLostError as error:
        said = str(error)
    assert np.array_equal(np.load(place / "labels.npy"), LABELS)
    assert (place / "payload").exists() == (said == "received")
    return said


# labels in the prequential code


def other_predictions(monkeypatch, error, seed=0):
    """Change every prediction by about ``error`` nats, as another order of sums does."""
    predict, noise = Walk._predict, torch.Generator().manual_seed(seed)

    def disturbed(walk, *arguments):
        return [raw + error * torch.randn(raw.shape, generator=noise) for raw in predict(walk, *arguments)]

    monkeypatch.setattr(Walk, "_predict", disturbed)


@pytest.mark.parametrize(("error", "expected"), [(0.0, "received"), (1e-11, "received"), (0.1, "refused after 16")])
def test_other_predictions_are_refused_once_they_show(error, expected, labels_file, tmp_path, monkeypatch):
    (tmp_path / "labels.bb").write_bytes(labels_file)
    other_predictions(monkeypatch, error)
    assert received_labels(tmp_path / "labels.bb", tmp_path / "out") == expected


def test_at_the_edge_of_rounding_labels_are_right_or_refused(labels_file, tmp_path, monkeypatch):
    """Errors from those that never show to those that always do: somewhere between, only a few of the tables differ."""
    (tmp_path / "labels.bb").write_bytes(labels_file)
    found = []
    for seed, error in enumerate(np.geomspace(1e-9, 0.1, 10)):
        with monkeypatch.context() as patch:
            other_predictions(patch, error, seed)
            found.append(received_labels(tmp_path / "labels.bb", tmp_path / f"out{seed}"))
    assert (found[0], found[-1]) == ("received", "refused after 16")


def test_tables_that_differ_under_one_digest_deliver_nothing(labels_file, tmp_path, monkeypatch):
    """Eight bits miss one difference in 256: then the labels' own digest refuses, or the stack that runs out."""
    (tmp_path / "labels.bb").write_bytes(labels_file)
    sent = iter(Head.take(BitReader(unseal(labels_file, "it")[1])).tables)
    monkeypatch.setattr(reading, "tables_digest", lambda whole: next(sent))
    other_predictions(monkeypatch, 1.0)
    with pytest.raises(FileError, match=r"labels that come out are not those that went in|bits ran out while decoding"):
        receive_prequential(tmp_path / "labels.bb", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# messages


class Disturbed:
    """Watches a training like :class:`Checking`, after it has changed every mean by about ``error`` stds; counts steps."""

    def __init__(self, monkeypatch, error, at=lambda step: True):
        self.steps, check, noise = 0, Checking.__call__, torch.Generator().manual_seed(0)

        def watch(checking, step, model):
            self.steps = step
            with torch.no_grad():
                for q in model.posteriors() if at(step) else ():
                    q.mean += error * q.std() * torch.randn(q.mean.shape, generator=noise, dtype=q.mean.dtype)
            check(checking, step, model)

        monkeypatch.setattr(Checking, "__call__", watch)


STEPS = 240
"""Of the message: digests are taken after 4, 30 and 120."""


@pytest.mark.parametrize("error", [0.0, 1e-13])
def test_last_bits_of_a_training_do_not_matter(error, message, tmp_path, monkeypatch):
    assert len(Header.take(BitReader(unseal(message, "it")[1])).states) == 3
    (tmp_path / "message.bb").write_bytes(message)
    disturbed = Disturbed(monkeypatch, error)
    assert received_message(tmp_path / "message.bb", tmp_path / "out") == "received"
    assert disturbed.steps == STEPS


@pytest.mark.parametrize(("first", "noticed"), [(1, 4), (5, 30), (31, 120)])
def test_a_training_that_goes_elsewhere_is_stopped_at_the_next_digest(first, noticed, message, tmp_path, monkeypatch):
    (tmp_path / "message.bb").write_bytes(message)
    disturbed = Disturbed(monkeypatch, 0.5, at=lambda step: step >= first)
    said = received_message(tmp_path / "message.bb", tmp_path / "out")
    assert said.startswith(
        f"labels and network were recovered, the payload was not: after step {noticed} of {STEPS} training here is not where"
    )
    assert "(another processor, torch version or thread count); receive it on a machine like the sender's" in said
    assert disturbed.steps == noticed


def test_what_no_digest_notices_is_noticed_at_the_end(message, tmp_path, monkeypatch):
    (tmp_path / "message.bb").write_bytes(message)
    disturbed = Disturbed(monkeypatch, 0.5, at=lambda step: step > 120)
    said = received_message(tmp_path / "message.bb", tmp_path / "out")
    assert "training here does not end at the sender's posterior" in said
    assert disturbed.steps == STEPS


# processes of their own

CAPABILITIES = ("default", "avx2", "")
"""Of torch's own kernels; the last is whatever this machine has."""

OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "NPY_DISABLE_CPU_FEATURES": " ".join(feature for feature in __cpu_dispatch__ if __cpu_features__.get(feature)),
}
"""A processor of long ago, for torch, its linear algebra, and numpy."""

X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86-64")


def machine(capability):
    return OLDEST if capability == "default" else {"ATEN_CPU_CAPABILITY": capability} if capability else {}


def fresh_process(command, capability, threads, *paths):
    """Send or receive in a new process that uses these kernels and, whatever is asked for, so many threads."""
    environment = {key: value for key, value in os.environ.items() if key not in OLDEST}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **machine(capability)}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait leave the core to others: four times as fast on busy cores
    command = [sys.executable, __file__, command, str(threads), *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FILES = {"message.bb": MESSAGE, "ensemble.bb": ENSEMBLE, "samples.bb": SAMPLES}


@X86
def test_an_older_processor_with_two_threads_decodes(message, labels_file, tmp_path):
    (tmp_path / "message.bb").write_bytes(message)
    (tmp_path / "ensemble.bb").write_bytes(labels_file)
    assert set(fresh_process("receive", "default", 2, tmp_path).values()) == {"received"}


@pytest.mark.slow
@X86
def test_every_kernel_and_thread_count_decodes_what_another_has_sent(tmp_path):
    senders = {(1, ""): "best", (2, "default"): "oldest", (1, "avx2"): "avx2"}
    for (threads, capability), name in senders.items():
        (tmp_path / name).mkdir()
        assert fresh_process("send", capability, threads, tmp_path / name) == [*FILES]
    folders = [tmp_path / name for name in senders.values()]
    for capability in CAPABILITIES:
        for threads in (1, 2):
            found = fresh_process("receive", capability, threads, *folders)
            assert len(found) == len(senders) * len(FILES)
            assert set(found.values()) == {"received"}, (capability, threads, found)


def _main(command, threads, *places):
    torch.set_num_threads(int(threads))
    torch.set_num_threads = lambda count: None  # the file's number is not obeyed
    if command == "send":
        for name, settings in FILES.items():
            send = prequential if "prequential" in settings.model_fields_set else send_message
            (Path(places[0]) / name).write_bytes(send(settings, progress=False).content)
        return [*FILES]
    found = {}
    for place in map(Path, places):
        for path in sorted(place.glob("*.bb")):
            receive = received_message if path.name == "message.bb" else received_labels
            found[str(path)] = receive(path, path.with_name(f"{path.stem}.{os.getpid()}"))
    return found


def send_message(settings, *, progress):
    return Sender.train(settings, progress=progress).send(PAYLOAD)


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
