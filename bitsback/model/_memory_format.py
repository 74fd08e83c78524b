"""Images and filters with their channels last in memory: the same numbers, which a CPU convolves about twice as fast."""

import torch
from torch import Tensor, nn

from bitsback.model.buffers import unmoved

__all__ = ["interleaved", "runs", "straight"]


def interleaved(tensor: Tensor) -> Tensor:
    """Return what has four axes with its channels last in memory, anything else as it is.

    >>> interleaved(torch.zeros(2, 3, 4, 5)).stride(), interleaved(torch.zeros(2, 1, 4, 5)).stride()
    ((60, 1, 15, 3), (20, 1, 5, 1))
    """
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def straight(tensor: Tensor) -> Tensor:
    """Undo :func:`interleaved`.

    >>> straight(interleaved(torch.zeros(2, 1, 4, 5))).stride()
    (20, 20, 5, 1)
    """
    return tensor.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def runs(network: nn.Module, inputs: Tensor) -> bool:
    """Return whether a network takes its layout: a ``view`` in its forward may not. Buffers and generators stay as they were.

    >>> class Viewed(nn.Conv2d):
    ...     def forward(self, x):
    ...         return super().forward(x).view(len(x), -1)
    >>> runs(Viewed(2, 3, 2), torch.zeros(1, 2, 4, 4)), runs(Viewed(2, 3, 2), interleaved(torch.zeros(1, 2, 4, 4)))
    (True, False)
    """
    cuda = [inputs.device] if inputs.device.type == "cuda" else []
    with unmoved(network), torch.random.fork_rng(devices=cuda):
        try:
            network(inputs)
        except RuntimeError:
            return False
    return True
