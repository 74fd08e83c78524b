"""What every result can do: print itself, turn into a dict, and into a pandas table where pandas is installed."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from bitsback.errors import BitsbackError

__all__ = ["Record", "Result", "TableResult", "text_table"]

Record = Mapping[str, Any]


class Result(ABC):
    """A result of a command: ``print(result)`` shows what the command prints.

    >>> class Costs(Result):
    ...     def to_dict(self): return {"net_bits": 3.0}
    ...     def __str__(self): return "3 bits"
    >>> print(Costs()), Costs().to_json(indent=None), Costs().records()
    3 bits
    (None, '{"net_bits": 3.0}', [{'net_bits': 3.0}])
    """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and texts, under the names that ``--json`` prints."""

    @abstractmethod
    def __str__(self) -> str:
        """Return what a person is shown."""

    def records(self) -> Sequence[Record]:
        """Return the rows of the result's table: one for each entry, code, width, ...; one in all where it has no table."""
        return [self.to_dict()]

    def to_json(self, indent: int | None = 2) -> str:
        """Return :meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_pandas(self) -> Any:
        """Return :meth:`records` as a ``pandas.DataFrame``.

        Raises:
            BitsbackError: where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BitsbackError("to_pandas() needs pandas: `pip install pandas`; records() needs nothing") from error
        return pandas.DataFrame.from_records(list(self.records()))


class TableResult(Result):
    """A result that is a table: its JSON is the rows, as ``--json`` prints them."""

    @abstractmethod
    def records(self) -> Sequence[Record]:
        """Return the rows."""

    def to_json(self, indent: int | None = 2) -> str:
        """Return the rows as JSON."""
        return json.dumps(list(self.records()), indent=indent)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded to their widest cell; the first ``left`` are flush left, the others flush right.

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
