"""Commands under ``torchrun``: which need one process, and which process says an error."""

import functools
import os
from collections.abc import Callable
from typing import Any

from bitsback.errors import BitsbackError, ConfigError

__all__ = ["alone", "is_one_of_several", "own_rank", "says_it"]


def is_one_of_several() -> bool:
    """Return whether ``torchrun`` has started several processes, of which this is one."""
    count = os.environ.get("WORLD_SIZE", "")
    return count.isdecimal() and int(count) > 1


def alone(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that it is refused in one of several processes."""

    @functools.wraps(command)
    def call(*arguments: Any, **options: Any) -> Any:
        if is_one_of_several():
            raise ConfigError(
                f"bitsback {command.__name__} needs one process, and this is one of {os.environ['WORLD_SIZE']}: start it "
                "without torchrun (unset WORLD_SIZE); torchrun is for bitsback train alone"
            )
        return command(*arguments, **options)

    return call


def own_rank() -> str:
    """Return "rank 3: " in the process of that rank; empty in rank 0 and without ``torchrun``."""
    rank = os.environ.get("RANK", "0") if is_one_of_several() else "0"
    return "" if rank == "0" else f"rank {rank}: "


def says_it(error: BitsbackError) -> bool:
    """Return whether this process shall print an error; see :func:`bitsback.distributed.say_once`."""
    from bitsback.distributed import say_once  # imports torch, which most errors do not need

    return say_once(error)
