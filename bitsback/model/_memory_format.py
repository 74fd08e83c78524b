"""Channels-last memory layout of images and filters, with which a CPU convolves about twice as fast."""

import torch
from torch import Tensor, nn

from bitsback.inputs import Inputs, call, leaves
from bitsback.model.buffers import unmoved

__all__ = ["interleaved", "runs", "straight"]


def interleaved(tensor: Tensor) -> Tensor:
    """Return a tensor with channels last in memory if it has four axes, other tensors unchanged.

    Args:
        tensor: images (batch, channels, height, width) or filters, or any other tensor.

    Returns:
        Tensor with the same values and shape.

    >>> interleaved(torch.zeros(2, 3, 4, 5)).stride(), interleaved(torch.zeros(2, 1, 4, 5)).stride()
    ((60, 1, 15, 3), (20, 1, 5, 1))
    """
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def straight(tensor: Tensor) -> Tensor:
    """Return a copy in torch's default (contiguous) layout.

    >>> straight(interleaved(torch.zeros(2, 1, 4, 5))).stride()
    (20, 20, 5, 1)
    """
    return tensor.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def runs(network: nn.Module, inputs: Inputs) -> bool:
    """Return True if a forward pass on these inputs succeeds: a ``view`` in it may fail on channels-last inputs.

    Buffers and random generators are restored.

    Args:
        network: network to try.
        inputs: batch of inputs.

    Returns:
        False if the forward pass raises RuntimeError.

    >>> class Viewed(nn.Conv2d):
    ...     def forward(self, x):
    ...         return super().forward(x).view(len(x), -1)
    >>> runs(Viewed(2, 3, 2), torch.zeros(1, 2, 4, 4)), runs(Viewed(2, 3, 2), interleaved(torch.zeros(1, 2, 4, 4)))
    (True, False)
    """
    cuda = [tensor.device for tensor in leaves(inputs)[:1] if tensor.device.type == "cuda"]
    with unmoved(network), torch.random.fork_rng(devices=cuda):
        try:
            call(network, inputs)
        except RuntimeError:
            return False
    return True
