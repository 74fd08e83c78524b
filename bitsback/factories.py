"""What a user makes: a function, named ``package.module:function`` in YAML and in files, and called with its arguments."""

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
"""Characters of a codec's name, at most."""


def is_function_name(text: str) -> bool:
    """Whether a text of any length has the form of ``package.module:function``.

    >>> [is_function_name(text) for text in ("mine:codec", "my.own:codec", ".mine:codec", "my..own:codec", "my.own.codec")]
    [True, True, False, False, False]
    """
    return re.fullmatch(NAME_PATTERN.strip("^$"), text) is not None


def _named(factory: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", factory):
        raise ValueError(f"give package.module:function, got '{factory}'")
    return factory


FactoryName = Annotated[str, AfterValidator(_named), Field(description="package.module:function")]


@contextmanager
def importable_here() -> Iterator[None]:
    """Modules in the current directory can be imported inside, as with ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def imported_function(name: str, setting: str) -> Any:
    """What ``package.module:function`` names, found in this directory too; raises ConfigError that names the setting."""
    module, _, function = name.partition(":")
    try:
        with importable_here():
            return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        hint = "; is it in this directory or on PYTHONPATH?" if error.name == module.partition(".")[0] else ""
        raise ConfigError(f"{setting}: cannot import '{name}': {brief(error)}{hint}") from error
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{setting}: cannot import '{name}': {brief(error)}") from error


def made_by(name: str, setting: str, kind: type[Any], what: str, *given: Any, **arguments: Any) -> Any:
    """Call what a name says, and check what it returns.

    Args:
        name: ``package.module:function``.
        setting: that names it, for messages.
        kind: class of what it has to return.
        what: how messages call that.
        given: what the package hands over, before the user's arguments.
        arguments: the user's.

    Raises:
        ConfigError: when it cannot be imported, fails, or returns something else.

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
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(f"{setting}: {name} fails with {arguments}: {error}") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{setting}: {name} returned {type(found).__name__}, not {what}")
    return found
