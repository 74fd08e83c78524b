"""Processes started by ``torchrun``: their number, their process group, and which of them says what went wrong."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch.distributed as dist

from bitsback.distributed._ranks import Ranks, present
from bitsback.errors import BitsbackError, ConfigError, RunError
from bitsback.processes import launched_ranks

__all__ = ["LostRankError", "say_once", "started"]

OTHERS_WAIT_SECONDS, LOST_WAIT_SECONDS = 2.0, 8.0
"""Time that a rank above 0, and one that lost another rank, gives the rank that failed first to say why."""


class LostRankError(RunError):
    """Another process of the same training has stopped; that one says why."""


@contextmanager
def started(strategy: Literal["none", "ddp", "fsdp"]) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started into a process group, unless there is one.

    Args:
        strategy: ``engine.strategy`` of the configuration.

    Yields:
        The processes.

    Raises:
        ConfigError: for several processes under strategy ``none``.
        LostRankError: when another process stops meanwhile.
    """
    _, count = launched_ranks()
    own = count > 1 and not dist.is_initialized()
    ranks = present()
    count = max(count, ranks.count)
    if strategy == "none" and count > 1:
        raise ConfigError(
            f"this is one of {count} processes, and each would train a model of its own: set engine.strategy=ddp (or fsdp) to "
            "train one model together, or start bitsback without torchrun"
        )
    if own:
        dist.init_process_group()
        ranks = present()
    try:
        with warnings.catch_warnings():
            if not ranks.is_first:  # rank 0 says what concerns all
                warnings.simplefilter("ignore", UserWarning)
            yield ranks
    except Exception as error:
        if ranks.count > 1 and _comes_from_others(error):
            raise LostRankError("another process of this training has stopped, and this one with it") from error
        raise
    finally:
        if own:
            dist.destroy_process_group()


def _comes_from_others(error: BaseException | None) -> bool:
    """Return True if an error, or its cause, is that of a message to another process."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__
    return False


def say_once(error: BitsbackError) -> bool:
    """Return whether this process shall print an error that may have stopped all of them.

    Rank 0 says its own error at once. Another rank, and one that was stopped because it lost another, waits a moment: if the
    rank that failed first ends, ``torchrun`` ends all others.

    Args:
        error: of this process.

    Returns:
        False if the process was ended while it waited.
    """
    rank, count = launched_ranks()
    is_lost = isinstance(error, LostRankError)
    if count > 1 and (rank or is_lost):
        try:
            time.sleep(LOST_WAIT_SECONDS if is_lost else OTHERS_WAIT_SECONDS)
        except KeyboardInterrupt:
            return False
    return True
