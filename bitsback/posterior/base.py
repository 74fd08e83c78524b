"""What every posterior offers: a mean, a draw, and a value that can be held still."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Posterior(nn.Module, ABC):
    """q(w) over one weight tensor.

    Reading :meth:`value` gives a draw. Inside :func:`holding` every read gives the same draw, which is how tied weights,
    recurrent layers and whole-network samples see one and the same w.
    """

    mean: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self._is_holding = False
        self._held: Tensor | None
        self._hold(None)

    @abstractmethod
    def draw(self) -> Tensor:
        """One draw of the weights, differentiable in the parameters; the shape of :attr:`mean`."""

    @abstractmethod
    def std(self) -> Tensor | None:
        """Standard deviation, the shape of :attr:`mean`; None for a point estimate."""

    @property
    def weights(self) -> int:
        """How many weights the tensor holds."""
        return self.mean.numel()

    @property
    def is_holding(self) -> bool:
        """True while a context of :func:`holding` keeps the value still."""
        return self._is_holding

    def value(self) -> Tensor:
        """The held value, or a fresh draw (which is then held, inside :func:`holding`)."""
        if self._held is not None:
            return self._held
        drawn = self.draw()
        if self._is_holding:
            self._hold(drawn)
        return drawn

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_is_holding": False, "_held": None}  # a copy holds nothing

    def _hold(self, value: Tensor | None) -> None:
        object.__setattr__(self, "_held", value)  # past torch, which would register a parameter


@contextmanager
def holding(posteriors: Iterable[Posterior], choose: Callable[[Posterior], Tensor] | None = None) -> Iterator[None]:
    """Hold one value per posterior: ``choose(posterior)``, or by default the first draw that is read.

    Contexts nest: an outer context owns its posteriors, an inner one leaves them alone.

    >>> import torch
    >>> from bitsback.posterior import GaussianPosterior
    >>> q = GaussianPosterior(torch.zeros(3), std=1.0)
    >>> with holding([q]):
    ...     bool((q.value() == q.value()).all())
    True
    """
    owned = [posterior for posterior in posteriors if not posterior._is_holding]
    for posterior in owned:
        posterior._is_holding = True
    try:
        if choose is not None:
            for posterior in owned:
                posterior._hold(choose(posterior))
        yield
    finally:
        for posterior in owned:
            posterior._is_holding = False
            posterior._hold(None)
