"""Base classes of results: text, dict, JSON and pandas output."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from bitsback.errors import BitsbackError

__all__ = ["Record", "Result", "TableResult", "text_table"]

Record = Mapping[str, Any]


class Result(ABC):
    """Base class of a command's result: ``print(result)`` shows the command's output.

    >>> class Costs(Result):
    ...     def to_dict(self): return {"net_bits": 3.0}
    ...     def __str__(self): return "3 bits"
    >>> print(Costs()), Costs().to_json(indent=None), Costs().records()
    3 bits
    (None, '{"net_bits": 3.0}', [{'net_bits': 3.0}])
    """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, under the names that ``--json`` prints."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the text output of the command."""

    def records(self) -> Sequence[Record]:
        """Return the rows of the result's table; a single row if it is not a table."""
        return [self.to_dict()]

    def to_json(self, indent: int | None = 2) -> str:
        """Return :meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_pandas(self) -> Any:
        """Return :meth:`records` as a ``pandas.DataFrame``.

        Raises:
            BitsbackError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BitsbackError("to_pandas() needs pandas: `pip install pandas`; records() needs nothing") from error
        return pandas.DataFrame.from_records(list(self.records()))


class TableResult(Result):
    """Base class of a result that is a table; its JSON is the list of rows."""

    @abstractmethod
    def records(self) -> Sequence[Record]:
        """Return the rows."""

    def to_json(self, indent: int | None = 2) -> str:
        """Return the rows as JSON."""
        return json.dumps(list(self.records()), indent=indent)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format a table whose columns are padded to their widest cell.

    Args:
        head: column titles.
        rows: cells, as many in each row as titles.
        left: number of left-aligned columns; the others are right-aligned.

    Returns:
        Lines without a final newline.

    >>> print(text_table(["prior", "bits"], [["laplace", "9"], ["cauchy", "12"]]))
    prior    bits
    -------------
    laplace     9
    cauchy     12
    """
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        placed = zip(row, widths, range(len(widths)), strict=True)
        cells = [cell.ljust(width) if column < left else cell.rjust(width) for cell, width, column in placed]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line, rows)])
