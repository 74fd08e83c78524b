"""Settings of every test: one thread, a fixed seed, no deadline for a busy machine."""

import gzip
import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings

from bitsback.cli.app import main

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: the kernels of GPUs run in its interpreter
for number, action in (("SIGINT", signal.default_int_handler), ("SIGTERM", signal.SIG_DFL), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, number) and signal.getsignal(getattr(signal, number)) is signal.SIG_IGN:
        signal.signal(getattr(signal, number), action)  # a shell's background jobs ignore Ctrl-C, and so would what tests start
torch.set_num_threads(1)
settings.register_profile("bitsback", deadline=None, derandomize=True)
settings.load_profile("bitsback")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """A hundred pictures in MNIST's four files."""
    root, draw = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    for split, count in (("train", 200), ("t10k", 50)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
        (root / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = b"\0\0\x08\x01" + np.array([count], ">u4").tobytes()
        (root / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))
    return root


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs a command in this process; returns exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bitsback", *map(str, arguments)])
        monkeypatch.setenv("BITSBACK_DEBUG", "")
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call
