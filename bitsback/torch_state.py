"""How many threads torch uses: float sums depend on it, so what must be repeated bit for bit fixes it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["using_dtype", "using_threads"]


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


@contextmanager
def using_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new floating-point tensors of this type inside, and restore what was.

    >>> with using_dtype(torch.float64):
    ...     torch.zeros(1).dtype
    torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
