"""Tables: training and test rows of a file, and the rows of another that predictions are asked for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitsback.data._column import ColumnSettings
from bitsback.data._dataset import Dataset, Examples, split
from bitsback.data._rows import View, as_rows
from bitsback.data._table_columns import Values, column_of, encoded, found_columns, values_of
from bitsback.data._table_file import for_typed, is_table_file, read_table
from bitsback.data._tables import is_frame, table_of
from bitsback.data._target_columns import class_numbers
from bitsback.errors import DataError, brief

if TYPE_CHECKING:
    from bitsback.data.settings import TableSettings

__all__ = ["COLUMNS_NOTE", "is_table", "load_table", "rows_of"]

COLUMNS_NOTE = "levels, means and stds of the columns in the training inputs, which the receiver holds"
"""Note of the ledger on how the inputs are made."""

PARTS = {"train": False, "test": True}
"""Values of a column that says which rows are test rows."""

TRUTH = ("false", "true")
"""Labels of targets that are truth values, however a file writes them."""

TEST_SHARE = 0.2
"""Share of rows held out, unless the settings say another, or name a column."""

SAME = 1e-6
"""Relative difference up to which means and stds are the same."""

MOST_NAMED = 30
"""Most columns that a message lists."""


def load_table(settings: "TableSettings", *, inputs_only: bool) -> Dataset:
    """Load a table as a data set.

    Args:
        settings: of the data.
        inputs_only: replace the targets, which may be missing, by zeros.

    Returns:
        the data set, with what its columns are.

    Raises:
        DataError: if the table cannot be read, or a column cannot be what it is needed for.
    """
    what = str(settings.path)
    table, settings = read_table(settings.path, settings)
    _check_named(table, settings, what, inputs_only)
    if table.num_rows < 2:
        raise DataError(f"{what} has one row; give at least two")
    targets, texts = torch.zeros(table.num_rows, dtype=torch.int64), None
    if not inputs_only:
        targets, texts = _numbered(_target(table, settings, what), settings, what)
    row = torch.arange(table.num_rows)
    train, test = _splits(row, targets, table, settings, what)
    left_out = dict.fromkeys(settings.drop, "left out: data.drop")
    apart = {*settings.drop, settings.target, settings.split.column}
    names = [name for name in table.column_names if name not in apart]
    columns, constant = found_columns(table, names, train.inputs.numpy(), settings)
    left_out |= constant
    if settings.columns:
        _check_same(settings.columns, columns, what)
        columns = settings.columns
    if not columns:
        raise DataError(f"{what} has no column beside its target that varies; inputs are needed")
    inputs = as_rows(encoded(table, columns, settings, what))
    of = (lambda part: inputs[part]) if isinstance(inputs, Tensor) else inputs.selected
    train = replace(train, inputs=of(train.inputs))
    test = test and replace(test, inputs=of(test.inputs))
    scaled = settings.model_copy(update={"scaling": "none"})  # the columns say how numbers are scaled
    dataset = scaled.finish(settings.path.stem, train, test, texts=texts)
    noted = replace(dataset.train, assumed=(*dataset.train.assumed, COLUMNS_NOTE))
    scaling = "standard" if settings.scaling == "auto" else settings.scaling
    return replace(dataset, train=noted, scaling=scaling, columns=columns, left_out=left_out)


def _check_named(table: Any, settings: "TableSettings", what: str, inputs_only: bool) -> None:
    """Raise DataError for a name of the settings that no column has."""
    names = table.column_names
    if settings.target is None:
        listed = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
        raise DataError(f"say which column of {what} is to be predicted: target=NAME; its columns are: {listed}")
    for name in (*settings.drop, *settings.types, settings.split.column):
        if name is not None and not (inputs_only and name == settings.target):
            column_of(table, name, what)
    if not inputs_only:
        column_of(table, settings.target, what)
    if settings.target in (*settings.drop, settings.split.column):
        raise DataError(f"column '{settings.target}' of {what} is the target, and cannot be dropped or say train and test")
    apart = {*settings.drop, settings.target, settings.split.column}
    if (both := next((one.name for one in settings.columns if one.name in apart), None)) is not None:
        raise DataError(
            f"column '{both}' is an input in data.columns, and also the target, dropped or the column of the split; leave "
            "data.columns out, so that they are found again"
        )
    if "" in names and "" not in settings.drop:
        raise DataError(f"a column of {what} has no name; give it one, or leave it out: data.drop=['']")


def _check_same(written: tuple[ColumnSettings, ...], found: tuple[ColumnSettings, ...], what: str) -> None:
    """Raise DataError if the columns that the settings write out are not those of the training rows."""
    fix = "; give the table and the settings that they were found with, or leave data.columns out"
    of = {column.name: column for column in found}
    for one in written:
        other = of.pop(one.name, None)
        if other is None:
            raise DataError(f"data.columns has '{one.name}', which is no input among the training rows of {what}{fix}")
        said = (one.kind, one.levels, bool(one.missing))
        near = SAME * max(abs(other.mean), other.std)
        if (
            said != (other.kind, other.levels, bool(other.missing))
            or max(abs(one.mean - other.mean) - near, abs(one.std - other.std) - SAME * other.std) > 0
        ):
            raise DataError(f"data.columns says otherwise of '{one.name}' than the training rows of {what}{fix}")
    if of:
        raise DataError(f"data.columns leaves out '{next(iter(of))}', an input among the training rows of {what}{fix}")


def _target(table: Any, settings: "TableSettings", what: str, fix: str = "or leave such rows out") -> Values:
    """Return the target of every row; raises DataError where there is none."""
    assert settings.target is not None
    name = settings.target
    kind = settings.types.get(name)
    values = values_of(column_of(table, name, what), name, settings, kind)
    values = _one_spelling(values)
    missing = values.missing
    if missing.all():
        raise DataError(f"the target '{name}' of {what} has no value in any row; choose another column")
    if missing.any():
        raise DataError(
            f"the target '{name}' has no value in row {1 + int(missing.argmax())} of {what} ({int(missing.sum()):,} in all); "
            f"fill it, {fix}"
        )
    return values


def _one_spelling(values: Values) -> Values:
    """Return truth values as a category of the texts false and true, and others as they are."""
    if values.kind == "yes_no":
        return replace(values, kind="category", texts=TRUTH)
    low = [text.lower() for text in values.texts]
    if values.kind != "category" or not set(low) <= set(TRUTH):
        return values
    numbers, seen = values.numbers.copy(), ~values.missing
    numbers[seen] = np.array([TRUTH.index(text) for text in low])[numbers[seen].astype(np.int64)]
    return replace(values, numbers=numbers, texts=TRUTH)


def _numbered(values: Values, settings: "TableSettings", what: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return targets (n,), real or whole numbers, or class numbers with their texts."""
    first = values.numbers[0]
    if (values.numbers == first).all():
        said = repr(brief(values.texts[int(first)])) if values.texts else f"{first:g}"
        raise DataError(
            f"the target '{settings.target}' is {said} in every row of {what}: there is nothing to describe; choose "
            "another column"
        )
    if values.kind == "category":
        if len(values.texts) == len(values.numbers) and settings.types.get(settings.target or "") is None:
            raise DataError(
                f"the target '{settings.target}' of {what} is another text in every row; choose a column whose values repeat"
            )
        return class_numbers([values.texts[place] for place in values.numbers.astype(np.int64).tolist()], values.texts)
    return torch.from_numpy(_plain(values)), None


def _plain(values: Values) -> np.ndarray:
    """Return targets that are numbers, (n,): whole ones as int64, unless they are too large for float64 to hold them."""
    is_exact = np.abs(values.numbers).max() <= 2.0**53
    return values.numbers.astype(np.int64) if values.is_whole and is_exact else values.numbers


def _splits(row: Tensor, targets: Tensor, table: Any, settings: "TableSettings", what: str) -> tuple[Examples, Examples | None]:
    """Return training and test examples, whose inputs are the numbers of their rows."""
    name = settings.split.column
    if name is None:
        share = TEST_SHARE if settings.split.test is None else settings.split.test
        return split(row, targets, share, settings.split_seed)
    values = values_of(column_of(table, name, what), name, settings, "category")
    parts = [PARTS.get(text.lower()) for text in values.texts]
    odd = next((text for text, part in zip(values.texts, parts, strict=True) if part is None), None)
    if odd is not None or values.missing.any():
        place = int((values.missing if odd is None else values.numbers == values.texts.index(odd)).argmax())
        said = "empty" if odd is None else repr(brief(odd))
        raise DataError(f"row {place + 1} of column '{name}', which splits {what}, is {said}; write train or test in every row")
    held_out = torch.tensor(parts)[torch.from_numpy(values.numbers.astype(np.int64))]
    every = Examples(row, targets)
    if bool(held_out.all()):
        raise DataError(f"column '{name}' of {what} says test in every row; write train in some")
    test = replace(every.subset(row[held_out]), name="test") if bool(held_out.any()) else None
    return every.subset(row[~held_out]), test


def is_table(given: Any) -> bool:
    """Return whether rows to predict for are a pandas frame, or the path of a table."""
    return is_frame(given) or (isinstance(given, str | Path) and is_table_file(Path(given)))


def rows_of(given: Any, settings: "TableSettings") -> tuple[Tensor | View, np.ndarray | None, Any]:
    """Return inputs for the rows of another table, made as those of training.

    Args:
        given: pandas frame, or path of a table with the columns of the inputs, in any order.
        settings: of the data, with the columns that were found in training.

    Returns:
        inputs (n, ...); targets (n,), numbers or texts, if the table has a column of them; and the table, of pyarrow.

    Raises:
        DataError: if the table cannot be read, a column is missing, or holds something else than in training.
    """
    if is_frame(given):
        table, what, settings = table_of(given), "the frame", for_typed(settings)
    else:
        (table, settings), what = read_table(Path(given), settings), str(given)
    if not settings.columns:
        raise DataError("the run does not say what its columns were; train it again with this release")
    inputs = as_rows(encoded(table, settings.columns, settings, what))
    targets = None
    if settings.target in table.column_names and not _is_blank(table, settings):
        values = _target(table, settings, what, "or leave the column out: predictions need no target, only their bits do")
        is_text = values.kind == "category"
        targets = np.array(values.texts)[values.numbers.astype(np.int64)] if is_text else _plain(values)
    return inputs, targets, table


def _is_blank(table: Any, settings: "TableSettings") -> bool:
    """Return whether the column of the targets has no value."""
    assert settings.target is not None
    kind: Mapping[str, Any] = settings.types
    return bool(values_of(table.column(settings.target), settings.target, settings, kind.get(settings.target)).missing.all())
