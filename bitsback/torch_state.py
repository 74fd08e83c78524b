"""Torch's number of threads, on which floating-point sums depend, its default dtype, and its random generators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded", "set_seed", "using_dtype", "using_threads"]


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


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators inside the context, and restore their states afterwards.

    Args:
        seed: seed inside the context.
        device: device whose generator is seeded besides the CPU's.

    Yields:
        None.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_seed(seed, device)
        yield


def set_seed(seed: int, device: torch.device) -> None:
    """Seed torch's generators, as ``torch.manual_seed``.

    Args:
        seed: seed.
        device: for the CPU only its generator is seeded.
    """
    # torch.manual_seed takes a millisecond, most of it for accelerators that are not in use.
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
