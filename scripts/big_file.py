"""Train on a file that does not fit, and measure the memory beside it.

python scripts/big_file.py [--bytes 2e9] [--folder DIR]

Writes 8-bit pictures with labels as NPY and as IDX files of that many bytes, trains a small network for one epoch on each
through `bitsback.data.source`, and on the IDX files through a configuration, and prints a line for each:

    memory NPY 180 MB anonymous, 310 MB resident, 41 s

Counted is the peak above the memory of the process once it has trained such a model on a few examples. Anonymous is what the
process holds; resident contains the pages of the file that are mapped at that moment. The files are deleted at the end.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import nn

import bitsback
from bitsback.config.schema import Config
from bitsback.data import source

SIZE, CLASSES, PIECE = 28, 10, 4096
LARGEST_BATCH = 16384


class Memory:
    """The peak of this process's memory while it is open, in MB above ``start``."""

    def __init__(self, start):
        self.start, self.peak, self.is_over = start, [0, 0], threading.Event()

    def __enter__(self):
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self.watcher.join()

    @staticmethod
    def now():
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return [int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "VmRSS")]

    def watch(self):
        while not self.is_over.wait(0.005):
            self.peak = [max(peak, now - start) for peak, now, start in zip(self.peak, self.now(), self.start, strict=True)]


def write(folder, count):
    """Pictures whose bright rows tell their labels, as NPY and as IDX."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    pieces = draw.integers(0, 128, (PIECE, SIZE, SIZE), dtype=np.uint8)
    with (folder / "x.npy").open("wb") as plain, (folder / "train-images-idx3-ubyte").open("wb") as idx:
        npy.write_array_header_1_0(plain, {"descr": "|u1", "fortran_order": False, "shape": (count, 1, SIZE, SIZE)})
        idx.write(b"\0\0\x08\x03" + np.array([count, SIZE, SIZE], ">u4").tobytes())
        for start in range(0, count, PIECE):
            some = pieces[: min(PIECE, count - start)].copy()
            some[np.arange(len(some)), 2 * labels[start : start + PIECE]] += 64
            plain.write(some)
            idx.write(some)
    np.save(folder / "y.npy", labels)
    few = 100
    write_idx(folder / "train-labels-idx1-ubyte", labels)
    write_idx(folder / "t10k-images-idx3-ubyte", pieces[:few])
    write_idx(folder / "t10k-labels-idx1-ubyte", labels[:few])


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes())


def on_source(examples, batch):
    torch.manual_seed(0)
    model = bitsback.bayesianize(nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, CLASSES)))
    settings = {"epochs": 1, "batch_size": batch, "threads": 1}
    logging = {"report": False}
    bitsback.train(model, None, examples, training=settings, ledger={"samples": 1}, logging=logging, progress=False)


def on_configuration(folder, batch):
    values = {
        "data": {"kind": "idx", "root": str(folder)},
        "network": {"kind": "sequential", "layers": ["Flatten", "Linear"]},
        "training": {"epochs": 1, "batch_size": batch, "threads": 1},
        "ledger": {"samples": 1},
        "logging": {"report": False},
    }
    bitsback.train(Config.model_validate(values), progress=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=2e9, help="size of each file")
    parser.add_argument("--folder", type=Path, help="where the files are written; default: the system's temporary folder")
    options = parser.parse_args()
    count = int(options.bytes) // SIZE**2
    batch = min(LARGEST_BATCH, max(256, count // 50))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write(folder, count)
        idx = (folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte")
        on_source(source(torch.rand(100, 1, SIZE, SIZE), torch.arange(100) % CLASSES), 50)  # loads what training needs
        ways = {
            "NPY": lambda: on_source(source(folder / "x.npy", folder / "y.npy"), batch),
            "IDX": lambda: on_source(source(*idx), batch),
            "configuration": lambda: on_configuration(folder, batch),
        }
        start = Memory.now()
        print(f"{count:,} pictures, {options.bytes:,.0f} bytes in each file, batches of {batch:,}")
        for way, call in ways.items():
            began = time.perf_counter()
            with Memory(start) as memory:
                call()
            anonymous, resident = memory.peak
            print(f"memory {way} {anonymous} MB anonymous, {resident} MB resident, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
