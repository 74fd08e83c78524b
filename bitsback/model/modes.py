"""Train and eval mode, module by module: part of a network may be in eval mode to stay what it is."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["Modes", "evaluating"]


class Modes:
    """The mode of every module of a network, as it was when this was made.

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
        for module, training in self._modes:  # outside in, by the module's own method, which may do more
            if module.training != training:
                module.train(training)
        for module, training in self._modes:  # some take others along
            module.training = training


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, every module is in eval mode; afterwards, also after an error, each is in the mode that it was in before."""
    modes = Modes(network)
    network.eval()
    try:
        yield
    finally:
        modes.restore()
