"""Predictions of a model file or a run for inputs in their stored form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback.analysis.sources import RunSource, experiment_of
from bitsback.data import DataSettings, Preprocessing
from bitsback.data.settings import TableSettings, TextSettings
from bitsback.data.table import is_table, rows_of
from bitsback.data.text_windows import text_given
from bitsback.data.unlabelled import as_stored, images_given, inputs_of, read_given
from bitsback.errors import DataError
from bitsback.formats.model_file.read import load
from bitsback.inputs import check_channels
from bitsback.likelihoods import Likelihood
from bitsback.model import Prediction

__all__ = ["predict", "predict_file", "predict_run", "read_inputs"]

DRAWS = 20


def read_inputs(path: Path) -> Any:
    """Read inputs from an ``.npy`` file, an ``.npz`` file (array ``inputs``, ``test_inputs`` or ``images``), or an IDX file.

    Returns:
        Inputs (n, ...), float32, or int64 if they are whole, a tensor; large ones are rows that are read a batch at a time. IDX
        images get a channel axis.

    Raises:
        DataError: the file cannot be read, or holds no finite numbers.
    """
    return read_given(path)[0]


@dataclass(frozen=True)
class _Given:
    """Inputs that a caller gave.

    Attributes:
        inputs: (n, ...), as they are stored.
        targets: (n, ...), in the same file, or None; a tensor if they are class numbers.
        table: whose rows the inputs were made of, or None.
        beside: columns that name the inputs.
    """

    inputs: Any
    targets: np.ndarray | Tensor | None = None
    table: Any = None
    beside: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def named(self, predicted: Prediction) -> Prediction:
        """Return predictions for the inputs with what says which input each is of."""
        return replace(predicted, table=self.table, beside=self.beside)


def _given(inputs: Any, data: DataSettings, likelihood: Likelihood, scale: Tensor) -> _Given:
    """Read the inputs that a caller gave.

    Args:
        inputs: as in :func:`predict`.
        data: settings of the data that the network was trained on.
        likelihood: with its labels, if it has any.
        scale: divisor of its inputs.

    Returns:
        the inputs; of images in folders of classes the names of these as targets.

    Raises:
        DataError: if they cannot be read, or are images in place of other numbers.
    """
    if isinstance(data, TableSettings) and is_table(inputs):
        return _Given(*rows_of(inputs, data))
    if isinstance(inputs, Tensor):
        return _Given(inputs)
    if not isinstance(inputs, str | Path):
        return _Given(as_stored(inputs_of(inputs))[0])
    if isinstance(data, TextSettings):
        return _Given(*text_given(Path(inputs), data, getattr(likelihood, "labels", None) or ()))
    images = images_given(Path(inputs), data)
    if images is None:
        return _Given(*read_given(Path(inputs), data))
    if data.kind != "images" and not (scale == 255).all():
        raise DataError(
            f"{inputs} holds images, and the network was trained on other numbers than grey levels from 0 to 255; give arrays "
            "as they were stored, in an .npy or .npz file"
        )
    found, names, folders = images
    labels = set(map(str, getattr(likelihood, "labels", None) or ()))
    known = folders if folders is not None and labels.issuperset(folders.tolist()) else None
    return _Given(found, known, beside={"file": names})


def _as_targets(values: np.ndarray | Tensor, likelihood: Likelihood) -> Tensor:
    """Return targets as the likelihood takes them, class numbers for labels.

    Args:
        values: (n, ...), targets as they are stored; a tensor holds class numbers already.
        likelihood: with its labels, if it has any.

    Returns:
        (n, ...).

    Raises:
        DataError: for texts where numbers are needed, and for unknown labels.
    """
    if isinstance(values, Tensor):
        return values
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


def predict(source: RunSource | str | Path, inputs: Any, locations: Sequence[str] = (), *, draws: int = DRAWS) -> Prediction:
    """Predict for inputs in their stored form, with a model file or a run averaged over draws of its posterior.

    A run or a file of a table takes other tables, .csv, .tsv, .parquet or a pandas frame, with the columns of its inputs in any
    order: a level that training did not have is an unseen one, and a missing value is the mean. ``save`` writes their rows with
    the predictions beside them.

    Targets that stand beside the inputs in an .npz or .parquet file (in an .npz file the arrays that the run's data name, or
    ``targets`` or ``test_targets``, and their masks) have their bits in the result. So have images in folders, if all of these
    are called as classes are; records of images begin with the name of the file.

    Args:
        source: a run directory, an opened run, a trained experiment, or a model file.
        inputs: (n, ...), an .npy, .npz, .parquet or IDX file of them, a table, a folder or .zip file of images, an image
            file, or whatever :meth:`BayesianModel.predict` takes.
        locations: for a model file whose features need the training inputs, such as ``data.root=DIR``.
        draws: for a run, number of weight draws.

    Returns:
        The predictions.

    Raises:
        DataError: the inputs cannot be read, or have another shape than the network's.
        FileError: the model file cannot be read.
        RunError: the run cannot be read.
    """
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return predict_file(Path(source), inputs, tuple(locations))
    return predict_run(source, inputs, draws)


def predict_file(path: Path, inputs: Any, locations: tuple[str, ...] = ()) -> Prediction:
    """Predict with a model file.

    Args:
        path: model file.
        inputs: as in :func:`predict`.
        locations: as in :func:`predict`.

    Returns:
        The predictions.
    """
    loaded = load(path, locations)
    given = _given(inputs, loaded.data_settings(), loaded.likelihood, torch.tensor(float(loaded.tree.get("scale", 1.0))))
    found, targets = given.inputs, given.targets
    if isinstance(found, Tensor):
        outputs = loaded.outputs(found)
    elif "rows" in loaded.tree:  # the network takes whole batches
        outputs = loaded.outputs(found.whole())
    else:
        outputs = torch.cat([loaded.outputs(part) for part in found.split(found.at_once())])
    known = None if targets is None else _as_targets(targets, loaded.likelihood)
    return given.named(Prediction.of(loaded.likelihood, [outputs], known))


def predict_run(run: RunSource | str | Path, inputs: Any, draws: int = DRAWS) -> Prediction:
    """Predict with a run, averaged over whole-network draws of its posterior.

    Args:
        run: a run directory, an opened run, or a trained experiment.
        inputs: as in :func:`predict`.
        draws: number of weight draws; one for a point estimate.

    Returns:
        The predictions.

    Raises:
        DataError: the inputs have another shape than the network's, or the targets do not fit.
    """
    e = experiment_of(run)
    told = _given(inputs, e.config.data, e.likelihood, e.dataset.preprocessing.scale)
    found, targets = told.inputs, told.targets
    example = e.dataset.train.inputs[:1]
    if isinstance(example, Tensor):
        prepare = _preparation(e.dataset.preprocessing, example)
        found = prepare(found) if isinstance(found, Tensor) else found.then(prepare)
    given = None if targets is None else _as_targets(targets, e.likelihood)
    predicted = e.model.predict(found, draws, likelihood=e.likelihood, targets=given, seed=e.config.seed, progress=True)
    return told.named(predicted)


def _preparation(preprocessing: Preprocessing, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function from stored inputs (n, ...) to those of a network that takes one tensor, such as the example."""
    shape, is_real = example.shape[1:], example.is_floating_point()

    def prepare(inputs: Tensor) -> Tensor:
        prepared = preprocessing(
            inputs if is_real and inputs.is_floating_point() else inputs.float() if is_real else inputs.long()
        )
        if prepared.shape[1:] != shape:
            check_channels(prepared.shape[1:], shape)
            if prepared.shape[1:].numel() != shape.numel() or not prepared.ndim:
                raise DataError(
                    f"the run takes inputs of shape {tuple(shape)}, got {tuple(prepared.shape[1:])}; give such inputs"
                )
            prepared = prepared.reshape(len(prepared), *shape)
        return prepared if is_real else prepared.long()

    return prepare
