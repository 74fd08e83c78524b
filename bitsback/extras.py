"""Optional libraries, installed by extras and imported on first use."""

import sys
from importlib.util import find_spec

from bitsback.errors import MissingExtraError

__all__ = ["EXTRAS", "require"]

EXTRAS = {
    "report": ("matplotlib", "jinja2"),
    "watch": ("plotext", "rich"),
    "graph": ("scipy",),
    "rivals": ("sklearn",),
    "tables": ("pandas", "pyarrow"),
    "images": ("PIL",),
    "vision": ("timm",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""Modules by the extra that installs them."""


def require(extra: str, subject: str) -> None:
    """Check that the modules of an extra are installed.

    Args:
        extra: a key of :data:`EXTRAS`.
        subject: feature that needs them, for the message.

    Raises:
        MissingExtraError: a module is missing; the message has the command that installs the extra.

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
