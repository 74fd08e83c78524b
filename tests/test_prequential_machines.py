"""A receiver of the prequential code whose arithmetic is not the sender's gets the right labels or a refusal, never others."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsback.bitstream.container import BitReader, unseal
from bitsback.bitstream.prequential import Head
from bitsback.config import Config
from bitsback.errors import FileError
from bitsback.shipping import prequential as shipping
from bitsback.shipping.prequential import prequential, receive_prequential
from bitsback.shipping.prequential_walk import Walk

CONFIG = Config.model_validate(
    {
        "data": {"kind": "digits", "limit": 100},
        "network": {
            "kind": "sequential",
            "layers": [
                {"Conv2d": {"out_channels": 4, "kernel_size": 3, "bias": False}},
                "BatchNorm2d",
                "ReLU",
                "Flatten",
                "Linear",
            ],
        },
        "posterior": {"kind": "point"},
        "prior": {"kind": "gaussian", "scale": 1.0, "learn": "none"},
        "training": {"epochs": 4, "batch_size": 16, "threads": 1, "optimizer": {"name": "Adam", "lr": 0.02}},
        "prequential": {"blocks": [16, 50, 100], "predict": "ensemble", "members": 2, "least_steps": 20},
    }
)
LABELS = CONFIG.data.load().train.targets.numpy()


@pytest.fixture(scope="module")
def content():
    return prequential(CONFIG, progress=False).content


def outcome(path, place):
    """How a file was received: in full, or refused with so many labels; every label that was delivered is right."""
    refusal = None
    try:
        found = receive_prequential(path, place, progress=False)
    except FileError as fault:
        refusal = str(fault)
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


def other_arithmetic(monkeypatch, error, seed=0):
    """Change every prediction by about ``error`` nats, as another order of sums does."""
    predict, noise = Walk._predict, torch.Generator().manual_seed(seed)

    def disturbed(walk, *arguments):
        return [raw + error * torch.randn(raw.shape, generator=noise) for raw in predict(walk, *arguments)]

    monkeypatch.setattr(Walk, "_predict", disturbed)


@pytest.mark.parametrize(("error", "expected"), [(0.0, "received"), (1e-12, "received"), (1e-2, "refused after 16")])
def test_another_arithmetic_is_refused_once_it_shows(error, expected, content, tmp_path, monkeypatch):
    (tmp_path / "labels.bb").write_bytes(content)
    other_arithmetic(monkeypatch, error)
    assert outcome(tmp_path / "labels.bb", tmp_path / "out") == expected


def test_at_the_edge_of_rounding_labels_are_right_or_refused(content, tmp_path, monkeypatch):
    """Errors from those that never show to those that always do: somewhere between, only a few of the tables differ."""
    (tmp_path / "labels.bb").write_bytes(content)
    found = []
    for seed, error in enumerate(np.geomspace(1e-9, 1e-3, 10)):
        with monkeypatch.context() as patch:
            other_arithmetic(patch, error, seed)
            found.append(outcome(tmp_path / "labels.bb", tmp_path / f"out{seed}"))
    assert (found[0], found[-1]) == ("received", "refused after 16")


def test_tables_that_differ_under_one_digest_deliver_nothing(content, tmp_path, monkeypatch):
    """Eight bits miss one difference in 256: then the labels' own digest refuses, or the stack that runs out."""
    (tmp_path / "labels.bb").write_bytes(content)
    sent = iter(Head.take(BitReader(unseal(content, "it")[1])).tables)
    monkeypatch.setattr(shipping, "tables_digest", lambda whole: next(sent))
    other_arithmetic(monkeypatch, 1.0)
    with pytest.raises(FileError, match=r"labels that come out are not those that went in|bits ran out while decoding"):
        receive_prequential(tmp_path / "labels.bb", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


CAPABILITIES = ("default", "avx2", "")
"""Of torch's own kernels; the last is whatever this machine has."""


def fresh_process(verb, capability, threads, *paths):
    """Send or receive in a new process that uses these kernels."""
    environment = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    command = [sys.executable, __file__, verb, str(threads), *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86-64")
def test_float32_repeats_under_its_own_kernels_and_is_right_or_refused_under_others(tmp_path):
    paths = [tmp_path / f"{capability or 'best'}.bb" for capability in CAPABILITIES]
    for path, capability in zip(paths, CAPABILITIES, strict=True):
        assert fresh_process("send", capability, 1, path) == ["sent"]
    for path, capability in zip(paths, CAPABILITIES, strict=True):
        found = dict(zip(paths, fresh_process("receive", capability, 2, *paths), strict=True))
        assert found[path] == "received", path.name
        assert all(said == "received" or said.startswith("refused after") for said in found.values())


def _main(verb, threads, *paths):
    torch.set_num_threads(int(threads))
    if verb == "send":
        for path in paths:
            Path(path).write_bytes(prequential(CONFIG, progress=False).content)
        return ["sent"]
    return [outcome(path, path.with_name(f"{path.stem}.{os.getpid()}")) for path in map(Path, paths)]


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
