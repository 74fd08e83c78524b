"""Registries of settings classes by ``kind``, and the base class of all settings."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from bitsback.errors import BitsbackError, near_miss

__all__ = ["Class", "FilePath", "GradientLearn", "Learn", "Registry", "Settings"]


def _placed(path: Path) -> Path:
    """Make a path absolute, ``~`` included."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # ~user, of a user without a home directory
        return path.absolute()


FilePath = Annotated[Path, AfterValidator(_placed)]
"""A path that is made absolute when it is read, ``~`` included, so that a run can be opened from any directory."""

Learn = Literal["none", "gradient", "closed_form"]
"""Estimation of a number that is not a weight: fixed, by gradient, or in closed form."""

GradientLearn = Literal["none", "gradient"]
"""Estimation of a number for which there is no closed form: fixed, or by gradient."""


class Settings(BaseModel):
    """Base class of settings: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


Class = TypeVar("Class", bound=type[Any])


class Registry(Generic[Class]):
    """Classes of one family by name; an unknown name raises BitsbackError with the nearest match.

    >>> shapes: Registry[type] = Registry("shape")
    >>> @shapes.register("square")
    ... class Square: pass
    >>> shapes["square"].__name__
    'Square'
    >>> shapes["sqare"]
    Traceback (most recent call last):
    bitsback.errors.BitsbackError: unknown shape 'sqare' (did you mean 'square'?); known: square
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self._members: dict[str, Class] = {}

    def register(self, kind: str) -> Callable[[Class], Class]:
        """Return a class decorator that registers the class under ``kind``; a second class of that name raises an error."""

        def file_under_kind(member: Class) -> Class:
            if self._members.setdefault(kind, member) is not member:
                raise BitsbackError(f"{self.family} '{kind}' is registered twice; choose another name")
            return member

        return file_under_kind

    def __getitem__(self, kind: str) -> Class:
        if kind not in self._members:
            hint = near_miss(kind, self._members)
            raise BitsbackError(f"unknown {self.family} '{kind}'{hint}; known: {', '.join(sorted(self._members))}")
        return self._members[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def members(self) -> list[Class]:
        """Return all registered classes, in the order of their names."""
        return [self._members[kind] for kind in self]
