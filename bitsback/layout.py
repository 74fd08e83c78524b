"""How convolutions lie in memory: the same numbers with the channels last are convolved about twice as fast on a CPU."""

import torch
from torch import Tensor, nn


def interleaved(tensor: Tensor) -> Tensor:
    """Images and filters, which have four axes, with their channels last in memory; anything else as it is.

    >>> interleaved(torch.zeros(2, 3, 4, 5)).stride()
    (60, 1, 15, 3)
    """
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def interleave(module: nn.Module) -> None:
    """Lay out the filters of a module with their channels last, in place; the numbers stay."""
    for parameter in module.parameters():
        parameter.data = interleaved(parameter.data)


def straighten(module: nn.Module) -> None:
    """Undo :func:`interleave`."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
