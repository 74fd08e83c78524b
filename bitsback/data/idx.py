"""IDX, the format of MNIST and its relatives: big-endian arrays with a tiny header, plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from bitsback.data.dataset import Dataset, DataSettings, Examples, registry
from bitsback.errors import DataError
from bitsback.registry import FilePath

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, in native byte order; ``.gz`` files are unpacked on the way.

    Raises:
        DataError: when the file cannot be read, is not IDX, or is shorter or longer than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError(f"cannot read {path}: {fault}; fetch the file again") from fault
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise DataError(f"{path} is not an IDX file (it must begin with 00 00 and a known type); is it another format?")
    kind, dimensions = np.dtype(TYPES[content[2]]), content[3]
    header = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist()) if len(content) >= header else ()
    if not shape or len(content) - header != math.prod(shape) * kind.itemsize:
        raise DataError(f"{path} holds {len(content)} bytes, not what its header {shape} says; fetch the file again")
    return np.frombuffer(content, kind, offset=header).reshape(shape).astype(kind.newbyteorder("="))


@registry.register("idx")
class IdxSettings(DataSettings):
    """MNIST's format: four files in one directory, each plain or .gz."""

    kind: Literal["idx"] = "idx"
    root: FilePath = Field(Path("data/mnist"), description="directory of the four files")
    train_images: str = "train-images-idx3-ubyte"
    train_labels: str = "train-labels-idx1-ubyte"
    test_images: str = "t10k-images-idx3-ubyte"
    test_labels: str = "t10k-labels-idx1-ubyte"

    def load(self) -> Dataset:
        return self._load(inputs_only=False)

    def load_inputs(self) -> Dataset:
        return self._load(inputs_only=True)

    def _load(self, *, inputs_only: bool) -> Dataset:
        train, train_peak = self._read(self.train_images, self.train_labels, "training", inputs_only)
        test, _ = self._read(self.test_images, self.test_labels, "test", inputs_only)
        return self.finish(self.root.name, train, test, largest=train_peak)

    def _find(self, name: str) -> Path:
        for path in (self.root / name, self.root / f"{name}.gz"):
            if path.is_file():
                return path
        raise DataError(f"{self.root / name} (or the same with .gz) does not exist; put the file there or set data.root")

    def _read(self, images: str, labels: str, name: str, inputs_only: bool) -> tuple[Examples, float | None]:
        pictures = read_idx(self._find(images))
        missing = inputs_only and not any((self.root / f"{labels}{suffix}").is_file() for suffix in ("", ".gz"))
        answers = np.zeros(len(pictures), dtype=np.int64) if missing else read_idx(self._find(labels))
        peak = float(np.iinfo(pictures.dtype).max) if pictures.dtype.kind in "iu" else None
        if not np.array_equal(answers, np.nan_to_num(answers).astype(np.int64)):
            raise DataError(f"the {name} labels in {labels} are not whole numbers; labels must be whole numbers")
        inputs = torch.from_numpy(pictures.astype(np.float32))
        inputs = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs  # (n, channel, height, width)
        return Examples(inputs, torch.from_numpy(answers.astype(np.int64)), name), peak
