"""User functions named ``package.module:function`` in YAML and in files: their import and their call."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from bitsback.errors import BitsbackError, ConfigError, brief

__all__ = ["LONGEST_NAME", "NAME_PATTERN", "FactoryName", "importable_here", "imported_function", "is_function_name", "made_by"]

_IDENTIFIER = r"[^\W\d]\w*"
NAME_PATTERN = rf"^{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}$"
"""Of a codec's name: identifiers, joined with dots before the colon."""

LONGEST_NAME = 200
"""Maximum length of a codec's name, in characters."""


def is_function_name(text: str) -> bool:
    """Return whether a text has the form ``package.module:function``, at any length.

    Returns:
        False for empty parts, such as ``my..own:codec``.

    >>> [is_function_name(text) for text in ("mine:codec", "my.own:codec", ".mine:codec", "my..own:codec", "my.own.codec")]
    [True, True, False, False, False]
    """
    return re.fullmatch(NAME_PATTERN, text) is not None


def _named(factory: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", factory):
        raise ValueError(f"give package.module:function, got '{factory}'")
    return factory


FactoryName = Annotated[str, AfterValidator(_named), Field(description="package.module:function")]


@contextmanager
def importable_here() -> Iterator[None]:
    """Put the current directory first on ``sys.path``, as with ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def imported_function(name: str, setting: str) -> Any:
    """Import a function, also from the current directory.

    Args:
        name: ``package.module:function``.
        setting: the setting that holds the name, for messages.

    Returns:
        The function.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        with importable_here():
            return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        hint = "; is it in this directory or on PYTHONPATH?" if error.name == module.partition(".")[0] else ""
        raise ConfigError(f"{setting}: cannot import '{name}': {brief(error)}{hint}") from error
    except Exception as error:  # user code raises errors of any class
        raise ConfigError(f"{setting}: cannot import '{name}': {brief(error)}") from error


def made_by(name: str, setting: str, kind: type[Any], what: str, /, *given: Any, **arguments: Any) -> Any:
    """Call a user function and check the class of its result.

    Args:
        name: ``package.module:function``.
        setting: the setting that holds the name, for messages.
        kind: required class of the result.
        what: description of ``kind``, for messages.
        *given: positional arguments from the package.
        **arguments: keyword arguments from the user's settings.

    Returns:
        The function's result.

    Raises:
        BitsbackError: the function raised it; it is passed on unchanged.
        ConfigError: the function cannot be imported, fails, or returns another class.

    >>> made_by("fractions:Fraction", "prior.factory", int, "a whole number", 1, 2)
    Traceback (most recent call last):
    bitsback.errors.ConfigError: prior.factory: fractions:Fraction returned Fraction, not a whole number
    """
    function = imported_function(name, setting)
    try:
        with importable_here():
            found = function(*given, **arguments)
    except BitsbackError:
        raise
    except TypeError as error:
        raise ConfigError(f"{setting}: {name} refuses its arguments: {error}") from error
    except Exception as error:  # user code raises errors of any class
        raise ConfigError(f"{setting}: {name} fails with {arguments}: {error}") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{setting}: {name} returned {type(found).__name__}, not {what}")
    return found
