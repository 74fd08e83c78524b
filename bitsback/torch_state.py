"""How many threads torch uses: float sums depend on it, so what must be repeated bit for bit fixes it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["using_threads"]


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Use so many threads inside, and restore what was.

    >>> with using_threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
