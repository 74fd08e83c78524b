"""What every posterior offers: a mean, a draw, and a value that can be held still."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Loan(NamedTuple):
    """What a training step prepares for a layer that draws its outputs.

    Attributes:
        variance: of the weights, their shape.
        noise: from the variance of outputs to standard normal numbers of its shape, which nobody else holds.
    """

    variance: Tensor
    noise: Callable[[Tensor], Tensor]


class Posterior(nn.Module, ABC):
    """q(w) over one weight tensor.

    Reading :meth:`value` gives a draw. Inside :func:`holding` every read gives the same draw, which is how tied weights,
    recurrent layers and whole-network samples see one and the same w.
    """

    mean: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self._is_holding: bool
        self._held: Tensor | None
        self._keep(False, None)
        self._loan: Loan | None
        self._lend(None)

    @abstractmethod
    def draw(self) -> Tensor:
        """One draw of the weights, differentiable in the parameters; the shape of :attr:`mean`."""

    @abstractmethod
    def std(self) -> Tensor | None:
        """Standard deviation, the shape of :attr:`mean`; None for a point estimate."""

    def variance(self) -> Tensor:
        """Square of :meth:`std`, zero for a point estimate; inside :func:`lending` the tensor that was lent."""
        if self._loan is not None:
            return self._loan.variance
        std = self.std()
        return torch.zeros_like(self.mean) if std is None else std.square()

    @property
    def loan(self) -> Loan | None:
        """What was lent, inside :func:`lending`."""
        return self._loan

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
            self._keep(True, drawn)
        return drawn

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_is_holding": False, "_held": None, "_loan": None}  # a copy holds nothing

    def _keep(self, is_holding: bool, value: Tensor | None) -> None:
        self.__dict__["_is_holding"] = is_holding  # past torch, which is slow, and would register a parameter
        self.__dict__["_held"] = value

    def _lend(self, loan: Loan | None) -> None:
        self.__dict__["_loan"] = loan


class Holding(AbstractContextManager[None]):
    """What :func:`holding` gives; a class, because every layer of every step enters one."""

    def __init__(self, posteriors: Iterable[Posterior], choose: Callable[[Posterior], Tensor] | None) -> None:
        self.posteriors, self.choose = posteriors, choose

    def __enter__(self) -> None:
        self.owned = [posterior for posterior in self.posteriors if not posterior.is_holding]
        for posterior in self.owned:
            posterior._keep(True, None)
        if self.choose is not None:
            try:
                for posterior in self.owned:
                    posterior._keep(True, self.choose(posterior))
            except BaseException:
                self.__exit__()
                raise

    def __exit__(self, *fault: object) -> None:
        for posterior in self.owned:
            posterior._keep(False, None)


def holding(posteriors: Iterable[Posterior], choose: Callable[[Posterior], Tensor] | None = None) -> Holding:
    """Hold one value per posterior: ``choose(posterior)``, or by default the first draw that is read.

    Contexts nest: an outer context owns its posteriors, an inner one leaves them alone.

    >>> import torch
    >>> from bitsback.posterior import GaussianPosterior
    >>> q = GaussianPosterior(torch.zeros(3), std=1.0)
    >>> with holding([q]):
    ...     bool((q.value() == q.value()).all())
    True
    """
    return Holding(posteriors, choose)


@contextmanager
def lending(loans: Iterable[tuple[Posterior, Loan]]) -> Iterator[None]:
    """Inside, layers that draw their outputs take a variance and noise that were prepared, instead of making their own.

    >>> from bitsback.posterior import GaussianPosterior
    >>> q = GaussianPosterior(torch.zeros(3), std=1.0)
    >>> with lending([(q, Loan(torch.full((3,), 4.0), torch.randn_like))]):
    ...     q.variance().tolist()
    [4.0, 4.0, 4.0]
    """
    pairs = list(loans)
    for posterior, loan in pairs:
        posterior._lend(loan)
    try:
        yield
    finally:
        for posterior, _ in pairs:
            posterior._lend(None)
