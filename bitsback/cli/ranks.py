"""Commands under ``torchrun``: which need one process, and which process says an error."""

import functools
from collections.abc import Callable
from typing import Any

from bitsback.errors import BitsbackError, ConfigError
from bitsback.processes import launched_count

__all__ = ["alone", "says_it"]


def alone(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that it is refused in one of several processes."""

    @functools.wraps(command)
    def call(*arguments: Any, **options: Any) -> Any:
        if launched_count() > 1:
            raise ConfigError(
                f"bitsback {command.__name__} needs one process, and this is one of {launched_count()}: start it "
                "without torchrun (unset WORLD_SIZE); torchrun is for bitsback train alone"
            )
        return command(*arguments, **options)

    return call


def says_it(error: BitsbackError) -> bool:
    """Return whether this process shall print an error; see :func:`bitsback.distributed.say_once`."""
    from bitsback.distributed import say_once  # imports torch, which most errors do not need

    return say_once(error)
