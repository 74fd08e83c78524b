"""Predictions of a model file or a run for inputs in their stored form."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitsback.analysis.sources import RunSource, experiment_of
from bitsback.data.arrays import REASONS, describe, read_npy, read_npz
from bitsback.data.idx import read_idx
from bitsback.errors import DataError, brief, near_miss
from bitsback.formats.model_file.read import load
from bitsback.likelihoods import Likelihood
from bitsback.model import Prediction

__all__ = ["predict", "predict_file", "predict_run", "read_inputs"]

DRAWS = 20
ARRAYS = {"inputs": "targets", "test_inputs": "test_targets", "images": "targets"}
"""Arrays of inputs in an NPZ file, and those of their targets."""
OTHER_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".h5", ".hdf5", ".pkl", ".pickle", ".pt")


def read_inputs(path: Path) -> Tensor:
    """Read inputs from an ``.npy`` file, an ``.npz`` file (array ``inputs``, ``test_inputs`` or ``images``), or an IDX file.

    Returns:
        Inputs (n, ...), float32; IDX images get a channel axis.

    Raises:
        DataError: the file cannot be read, or holds no finite numbers.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Tensor, np.ndarray | None]:
    """Return inputs, and the targets that stand beside them in an ``.npz`` file."""
    path, targets = path.expanduser(), None
    if path.suffix in (".npy", ".npz"):
        try:
            with path.open("rb") as file:
                start = file.read(2)
            array, targets = _choose(read_npz(path), path) if start == b"PK" else (read_npy(path), None)
        except REASONS as error:
            raise DataError(f"cannot read {path}: {brief(error)}; give an .npy, .npz or IDX file of inputs") from error
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
    return tensor, targets


def _describe(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return describe(file.read(64))
    except OSError as error:
        return error.strerror or str(error)


def _choose(arrays: dict[str, np.ndarray], path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    name = next((name for name in ARRAYS if name in arrays), None)
    if name is None:
        hint = near_miss("inputs", arrays)
        raise DataError(f"{path} has no array 'inputs'{hint}; arrays there: {brief(', '.join(sorted(arrays))) or 'none'}")
    return arrays[name], arrays.get(ARRAYS[name])


def _as_targets(values: np.ndarray, likelihood: Likelihood) -> Tensor:
    """Return targets as the likelihood takes them, class numbers for labels.

    Args:
        values: (n, ...), targets as they are stored.
        likelihood: with its labels, if it has any.

    Returns:
        (n, ...).

    Raises:
        DataError: for texts where numbers are needed, and for unknown labels.
    """
    labels, ignore = getattr(likelihood, "labels", None), likelihood.ignore
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if labels is None:
        if values.dtype.kind not in "biuf":
            raise DataError(f"the targets are of type {values.dtype}, and a '{likelihood.kind}' likelihood takes numbers")
        return torch.from_numpy(values.astype(np.float64 if values.dtype.kind == "f" else np.int64))
    known, are_texts = np.array(labels), values.dtype.kind == "U"
    hidden = np.zeros(values.shape, dtype=bool) if ignore is None else values == ("" if are_texts else ignore)
    if are_texts == (known.dtype.kind == "U"):
        order = known.argsort()
        numbers = order[np.searchsorted(known[order], values).clip(max=len(known) - 1)]
        wrong = values[(known[numbers] != values) & ~hidden]
    else:
        numbers, wrong = np.zeros(values.shape, dtype=np.int64), values[~hidden]
    if wrong.size:
        shown = ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise DataError(f"a target is {wrong[0].item()!r}, which is none of the labels ({shown}); leave the targets out")
    return torch.from_numpy(np.where(hidden, 0 if ignore is None else ignore, numbers))


def predict(
    source: RunSource | str | Path, inputs: Tensor | str | Path, locations: Sequence[str] = (), *, draws: int = DRAWS
) -> Prediction:
    """Predict for inputs in their stored form, with a model file or a run averaged over draws of its posterior.

    Targets that stand beside the inputs in an .npz file (array ``targets`` or ``test_targets``) have their bits in the result.

    Args:
        source: a run directory, an opened run, a trained experiment, or a model file.
        inputs: (n, ...), or an .npy, .npz or IDX file of them.
        locations: for a model file whose features need the training inputs, such as ``data.root=DIR``.
        draws: for a run, number of weight draws.

    Returns:
        The predictions.

    Raises:
        DataError: the inputs cannot be read, or have another shape than the network's.
        FileError: the model file cannot be read.
        RunError: the run cannot be read.
    """
    given, targets = (inputs, None) if isinstance(inputs, Tensor) else _read(Path(inputs))
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return predict_file(Path(source), given, tuple(locations), targets)
    return predict_run(source, given, draws, targets)


def predict_file(path: Path, inputs: Tensor, locations: tuple[str, ...] = (), targets: np.ndarray | None = None) -> Prediction:
    """Predict with a model file.

    Args:
        path: model file.
        inputs: (n, ...).
        locations: as in :func:`predict`.
        targets: (n, ...), as they are stored, or None.

    Returns:
        The predictions.
    """
    loaded = load(path, locations)
    given = None if targets is None else _as_targets(targets, loaded.likelihood)
    return Prediction.of(loaded.likelihood, [loaded.outputs(inputs)], given)


def predict_run(
    run: RunSource | str | Path, inputs: Tensor, draws: int = DRAWS, targets: np.ndarray | None = None
) -> Prediction:
    """Predict with a run, averaged over whole-network draws of its posterior.

    Args:
        run: a run directory, an opened run, or a trained experiment.
        inputs: (n, ...).
        draws: number of weight draws; one for a point estimate.
        targets: (n, ...), as they are stored, or None.

    Returns:
        The predictions.

    Raises:
        DataError: the inputs have another shape than the network's, or the targets do not fit.
    """
    e = experiment_of(run)
    example = e.dataset.train.inputs[:1]
    if not isinstance(example, Tensor):
        raise DataError("the run's network takes several tensors; call load_run(RUN).experiment().model.predict(inputs)")
    shape, is_real = example.shape[1:], example.is_floating_point()
    prepared = e.dataset.preprocessing(inputs if is_real else inputs.long())
    if prepared.shape[1:] != shape:
        if prepared.shape[1:].numel() != shape.numel() or not prepared.ndim:
            raise DataError(f"the run takes inputs of shape {tuple(shape)}, got {tuple(prepared.shape[1:])}; give such inputs")
        prepared = prepared.reshape(len(prepared), *shape)
    given = None if targets is None else _as_targets(targets, e.likelihood)
    prepared = prepared if is_real else prepared.long()
    return e.model.predict(prepared, draws, likelihood=e.likelihood, targets=given, seed=e.config.seed, progress=True)
