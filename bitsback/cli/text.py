"""Aligned plain text that survives a pipe."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded to their widest cell; the first ``left`` are flush left, the others flush right.

    >>> print(table(["prior", "bits"], [["laplace", "9"], ["cauchy", "12"]]))
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
