"""Settings of a table's column, importable without torch and numpy."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat

from bitsback.registry import Settings

__all__ = ["ColumnKind", "ColumnName", "ColumnSettings"]

ColumnName = Annotated[str, BeforeValidator(lambda name: str(name) if isinstance(name, int | float) else name)]
"""Name of a column; YAML reads some as numbers."""

ColumnKind = Literal["number", "yes_no", "category"]


class ColumnSettings(Settings):
    """A column of inputs, as it was found in the training rows."""

    name: ColumnName
    kind: ColumnKind
    mean: float = Field(0.0, description="of a number; share of yes of a yes_no; a missing value becomes the mean")
    std: PositiveFloat = Field(1.0, description="std of a number")
    levels: tuple[str, ...] = Field((), description="texts of a category, sorted; any other one is an unseen one")
    missing: NonNegativeInt = Field(0, description="training rows without a value; if there are any, an input says where")

    @property
    def values(self) -> int:
        """Return the number of values of a category: the levels, the unseen one, and the missing one if there is one.

        >>> ColumnSettings(name="colour", kind="category", levels=("blue", "red")).values
        3
        """
        return len(self.levels) + 1 + bool(self.missing)
