"""Error classes. A message names the given value, the allowed values and a fix."""

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
    """Base class of the errors that ``bitsback`` raises; the command line prints one sentence without traceback."""


class ConfigError(BitsbackError):
    """Invalid configuration; the message lists every error with its file and line."""


class DataError(BitsbackError):
    """Data set that is missing, empty, or holds invalid values such as NaN."""


class PriorError(BitsbackError):
    """Invalid prior: improper, not supported on all reals, or with a scale that is not positive."""


class LedgerError(BitsbackError):
    """Ledger whose sums are inconsistent, or that cannot be taken for the model."""


class CertificateError(BitsbackError):
    """Certificate whose assumptions fail: a prior fitted to the examples, an unbounded loss, or an invalid delta."""


class LayerError(BitsbackError):
    """Module that cannot hold the requested posterior."""


class MissingExtraError(BitsbackError):
    """Missing optional library; the message names the extra that installs it."""


class RunError(BitsbackError):
    """Run directory that is missing, incomplete, or not writable."""


class FileError(BitsbackError):
    """Message or model file that is damaged, of another format, or inconsistent with the receiver's data."""


class TrainingError(BitsbackError):
    """Training that cannot continue, such as with a loss that is not finite."""


def brief(error: object, characters: int = 200) -> str:
    """Return the message of an error on one line, cut to ``characters``; some libraries quote whole files.

    Args:
        error: the error, or its text.
        characters: maximum length before ``...``.

    Returns:
        The shortened text.

    >>> brief("two\\nlines"), brief("x" * 9, characters=3)
    ('two lines', 'xxx...')
    """
    text = " ".join(str(error).split())
    return text if len(text) <= characters else f"{text[:characters]}..."


def near_miss(name: str, allowed: Iterable[str]) -> str:
    """Return a hint such as ``(did you mean 'laplace'?)``.

    Args:
        name: the name that was given.
        allowed: valid names.

    Returns:
        The hint with a leading space; empty if no name is close.

    >>> near_miss("laplas", ["gaussian", "laplace"])
    " (did you mean 'laplace'?)"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
