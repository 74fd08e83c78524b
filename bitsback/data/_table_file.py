"""Tables in files: texts of .csv and .tsv files as they stand there, typed columns of Parquet files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsback import limits
from bitsback.data._tables import parquet_batches
from bitsback.errors import DataError, brief
from bitsback.extras import require

if TYPE_CHECKING:
    from bitsback.data.settings import TableSettings

__all__ = ["for_typed", "is_table_file", "read_table"]

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Suffixes of files that are tables."""

DELIMITERS = ",;\t|"
"""Characters that are looked for between values."""

BYTES_PER_BYTE = 3
"""Memory of a text table, in bytes for each byte of its file: its bytes as read, its texts and where they begin."""

HEAD_BYTES = 1 << 20
"""Most bytes of a line of names."""

SHOWN_CHARACTERS = 80
"""Most characters of a line that are quoted."""


def is_table_file(path: Path) -> bool:
    """Return whether a file is a table, by its suffix.

    >>> is_table_file(Path("houses.csv")), is_table_file(Path("houses.npz"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def for_typed(settings: "TableSettings") -> "TableSettings":
    """Return the settings of a table whose missing values are null, as in Parquet files: no text means one."""
    return settings.model_copy(update={"missing": ()})


def read_table(path: Path, settings: "TableSettings") -> tuple[Any, "TableSettings"]:
    """Read a table.

    Args:
        path: of a .parquet file, or of text.
        settings: delimiter and encoding of text.

    Returns:
        a pyarrow table: the texts of a text file, white space included; typed columns of a Parquet file; and the settings by
        which its values are read.

    Raises:
        DataError: if the file cannot be read as a table, has no rows, or has columns without a name or of one name.
        MissingExtraError: without pyarrow.
    """
    path = path.expanduser()
    require("tables", f"reading {path.name}")
    try:
        with path.open("rb") as file:
            start = file.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give the path of an existing file") from error
    if not start.strip():
        raise DataError(f"{path} is empty; give a table with a line of names and a line for each row")
    is_typed = start.startswith(b"PAR1")
    table = _of_parquet(path) if is_typed else _of_text(path, start, settings)
    _check_names(table.column_names, path)
    if not table.num_rows:
        raise DataError(f"{path} has names of columns and no rows; give at least one row")
    return table, for_typed(settings) if is_typed else settings


def _of_parquet(path: Path) -> Any:
    import pyarrow

    batches = list(parquet_batches(path))
    if not batches:
        raise DataError(f"{path} has no rows; give at least one row")
    return pyarrow.Table.from_batches(batches)


def _of_text(path: Path, start: bytes, settings: "TableSettings") -> Any:
    import pyarrow
    from pyarrow import csv

    try:
        b"a".decode(settings.encoding, "replace")  # codecs that are not of text, such as hex, are found here
    except (LookupError, ValueError) as error:
        raise DataError(f"there is no encoding '{settings.encoding}' of text; set data.encoding=utf-8, or latin-1") from error
    is_wide = settings.encoding.lower().replace("-", "").startswith(("utf16", "utf32"))
    if b"\0" in start and not is_wide:
        wide = start.startswith((b"\xff\xfe", b"\xfe\xff"))
        said = "it is UTF-16 text; set data.encoding=utf-16, or" if wide else "it is neither text nor Parquet;"
        raise DataError(f"cannot read {path} as a table: {said} save it as .csv in UTF-8")
    limits.MEMORY.check(BYTES_PER_BYTE * path.stat().st_size, str(path), DataError, "use fewer rows")
    delimiter = settings.delimiter or _delimiter(path, start, settings.encoding)
    uneven: list[Any] = []

    def note(row: Any) -> str:
        uneven.append(row)
        return "skip"

    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note)
    empty = 0
    try:
        with csv.open_csv(path, csv.ReadOptions(use_threads=False, encoding=settings.encoding), parsing) as reader:
            names = reader.schema.names
        if len(names) == 1:  # an empty line is then a missing value, below the names
            parsing.ignore_empty_lines = False
            text = start.decode(settings.encoding, "replace").lstrip("\ufeff")
            empty = len(text[: len(text) - len(text.lstrip("\r\n"))].splitlines())
        uneven.clear()
        numbers = [str(number) for number in range(len(names))]  # names may be equal, types are by name
        reading = csv.ReadOptions(use_threads=False, encoding=settings.encoding, column_names=numbers, skip_rows=empty)
        as_texts = csv.ConvertOptions(column_types=dict.fromkeys(numbers, pyarrow.string()), strings_can_be_null=False)
        table = csv.read_csv(path, reading, parsing, as_texts).slice(1).rename_columns(names)  # the first row is the names
    except (UnicodeDecodeError, pyarrow.ArrowException, OSError) as error:
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            raise DataError(
                f"{path} is not {settings.encoding.upper()} text; save it as UTF-8, or set data.encoding, such as latin-1"
            ) from error
        raise DataError(
            f"cannot read {path} as a table: {brief(error)}; give a line of names and a line for each row"
        ) from error
    if uneven:
        first = uneven[0]
        raise DataError(
            f"line {first.number} of {path} has {first.actual_columns} values, and there are {first.expected_columns} columns: "
            f"{brief(first.text, SHOWN_CHARACTERS)!r}; put quotes around values that hold '{delimiter}', or set data.delimiter"
        )
    other = _delimiter(path, start, settings.encoding)
    if len(names) == 1 and other in names[0]:
        raise DataError(f"{path} has one column, '{brief(names[0], SHOWN_CHARACTERS)}'; set data.delimiter={other!r}")
    return table


def _delimiter(path: Path, start: bytes, encoding: str) -> str:
    """Return the delimiter that the line of names holds most of, outside of quotes."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    head = start.decode(encoding, "replace").lstrip("\ufeff\r\n").splitlines()[0]
    outside = "".join(head.split('"')[::2])
    return max(DELIMITERS, key=outside.count)


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"two columns of {path} are called '{twice}'; rename one")
    if len(names) > 1 and _are_numbers(names):
        raise DataError(
            f"the first line of {path} holds numbers ({brief(', '.join(names), SHOWN_CHARACTERS)}) in place of the names of "
            "its columns; put a line of names before it"
        )


def _are_numbers(names: Sequence[str]) -> bool:
    """Return whether names are all numbers, and not those of places: 0, 1, 2, ..."""
    if list(names) == [str(number) for number in range(len(names))]:
        return False
    try:
        return bool([float(name) for name in names])
    except ValueError:
        return False
