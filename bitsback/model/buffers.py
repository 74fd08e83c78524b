"""Buffers of a network: running statistics that depend on the training data, and others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["COUNTER", "Buffer", "buffers_of", "frozen_norms", "unmoved"]

STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"
"""Buffer of torch's batch norm that counts batches; it is not read in eval mode and not charged."""


class Buffer(NamedTuple):
    """Buffer of a network: its dotted name, the module that owns it, and its tensor."""

    name: str
    owner: nn.Module
    tensor: Tensor

    @property
    def local(self) -> str:
        """Return the name within the module."""
        return self.name.rpartition(".")[2]

    @property
    def is_statistic(self) -> bool:
        """Return True for a running mean or variance."""
        return self.local in STATISTICS

    @property
    def moves(self) -> bool:
        """Return True for a running statistic of a torch normalisation layer in train mode, which follows the data."""
        norm = isinstance(self.owner, nn.modules.batchnorm._NormBase)
        return self.is_statistic and norm and self.owner.training and bool(self.owner.track_running_stats)

    @property
    def is_saved(self) -> bool:
        """Return True if it is part of the network's state dict; non-persistent buffers are remade by the constructor."""
        return self.local not in self.owner._non_persistent_buffers_set


def buffers_of(network: nn.Module) -> Iterator[Buffer]:
    """Yield every buffer once, in the order of torch's ``named_buffers``."""
    owners = dict(network.named_modules())
    for name, tensor in network.named_buffers():
        yield Buffer(name, owners[name.rpartition(".")[0]], tensor)


def frozen_norms(network: nn.Module) -> list[str]:
    """Return the names of normalisation layers whose weights are all frozen while their statistics follow the data."""
    found = dict.fromkeys(buffer.name.rpartition(".")[0] for buffer in buffers_of(network) if buffer.moves)
    modules = dict(network.named_modules())
    parameters = {name: list(modules[name].parameters()) for name in found}
    return [name for name, own in parameters.items() if own and not any(p.requires_grad for p in own)]


@contextmanager
def unmoved(network: nn.Module) -> Iterator[None]:
    """Restore the buffers of modules in train mode when the context ends, also after an error.

    >>> norm = nn.BatchNorm1d(2)
    >>> with unmoved(norm):
    ...     _ = norm(torch.ones(3, 2))
    >>> norm.running_mean.tolist(), norm.num_batches_tracked.item()
    ([0.0, 0.0], 0)
    """
    before = [(buffer, buffer.tensor.clone()) for buffer in buffers_of(network) if buffer.owner.training]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, numbers in before:
                buffer.owner._buffers[buffer.local] = buffer.tensor.copy_(numbers)
