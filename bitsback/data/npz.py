"""NPZ: named numpy arrays in one file."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bitsback.data.arrays import REASONS, describe, read_npz
from bitsback.data.dataset import Dataset, DataSettings, Examples, registry, split
from bitsback.errors import DataError, brief, near_miss
from bitsback.registry import FilePath


@registry.register("npz")
class NpzSettings(DataSettings):
    """Arrays named ``inputs`` and ``targets`` (and, for a fixed test split, ``test_inputs`` and ``test_targets``).

    Targets are texts or whole numbers, which a categorical likelihood takes for labels, or real numbers; a one-column target
    array is flattened. Inputs of type uint8 are grey levels; ``scaling: none`` leaves whole-number inputs whole, as an
    Embedding needs them.
    """

    kind: Literal["npz"] = "npz"
    path: FilePath = Field(description="the .npz file")
    inputs: str = Field("inputs", description="name of the array of inputs, (n, ...)")
    targets: str = Field("targets", description="name of the array of targets, (n,) or (n, d)")
    test_inputs: str = Field("test_inputs", description="name of the array of test inputs")
    test_targets: str = Field("test_targets", description="name of the array of test targets")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share held out when the file has no test arrays")

    def load(self) -> Dataset:
        return self._load(self._arrays())

    def load_inputs(self) -> Dataset:
        arrays = self._arrays()
        for targets, inputs in ((self.targets, self.inputs), (self.test_targets, self.test_inputs)):
            if inputs in arrays and targets not in arrays:
                arrays[targets] = np.zeros(len(arrays[inputs]), dtype=np.int64)
        return self._load(arrays)

    def _load(self, arrays: dict[str, np.ndarray]) -> Dataset:
        texts = self._name_texts(arrays)
        inputs, targets = self._tensor(arrays, self.inputs), self._tensor(arrays, self.targets)
        _check_lengths(inputs, targets, self.path)
        test: Examples | None
        if self.test_inputs in arrays or self.test_targets in arrays:
            train = Examples(inputs, targets)
            test = Examples(self._tensor(arrays, self.test_inputs), self._tensor(arrays, self.test_targets), "test")
        else:
            train, test = split(inputs, targets, self.test_fraction, self.split_seed)
        grey = arrays[self.inputs].dtype == np.uint8
        return self.finish(
            self.path.stem, train, test, largest=255.0 if grey else 1.0, are_images=grey and inputs.ndim > 2, texts=texts
        )

    def _name_texts(self, arrays: dict[str, np.ndarray]) -> list[str] | None:
        """Put the places of text labels in their sorted order into the arrays of targets, and return that order."""
        named = {name: arrays[name] for name in (self.targets, self.test_targets) if name in arrays}
        are_texts = {array.dtype.kind in "US" for array in named.values()}
        if are_texts == {True, False}:
            raise DataError(
                f"array '{self.targets}' and array '{self.test_targets}' in {self.path} differ: one holds texts and the other "
                "numbers; write both alike"
            )
        if True not in are_texts:
            return None
        try:
            plain = {name: np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a.astype(str) for name, a in named.items()}
        except UnicodeDecodeError as error:
            raise DataError(f"the labels in {self.path} are bytes that are not UTF-8 text; write them as texts") from error
        texts = np.unique(np.concatenate([array.ravel() for array in plain.values()]))
        arrays |= {name: np.searchsorted(texts, array) for name, array in plain.items()}
        return [str(text) for text in texts]

    def _arrays(self) -> dict[str, np.ndarray]:
        try:
            with self.path.open("rb") as file:
                start = file.read(64)
            if not start.startswith(b"PK"):
                fix = "write it with numpy.savez('data.npz', inputs=x, targets=y)"
                raise DataError(f"cannot read {self.path} as NPZ: {describe(start)}; {fix}")
            return read_npz(self.path)
        except REASONS as error:
            raise DataError(
                f"cannot read {self.path} as NPZ: {brief(error)}; write it with numpy.savez, without objects"
            ) from error

    def _tensor(self, arrays: dict[str, np.ndarray], name: str) -> Tensor:
        if name not in arrays:
            known = brief(", ".join(sorted(arrays))) or "none"
            raise DataError(f"{self.path} has no array '{name}'{near_miss(name, arrays)}; arrays there: {known}")
        array = arrays[name]
        if array.dtype.kind not in "biuf":
            raise DataError(f"array '{name}' in {self.path} has type {array.dtype}; numbers are needed")
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"array '{name}' in {self.path} is empty; give at least one example")
        is_target = name in (self.targets, self.test_targets)
        is_double = array.dtype.kind == "f" and array.dtype.itemsize == 8
        real = np.float64 if is_target and is_double else np.float32  # a target's digits say its resolution
        tensor = torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "biu" else real))
        if is_target:
            return tensor.flatten() if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor
        tensor = tensor[:, None] if tensor.ndim == 1 else tensor  # one number for each example
        return tensor.float() if array.dtype in (np.uint8, np.bool_) else tensor


def _check_lengths(inputs: Tensor, targets: Tensor, path: Path) -> None:
    if len(inputs) != len(targets):
        raise DataError(f"{path} has {len(inputs)} inputs but {len(targets)} targets; give as many of each")
