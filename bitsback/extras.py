"""Libraries that only some of the package needs: they are extras, imported when they are first used."""

import sys
from importlib.util import find_spec

from bitsback.errors import MissingExtraError

__all__ = ["EXTRAS", "require"]

EXTRAS = {
    "report": ("matplotlib", "jinja2"),
    "watch": ("plotext", "rich"),
    "graph": ("scipy",),
    "rivals": ("sklearn",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""The modules that each extra installs."""


def require(extra: str, subject: str) -> None:
    """Raise MissingExtraError, naming the extra, where one of its modules is not installed.

    Args:
        extra: a key of :data:`EXTRAS`.
        subject: what needs it, for the sentence.

    >>> require("graph", "a graph of neighbours")
    """
    missing = [module for module in EXTRAS[extra] if not _is_installed(module)]
    if missing:
        raise MissingExtraError(
            f"{subject} needs {' and '.join(missing)}, of the extra '{extra}': pip install 'bitsback[{extra}]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return sys.modules.get(module) is not None or find_spec(module) is not None
    except ModuleNotFoundError:
        return False
