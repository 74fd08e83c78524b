"""Base class of posteriors: mean, standard deviation, and draws from given noise."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Noticed", "Posterior"]


class Noticed(nn.Parameter):
    """Parameter whose version counter also increases on writes through ``.data``, unlike that of a plain one.

    >>> parameter = Noticed(torch.zeros(2), requires_grad=False)
    >>> before = parameter._version
    >>> _ = parameter.data.add_(1.0)
    >>> parameter._version > before
    True
    """

    @property
    def data(self) -> Tensor:
        """Return a detached view that shares the version counter."""
        return self.detach()

    @data.setter
    def data(self, tensor: Tensor) -> None:
        nn.Parameter.data.__set__(self, tensor)  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Noticed, (self.detach(), self.requires_grad)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Parameter containing:\n{self.detach()!r}"


class Posterior(nn.Module, ABC):
    """Distribution q(w) over one weight tensor; the draw itself is held by the network's parameter."""

    mean: nn.Parameter

    @abstractmethod
    def draw(self, noise: Tensor | None = None) -> Tensor:
        """Return weights for standard normal ``noise`` (fresh by default), the shape of :attr:`mean`."""

    @abstractmethod
    def std(self) -> Tensor | None:
        """Return the standard deviation, the shape of :attr:`mean`; None for a point estimate."""

    def variance(self) -> Tensor:
        """Return the square of :meth:`std`; zero for a point estimate."""
        std = self.std()
        return torch.zeros_like(self.mean) if std is None else std.square()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.__dict__["_was_loaded"] = f"{prefix}mean" in state_dict

    def take_loaded(self) -> bool:
        """Return True if a mean was loaded from a state dict since the last call."""
        return bool(self.__dict__.pop("_was_loaded", False))

    @property
    def numel(self) -> int:
        """Return the number of weights in the tensor."""
        return self.mean.numel()

    def extra_repr(self) -> str:
        """Return the shape, for ``repr``."""
        return f"shape={tuple(self.mean.shape)}"
