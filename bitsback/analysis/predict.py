"""Predictions of a model file or a run for inputs in their stored form."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bitsback.analysis.sources import RunSource, experiment_of
from bitsback.data.arrays import REASONS, describe, read_npy, read_npz
from bitsback.data.idx import read_idx
from bitsback.errors import DataError, brief, near_miss
from bitsback.formats.model_file.read import load
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.base import Answer
from bitsback.model.draws import SHOWN_AFTER_SECONDS
from bitsback.result import TableResult
from bitsback.torch_state import seeded

__all__ = ["Prediction", "predict", "predict_file", "predict_run", "read_inputs"]

DRAWS = 20
ARRAYS = ("inputs", "test_inputs", "images")
OTHER_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".h5", ".hdf5", ".pkl", ".pickle", ".pt")


def read_inputs(path: Path) -> Tensor:
    """Read inputs from an ``.npy`` file, an ``.npz`` file (array ``inputs``, ``test_inputs`` or ``images``), or an IDX file.

    Returns:
        Inputs (n, ...), float32; IDX images get a channel axis.

    Raises:
        DataError: the file cannot be read, or holds no finite numbers.
    """
    path = path.expanduser()
    if path.suffix in (".npy", ".npz"):
        try:
            with path.open("rb") as file:
                start = file.read(2)
            array = _choose(read_npz(path), path) if start == b"PK" else read_npy(path)
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
    return tensor


def _describe(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return describe(file.read(64))
    except OSError as error:
        return error.strerror or str(error)


def _choose(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    name = next((name for name in ARRAYS if name in arrays), None)
    if name is None:
        hint = near_miss("inputs", arrays)
        raise DataError(f"{path} has no array 'inputs'{hint}; arrays there: {brief(', '.join(sorted(arrays))) or 'none'}")
    return arrays[name]


@dataclass(frozen=True)
class Prediction(TableResult):
    """Predictions for n inputs.

    Attributes:
        means: predictive means (n, ...): probabilities of classes or of yes, or rates of counts.
        answers: a record for each input, whose names depend on the likelihood.
    """

    means: Tensor
    answers: list[Answer]

    def records(self) -> list[Answer]:
        """Return the answers."""
        return self.answers

    def to_dict(self) -> dict[str, Any]:
        """Return the answers, under one name."""
        return {"answers": self.answers}

    def to_json(self, indent: int | None = None) -> str:
        """Return the answers as JSON, on one line."""
        return super().to_json(indent)

    def __str__(self) -> str:
        rows = (map(_cell, answer.values()) for answer in self.answers)
        return "\n".join("\t".join(row) for row in rows)

    @classmethod
    def of(cls, likelihood: Likelihood, draws: Iterable[Tensor]) -> "Prediction":
        """Average the predictions of several weight draws.

        The predictive variance is the mean of the noise variances plus the variance of the means.

        Args:
            likelihood: of the targets.
            draws: network outputs (n, ...), one tensor for each weight draw.

        Returns:
            The averaged predictions.
        """
        means: list[Tensor] = []
        noises: list[Tensor] = []
        for outputs in draws:
            means.append(likelihood.predict(outputs).double().cpu())
            variance = likelihood.variance(outputs)
            noises += [] if variance is None else [variance.double().cpu()]
        each = torch.stack(means)
        std = (torch.stack(noises).mean(0) + each.var(0, correction=0)).sqrt() if noises else None
        return cls(each.mean(0), likelihood.answers(each.mean(0), std))


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def predict(
    source: RunSource | str | Path, inputs: Tensor | str | Path, locations: Sequence[str] = (), *, draws: int = DRAWS
) -> Prediction:
    """Predict for inputs in their stored form, with a model file or a run averaged over draws of its posterior.

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
    given = inputs if isinstance(inputs, Tensor) else read_inputs(Path(inputs))
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return predict_file(Path(source), given, tuple(locations))
    return predict_run(source, given, draws)


@torch.no_grad()
def predict_file(path: Path, inputs: Tensor, locations: tuple[str, ...] = ()) -> Prediction:
    """Predict with a model file.

    Args:
        path: model file.
        inputs: (n, ...).
        locations: as in :func:`predict`.

    Returns:
        The predictions.
    """
    loaded = load(path, locations)
    return Prediction.of(loaded.likelihood, [loaded.outputs(inputs)])


@torch.no_grad()
def predict_run(run: RunSource | str | Path, inputs: Tensor, draws: int = DRAWS) -> Prediction:
    """Predict with a run, averaged over whole-network draws of its posterior.

    Args:
        run: a run directory, an opened run, or a trained experiment.
        inputs: (n, ...).
        draws: number of weight draws; one for a point estimate.

    Returns:
        The predictions.

    Raises:
        DataError: the inputs have another shape than the network's.
    """
    e = experiment_of(run)
    e.model.eval()
    shape, is_real = e.dataset.train.inputs.shape[1:], e.dataset.train.inputs.is_floating_point()
    prepared = e.dataset.preprocessing(inputs if is_real else inputs.long())
    if prepared.shape[1:] != shape:
        if prepared.shape[1:].numel() != shape.numel() or not prepared.ndim:
            raise DataError(f"the run takes inputs of shape {tuple(shape)}, got {tuple(prepared.shape[1:])}; give such inputs")
        prepared = prepared.reshape(len(prepared), *shape)
    prepared = prepared.to(e.model.dtype) if is_real else prepared.long()
    count = draws if e.model.smallest_std() is not None else 1

    def outputs() -> Iterator[Tensor]:
        for _ in tqdm(range(count), desc="draws", leave=False, delay=SHOWN_AFTER_SECONDS):
            with e.model.sample():
                yield torch.cat([e.model(part) for part in prepared.split(512)])

    with seeded(e.config.seed, torch.device("cpu")):
        return Prediction.of(e.likelihood, outputs())
