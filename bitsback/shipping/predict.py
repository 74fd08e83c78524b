"""predict: a model file or a run, and inputs as they are stored, become predictions."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitsback.config import Run, load_run
from bitsback.data.arrays import REASONS, describe, read_npy, read_npz
from bitsback.data.idx import read_idx
from bitsback.errors import DataError, brief, near_miss
from bitsback.model.accounting import seeded
from bitsback.shipping.model_file import load

DRAWS = 20
ARRAYS = ("inputs", "test_inputs", "images")
OTHER_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".h5", ".hdf5", ".pkl", ".pickle", ".pt")


def read_inputs(path: Path) -> Tensor:
    """Inputs as they are stored: an ``.npy`` array, an ``.npz`` file (its array ``inputs``), or an IDX file.

    Raises:
        DataError: when the file cannot be read or holds no numbers.
    """
    if path.suffix in (".npy", ".npz"):
        try:
            with path.open("rb") as file:
                start = file.read(2)
            array = _choose(read_npz(path), path) if start == b"PK" else read_npy(path)
        except REASONS as fault:
            raise DataError(f"cannot read {path}: {brief(fault)}; give an .npy, .npz or IDX file of inputs") from fault
    elif path.suffix in OTHER_SUFFIXES:
        raise DataError(f"cannot read {path}: {_describe(path)}; write the inputs with numpy.save('inputs.npy', x)")
    else:
        array = read_idx(path)
        array = array[:, None] if array.ndim == 3 else array  # images have a channel axis
    if array.dtype.kind not in "biuf" or array.ndim == 0 or len(array) == 0:
        raise DataError(f"{path} holds no inputs (an array of type {array.dtype}, shape {array.shape}); numbers are needed")
    tensor = torch.from_numpy(array.astype(np.float32))
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"an input in {path} is NaN or infinite; clean the data first")
    return tensor


def _describe(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return describe(file.read(64))
    except OSError as fault:
        return fault.strerror or str(fault)


def _choose(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    name = next((name for name in ARRAYS if name in arrays), None)
    if name is None:
        hint = near_miss("inputs", arrays)
        raise DataError(f"{path} has no array 'inputs'{hint}; arrays there: {brief(', '.join(sorted(arrays))) or 'none'}")
    return arrays[name]


def predict_file(path: Path, inputs: Tensor, places: tuple[str, ...] = ()) -> tuple[Tensor, tuple[str, ...] | None]:
    """Predictive means of a model file, and the names of its classes if it has them."""
    loaded = load(path, places)
    return loaded.predict(inputs), loaded.class_names


@torch.no_grad()
def predict_run(directory: Path, inputs: Tensor, draws: int = DRAWS) -> tuple[Tensor, tuple[str, ...] | None]:
    """Predictive means of a run, averaged over whole-network draws of its posterior."""
    run: Run = load_run(directory)
    e = run.experiment()
    e.model.eval()
    dtype = next((p.dtype for p in e.model.parameters()), torch.float32)
    inputs = inputs if e.dataset.train.inputs.is_floating_point() else inputs.long()
    prepared = e.dataset.preprocessing(inputs)
    shape = e.dataset.train.inputs.shape[1:]
    if prepared.shape[1:] != shape:
        if prepared.shape[1:].numel() != shape.numel() or not prepared.ndim:
            raise DataError(f"the run takes inputs of shape {tuple(shape)}, got {tuple(prepared.shape[1:])}; give such inputs")
        prepared = prepared.reshape(len(prepared), *shape)
    prepared = prepared.to(dtype) if e.dataset.train.inputs.is_floating_point() else prepared.long()
    total: Tensor | None = None
    with seeded(e.config.seed, torch.device("cpu")):
        for _ in range(draws if e.model.smallest_std() is not None else 1):
            with e.model.sample():
                found = torch.cat([e.likelihood.predict(e.model(part)) for part in prepared.split(512)])
            total = found if total is None else total + found
    assert total is not None
    return total / (draws if e.model.smallest_std() is not None else 1), getattr(e.config.likelihood, "class_names", None)


def rows_of(means: Tensor, names: tuple[str, ...] | None) -> list[dict[str, object]]:
    """One record for each input: class and probability, or the mean."""
    if means.ndim == 2 and means.shape[1] > 1:
        best = means.argmax(1).tolist()
        labels = [names[k] if names else k for k in best]
        return [
            {"class": label, "probability": round(float(row[k]), 6)} for label, row, k in zip(labels, means, best, strict=True)
        ]
    return [{"mean": round(float(value), 6)} for value in means.reshape(len(means), -1)[:, 0]]
