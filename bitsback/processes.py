"""Processes that ``torchrun`` has started, as their environment says; needs no torch."""

import os

__all__ = ["launched_count", "launched_ranks", "own_rank"]


def launched_count() -> int:
    """Return the number of processes that ``torchrun`` started, of which this is one; 1 without it."""
    count = os.environ.get("WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def launched_ranks() -> tuple[int, int]:
    """Return rank and number of the processes that ``torchrun`` started; (0, 1) without it."""
    rank = os.environ.get("RANK", "")
    return (int(rank), launched_count()) if rank.isdecimal() else (0, 1)


def own_rank() -> str:
    """Return "rank 3: " in the process of that rank; empty in rank 0 and without ``torchrun``."""
    rank, _ = launched_ranks()
    return f"rank {rank}: " if rank else ""
