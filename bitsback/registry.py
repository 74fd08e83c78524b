"""A YAML name becomes an object: settings classes, found by their ``kind``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from bitsback.errors import BitsbackError, near_miss

__all__ = ["Class", "FilePath", "GradientLearn", "Learn", "Registry", "Settings"]


def _placed(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # ~somebody who has no home here
        return path.absolute()


FilePath = Annotated[Path, AfterValidator(_placed)]
"""A path, made absolute when it is read, ``~`` included, so that a run can be opened from anywhere."""

Learn = Literal["none", "gradient", "closed_form"]
"""How a number that is no weight is found."""

GradientLearn = Literal["none", "gradient"]
"""The same, where there is no closed form."""


class Settings(BaseModel):
    """Settings that live beside the thing they configure; unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


Class = TypeVar("Class", bound=type[Any])


class Registry(Generic[Class]):
    """Classes of one family by name, with near-miss suggestions.

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
        """Class decorator: file the class under ``kind``; a second class of the same name is refused."""

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
        """All registered classes, by name."""
        return [self._members[kind] for kind in self]
