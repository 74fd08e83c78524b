"""Tables of columns: pandas frames and Parquet files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback import limits
from bitsback.data._target_columns import target_name
from bitsback.errors import DataError, brief
from bitsback.extras import require

__all__ = ["is_frame", "parquet_batches", "parquet_frames", "table", "table_of"]


def is_frame(data: Any) -> bool:
    """Return whether data are a pandas ``DataFrame``, without importing pandas."""
    return any(kind.__name__ == "DataFrame" and kind.__module__.startswith("pandas") for kind in type(data).__mro__)


def table(frames: Iterable[Any], targets: str | None) -> tuple[Tensor, Any]:
    """Return the inputs and targets of a table.

    Args:
        frames: pandas frames, one below the other.
        targets: name of the column of targets; None: a usual one.

    Returns:
        inputs (n, k), float32, the other columns in order; and the column of targets (n,), numbers or a list of texts.

    Raises:
        DataError: for columns that are not numbers, and for missing values.
    """
    inputs, found, first = [], [], 0
    for frame in frames:
        wanted = target_name(frame.columns, targets)
        columns = {str(name): frame[name] for name in frame.columns}
        if len(columns) != len(frame.columns):
            raise DataError("two columns of the table have one name; rename one")
        target = columns.pop(wanted)
        if not columns:
            raise DataError(f"the table has no column beside its targets '{wanted}'; inputs are needed")
        inputs.append(torch.from_numpy(np.stack([_numbers(name, column, first) for name, column in columns.items()], 1)))
        found.append(_target(wanted, target, first))
        first += len(frame)
    if not first:
        raise DataError("the table is empty; give at least one row")
    are_texts = {isinstance(part, list) for part in found}
    if len(are_texts) > 1:
        raise DataError("the targets are texts in some rows and numbers in others; make them alike")
    return torch.cat(inputs), [text for part in found for text in part] if are_texts == {True} else np.concatenate(found)


def _numbers(name: str, column: Any, first: int) -> np.ndarray:
    """Return a column of inputs as float32; raises DataError for anything but numbers."""
    _check_complete(name, column, first)
    if getattr(column.dtype, "kind", "O") not in "biuf":
        row = next(iter(column), None)
        raise DataError(
            f"column '{name}' holds {column.dtype}, such as {brief(repr(row), 40)} in row {first}, and inputs are numbers; "
            "encode it (pandas.get_dummies for categories, numbers for dates), or drop it"
        )
    values = column.to_numpy(dtype=np.float32)
    odd = np.flatnonzero(~np.isfinite(values))
    if len(odd):
        raise DataError(f"column '{name}' is infinite in row {first + odd[0]}; fill it, or drop that row")
    return values


def _target(name: str, column: Any, first: int) -> Any:
    """Return a column of targets as numbers, or as a list of texts."""
    _check_complete(name, column, first)
    kind = getattr(column.dtype, "kind", "O")
    if kind in "biuf":
        return column.to_numpy(dtype=np.int64 if kind in "biu" else np.float64)
    values = column.tolist()
    odd = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if odd is not None:
        raise DataError(
            f"the target in column '{name}', row {first + odd}, is {brief(repr(values[odd]), 40)}, neither a number nor a "
            "text; convert the column with astype(str) or astype(float)"
        )
    return values


def _check_complete(name: str, column: Any, first: int) -> None:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise DataError(f"column '{name}' has no value in row {first + missing[0]}; fill it, or drop that row")


def parquet_frames(path: Path) -> Iterator[Any]:
    """Return the rows of a Parquet file as pandas frames, some at a time, as :func:`parquet_batches` reads them."""
    return (batch.to_pandas() for batch in parquet_batches(path))


def parquet_batches(path: Path) -> Iterator[Any]:
    """Yield the rows of a Parquet file, some at a time.

    Args:
        path: of the file.

    Yields:
        record batches of pyarrow, in order.

    Raises:
        DataError: if the file cannot be read, or its table would not fit into memory.
        MissingExtraError: without pandas and pyarrow.
    """
    require("tables", "reading Parquet files")
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            count = file.metadata.num_rows * file.metadata.num_columns
            limits.MEMORY.check(limits.data_bytes(count, 4), str(path), DataError, "use fewer")
            yield from file.iter_batches()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as Parquet: {brief(error)}; write it again with DataFrame.to_parquet") from error


def table_of(frame: Any) -> Any:
    """Return a pandas frame as a table of pyarrow.

    Args:
        frame: its index is left out.

    Returns:
        the table, with the names of the columns as texts.

    Raises:
        DataError: for two columns of one name, and for a column whose values are of several kinds.
        MissingExtraError: without pandas and pyarrow.
    """
    require("tables", "predicting for a pandas frame")
    import pyarrow

    names = [str(name) for name in frame.columns]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"two columns of the frame are called '{twice}'; rename one")
    columns = []
    for place, name in enumerate(names):
        try:
            columns.append(pyarrow.Array.from_pandas(frame.iloc[:, place]))
        except (pyarrow.ArrowException, OverflowError) as error:
            raise DataError(
                f"column '{name}' of the frame holds values of several kinds ({brief(error, 100)}); make them alike, such as "
                "with astype(str) or pandas.to_numeric"
            ) from error
    return pyarrow.table(columns, names)
