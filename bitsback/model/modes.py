"""Train and eval mode of each module, saved and restored: part of a network may be in eval mode on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["Modes", "evaluating"]


class Modes:
    """Train or eval mode of every module of a network at the time of construction.

    >>> network = nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Dropout())
    >>> modes = Modes(network)
    >>> _ = network.train()
    >>> modes.restore()
    >>> [module.training for module in network.modules()]
    [True, False, True]
    """

    def __init__(self, network: nn.Module) -> None:
        self._modes = [(module, module.training) for module in network.modules()]

    def restore(self) -> None:
        """Put every module back into its mode."""
        # train() is called because a module may override it; it also changes children, hence the second loop.
        for module, training in self._modes:
            if module.training != training:
                module.train(training)
        for module, training in self._modes:
            module.training = training


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside the context, and back into its own mode afterwards, also after an error."""
    modes = Modes(network)
    network.eval()
    try:
        yield
    finally:
        modes.restore()
