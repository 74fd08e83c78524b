"""Columns of a table: what their values are, and the inputs that they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitsback import limits
from bitsback.data._column import ColumnKind, ColumnSettings
from bitsback.errors import DataError, brief, near_miss

if TYPE_CHECKING:
    from bitsback.data.settings import TableSettings

__all__ = ["Values", "column_of", "encoded", "found_columns", "values_of"]

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
DECORATED = r"^[^\w]*\d[\d.,\s]*[^\w]*$"
"""A number with other characters: 12%, $5, 1,000."""

DATE = (
    r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}([T ].*)?$|^\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})([T ].*)?$|^\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?$"
)
YES, NO = ("true", "1"), ("false", "0")
"""Texts of a yes_no column, in lower case."""

MOST = 0.5
"""Share of a column's values above which they decide what the column is."""

FEW = 20
"""Up to this many distinct texts may be a category, however few rows there are."""

SHOWN_CHARACTERS = 40
"""Most characters of a value that are quoted."""


@dataclass(frozen=True)
class Values:
    """Values of a column.

    Attributes:
        kind: what they are; None if there are none.
        numbers: (n,), float64, of numbers, and 0 or 1 of yes_no; of a category, the places of texts in ``texts``. NaN where
            there is no value.
        texts: distinct texts of a category, sorted.
        is_whole: whether numbers are written as whole numbers.
    """

    kind: ColumnKind | None
    numbers: np.ndarray
    texts: tuple[str, ...] = ()
    is_whole: bool = False

    def part(self, rows: np.ndarray) -> "Values":
        """Return the values of some rows (k,), with the texts that occur there."""
        numbers = self.numbers[rows]
        if self.kind != "category":
            return Values(self.kind, numbers, (), self.is_whole)
        seen = np.isfinite(numbers)
        used, places = np.unique(numbers[seen].astype(np.int64), return_inverse=True)
        numbers = np.full(len(rows), np.nan)
        numbers[seen] = places
        return Values(self.kind, numbers, tuple(self.texts[place] for place in used.tolist()))

    @property
    def missing(self) -> np.ndarray:
        """Return where there is no value, (n,)."""
        return np.isnan(self.numbers)


def column_of(table: Any, name: str, what: str, why: str = "") -> Any:
    """Return a column of a table.

    Args:
        table: of pyarrow.
        name: of the column.
        what: name of the table, for the message.
        why: clause on what the column is needed for, for the message.

    Returns:
        the column, a chunked array.

    Raises:
        DataError: if there is no such column.
    """
    names = table.column_names
    if name not in names:
        raise DataError(f"{what} has no column '{name}'{near_miss(name, names)}{why}; there are: {brief(', '.join(names))}")
    return table.column(name)


def values_of(column: Any, name: str, settings: "TableSettings", kind: ColumnKind | None = None) -> Values:
    """Find out what the values of a column are, and read them.

    Args:
        column: chunked array of pyarrow: texts, or typed values.
        name: of the column, for messages.
        settings: texts that mean a missing value, and the decimal point.
        kind: what the values have to be; None: to be found.

    Returns:
        the values.

    Raises:
        DataError: for dates, for numbers among which are texts, and for values that are not of the kind.
    """
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column, kind = column.cast(column.type.value_type), kind or "category"
    held = column.type
    if types.is_temporal(held):
        raise DataError(_dates(name, settings, next((value for value in column.to_pylist() if value is not None), "")))
    is_numeric = types.is_integer(held) or types.is_floating(held) or types.is_decimal(held)
    if types.is_string(held) or types.is_large_string(held):
        return _of_texts(column, name, settings, kind)
    if types.is_null(held):
        return Values(kind, np.full(len(column), np.nan))
    if not (is_numeric or types.is_boolean(held)):
        raise DataError(f"column '{name}' holds {held}; write numbers or texts, or leave it out with data.drop=[{name}]")
    if kind == "category":
        return _of_texts(column.cast(pyarrow.string()), name, settings, kind)
    numbers = column.cast(pyarrow.float64(), safe=False).to_numpy().astype(np.float64)
    wrong = np.isinf(numbers) if kind != "yes_no" else ~np.isin(numbers, (0, 1)) & ~np.isnan(numbers)
    if wrong.any():
        said = "neither 0 nor 1" if kind == "yes_no" else "not finite"
        raise DataError(f"row {1 + int(wrong.argmax())} of column '{name}' is {numbers[wrong][0]:g}, {said}; correct it")
    return Values(kind or ("number" if is_numeric else "yes_no"), numbers, (), types.is_integer(held))


def _of_texts(column: Any, name: str, settings: "TableSettings", kind: ColumnKind | None) -> Values:
    import pyarrow
    from pyarrow import compute

    texts = compute.utf8_trim_whitespace(column.combine_chunks().cast(pyarrow.string()))
    none = pyarrow.array(["", *settings.missing], pyarrow.string())
    present = compute.and_(texts.is_valid(), compute.invert(compute.is_in(texts, none)))
    texts = compute.if_else(present, texts, None)
    count = int(compute.sum(present).as_py() or 0)
    if not count:
        return Values(kind, np.full(len(column), np.nan))
    plain = texts
    if settings.decimal == ",":
        plain = compute.replace_substring(texts, ",", ".")
        point = _matches(texts, r"\.") & _matches(plain, NUMBER)
        if kind in (None, "number") and point.any():
            row, text = _first_wrong(texts, ~point)
            raise DataError(
                f"row {row} of column '{name}' is {text}, with a point, and data.decimal is a comma; write numbers such as "
                f"1234,5, or set data.types={{{name}: category}}"
            )
    if kind in (None, "number") and (quick := _as_numbers(plain)) is not None:
        return Values("number", quick, (), _are_whole(texts, quick, count))
    numeric = _matches(plain, NUMBER)
    if kind is None:
        kind = _kind(name, texts, numeric, count, settings)
    if kind == "category":
        coded = texts.dictionary_encode()
        found = coded.dictionary.to_pylist()
        order = sorted(range(len(found)), key=found.__getitem__)
        place = np.empty(len(found))
        place[order] = np.arange(len(found))
        numbers = np.full(len(column), np.nan)
        is_there = present.to_numpy(zero_copy_only=False)
        numbers[is_there] = place[coded.indices.drop_null().to_numpy()]
        return Values(kind, numbers, tuple(found[number] for number in order))
    if kind == "yes_no":
        low = compute.utf8_lower(texts)
        yes, no = (compute.is_in(low, pyarrow.array(words)).to_numpy(zero_copy_only=False) for words in (YES, NO))
        if (yes | no).sum() < count:
            row, text = _first_wrong(texts, yes | no)
            raise DataError(f"row {row} of column '{name}' is {text}, neither true nor false; correct it")
        return Values(kind, np.where(yes, 1.0, np.where(no, 0.0, np.nan)))
    said = "no number"
    if numeric.sum() == count:
        numeric, said = np.isfinite(compute.cast(plain, pyarrow.float64()).to_numpy(zero_copy_only=False)), "too large a number"
    row, text = _first_wrong(texts, numeric)
    fix = f"correct it, or set data.missing=[{text}] if it stands for a missing value of a .csv file"
    raise DataError(f"row {row} of column '{name}' is {text}, {said}; {fix}")


def _as_numbers(texts: Any) -> np.ndarray | None:
    """Return texts as numbers (n,), NaN where there is none; None if one of them is not a finite number."""
    import pyarrow
    from pyarrow import compute

    try:
        numbers = compute.cast(texts, pyarrow.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except pyarrow.ArrowInvalid:
        return None
    return numbers if np.isfinite(numbers).sum() == len(texts) - texts.null_count else None


def _are_whole(texts: Any, numbers: np.ndarray, count: int) -> bool:
    """Return whether ``count`` numbers are written without a decimal point."""
    known = numbers[~np.isnan(numbers)]
    return bool((known == np.round(known)).all()) and int(_matches(texts, r"^[+-]?\d+$").sum()) == count


def _matches(texts: Any, pattern: str) -> np.ndarray:
    """Return which texts match a pattern, (n,); missing ones do not."""
    from pyarrow import compute

    return compute.fill_null(compute.match_substring_regex(texts, pattern), False).to_numpy(zero_copy_only=False)


def _kind(name: str, texts: Any, numeric: np.ndarray, count: int, settings: "TableSettings") -> ColumnKind:
    """Return what texts are; raises DataError for dates, and for numbers with something else beside or around them."""
    from pyarrow import compute

    if numeric.sum() == count:
        return "number"
    if _matches(compute.utf8_lower(texts), "^(true|false)$").sum() == count:
        return "yes_no"
    if (dates := _matches(texts, DATE)).sum() > MOST * count:
        raise DataError(_dates(name, settings, texts[int(dates.argmax())].as_py()))
    if numeric.sum() > MOST * count:
        row, text = _first_wrong(texts, numeric)
        raise DataError(
            f"row {row} of column '{name}' is {text}, and {numeric.sum():,} of its {count:,} values are numbers; correct it, "
            f"or set data.missing=[{text}] if it stands for a missing value of a .csv file, or data.types={{{name}: category}}"
        )
    if (decorated := _matches(texts, DECORATED) & ~numeric).sum() > MOST * count:
        text = brief(texts[int(decorated.argmax())].as_py(), SHOWN_CHARACTERS)
        comma = "data.decimal=','" if settings.decimal == "." and "," in text else ""
        raise DataError(
            f"column '{name}' holds numbers with other characters, such as {text!r}; write plain numbers such as 1234.5"
            f"{', or set ' + comma + ' for a decimal comma' if comma else ''}, or set data.types={{{name}: category}}"
        )
    return "category"


def _dates(name: str, settings: "TableSettings", value: Any) -> str:
    """Return the message on a column of dates or times."""
    fix = "or choose another target" if name == settings.target else f"or leave it out: data.drop=[{name}]"
    return (
        f"column '{name}' holds dates or times, such as {brief(value, SHOWN_CHARACTERS)!r}, whose parts mean different things; "
        f"write what matters of them as columns of numbers (year, month, days since a day), {fix}"
    )


def _first_wrong(texts: Any, right: np.ndarray) -> tuple[int, str]:
    """Return number (from 1) and text of the first value that is there and not right."""
    row = int((~right & texts.is_valid().to_numpy(zero_copy_only=False)).argmax())
    return row + 1, repr(brief(texts[row].as_py(), SHOWN_CHARACTERS))


def found_columns(
    table: Any, names: Sequence[str], rows: np.ndarray, settings: "TableSettings"
) -> tuple[tuple[ColumnSettings, ...], dict[str, str]]:
    """Find the columns of the inputs in the training rows.

    Args:
        table: of pyarrow.
        names: of the columns.
        rows: numbers of the training rows, (k,).
        settings: of the data.

    Returns:
        the columns that vary; and, for each of the others, why it is left out.

    Raises:
        DataError: for a column that cannot be an input.
    """
    found, left_out = [], {}
    for name in names:
        kind = settings.types.get(name)
        values = values_of(table.column(name), name, settings, kind)
        trained = values.part(rows)
        missing = int(trained.missing.sum())
        known = trained.numbers[~trained.missing]
        if not len(known):
            left_out[name] = "left out: it has no value in a training row"
        elif (known == known[0]).all() and not missing:
            left_out[name] = "left out: it is the same in all training rows"
        else:
            if kind is None:
                _check_no_id(name, values, trained, settings)
            found.append(_measured(name, trained, known, missing))
    return tuple(found), left_out


def _check_no_id(name: str, values: Values, trained: Values, settings: "TableSettings") -> None:
    """Raise DataError for a column of names, free texts or row numbers."""
    fix = f"leave it out: data.drop=[{name}]; or keep it: data.types={{{name}: {values.kind}}}"
    if values.kind == "category":
        count, distinct = int((~trained.missing).sum()), len(trained.texts)
        if distinct == count > 1 or (distinct > FEW and distinct > MOST * count):
            raise DataError(
                f"column '{name}' has {distinct:,} different texts in {count:,} training rows, as identifiers or "
                f"free texts do; {fix}"
            )
    elif values.is_whole and len(values.numbers) > FEW and (np.diff(values.numbers) == 1).all():
        raise DataError(f"column '{name}' counts the rows from {values.numbers[0]:g} on, and would tell their order; {fix}")


def _measured(name: str, trained: Values, known: np.ndarray, missing: int) -> ColumnSettings:
    """Return a column with what is measured in the training rows, in float64."""
    assert trained.kind is not None
    if trained.kind == "category":
        return ColumnSettings(name=name, kind=trained.kind, levels=trained.texts, missing=missing)
    varies = trained.kind == "number" and bool((known != known[0]).any())
    mean, std = float(known.mean()), float(known.std()) if varies else 1.0
    return ColumnSettings(name=name, kind=trained.kind, mean=mean, std=std if std > 0 else 1.0, missing=missing)


def encoded(table: Any, columns: Sequence[ColumnSettings], settings: "TableSettings", what: str) -> Tensor | dict[str, Tensor]:
    """Return the inputs of a network.

    Args:
        table: of pyarrow, n rows, with at least these columns, in any order.
        columns: as they were found in the training rows.
        settings: scaling of numbers, and form of categories.
        what: name of the table, for messages.

    Returns:
        (n, k), float32; with embeddings of categories, a dict of ``numbers`` (n, k), unless there are none, and of
        ``categories`` (n, c), int64.

    Raises:
        DataError: if a column is missing, or does not hold what it held in training; if the inputs would not fit into memory.
    """
    apart = settings.categories == "embedding"
    width = sum(1 if apart or one.kind != "category" else len(one.levels) for one in columns) + len(columns)
    limits.MEMORY.check(limits.data_bytes(table.num_rows * width, 4), what, DataError, "use fewer rows, or drop columns")
    numbers: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for one in columns:
        column = column_of(table, one.name, what, ", which the network takes as an input" if settings.columns else "")
        values = values_of(column, one.name, settings, one.kind)
        missing = values.missing
        if one.kind == "category":
            level_of = {level: place for place, level in enumerate(one.levels, 1)}
            own = np.array([level_of.get(text, 0) for text in values.texts] or [0], dtype=np.int64)
            place = own[np.where(missing, 0, values.numbers).astype(np.int64)]
            place[missing] = len(one.levels) + 1 if one.missing and apart else 0
            if apart:
                places.append(place)
                continue
            numbers.extend((place[:, None] == np.arange(1, len(one.levels) + 1)).T.astype(np.float32))
        else:
            numbers.append(_scaled(np.where(missing, one.mean, values.numbers), one, settings.scaling))
        if one.missing:
            numbers.append(missing.astype(np.float32))
    joined = {"numbers": torch.from_numpy(np.stack(numbers, 1).astype(np.float32))} if numbers else {}
    if not places:
        return joined["numbers"]
    return {**joined, "categories": torch.from_numpy(np.stack(places, 1))}


def _scaled(numbers: np.ndarray, column: ColumnSettings, scaling: str) -> np.ndarray:
    """Return numbers (n,) as inputs; truth values are 0 and 1."""
    if column.kind == "yes_no" or scaling in ("none", "unit"):
        return numbers
    return (numbers - column.mean) / (1.0 if scaling == "centred" else column.std)
