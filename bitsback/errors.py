"""Named mistakes. Every message says what was given, what is allowed, and the fix."""

import difflib
from collections.abc import Iterable

__all__ = [
    "BitsbackError",
    "CertificateError",
    "ConfigError",
    "DataError",
    "FileError",
    "LayerError",
    "LedgerError",
    "MissingExtraError",
    "PriorError",
    "RunError",
    "TrainingError",
    "brief",
    "near_miss",
]


class BitsbackError(Exception):
    """Base of every error that ``bitsback`` raises on purpose; the command line shows it as one sentence."""


class ConfigError(BitsbackError):
    """A configuration that cannot be used; lists every error with its file and line."""


class DataError(BitsbackError):
    """A data set that is missing, empty or holds values that no code can describe."""


class PriorError(BitsbackError):
    """A prior that is no code: improper, without the reals as support, or with a scale of zero or below."""


class LedgerError(BitsbackError):
    """A ledger that does not add up or does not cover the model."""


class CertificateError(BitsbackError):
    """A certificate that would not hold: a prior that saw the examples, a loss without bound, a delta that is none."""


class LayerError(BitsbackError):
    """A module that cannot hold a posterior the way it was asked to."""


class MissingExtraError(BitsbackError):
    """A library that only some of the package needs is not installed; the extra that installs it is named."""


class RunError(BitsbackError):
    """A run directory that is missing, incomplete, or cannot be written."""


class FileError(BitsbackError):
    """A message or model file that is damaged, foreign, or does not fit what the receiver holds."""


class TrainingError(BitsbackError):
    """Training that cannot go on, such as a loss that is not finite."""


def brief(error: object, characters: int = 200) -> str:
    """What an error says, on one line and cut short: libraries quote whole files.

    >>> brief("two\\nlines"), brief("x" * 9, characters=3)
    ('two lines', 'xxx...')
    """
    text = " ".join(str(error).split())
    return text if len(text) <= characters else f"{text[:characters]}..."


def near_miss(name: str, allowed: Iterable[str]) -> str:
    """A hint such as ``(did you mean 'laplace'?)``, or nothing when no name is close.

    >>> near_miss("laplas", ["gaussian", "laplace"])
    " (did you mean 'laplace'?)"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
