"""Context managers for torch's number of threads, on which floating-point sums depend, and for its default dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["using_dtype", "using_threads"]


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads inside the context, and restore it afterwards.

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
    """Set torch's default dtype inside the context, and restore it afterwards.

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
