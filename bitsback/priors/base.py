"""What every prior offers: a distribution of mass one, and an honest account of the numbers it learned."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from bitsback.errors import PriorError
from bitsback.learned import Learned
from bitsback.registry import Learn

__all__ = ["NO_SHAPE", "Moments", "Prior", "ScalePrior", "Shape", "WeightInfo", "add_gradient", "around"]

Shape = torch.Size | list[int] | tuple[int, ...]
"""A sample shape, as torch types it."""

NO_SHAPE = torch.Size()

Moments = tuple[Tensor, Tensor | None]
"""Mean and std of one weight tensor's posterior; no std for a point estimate."""


@dataclass(frozen=True)
class WeightInfo:
    """What a prior may know about the tensor it codes: its name, shape, fan-in, and which axes are output and input."""

    name: str
    shape: torch.Size
    fan_in: int = 1
    output_axis: int = 0
    input_axis: int = 1


class Prior(Learned, ABC):
    """p(w) over a weight tensor, elementwise unless its distribution says otherwise.

    A subclass stores each of its numbers with :meth:`_store`, which makes it a buffer when it is fixed and charges it on a
    stated grid when it is learned, and builds its distribution in :meth:`forward` (same names, same order in every file:
    prior, settings, registration). Training asks for :meth:`kl_gradient`, which autograd answers for every prior; a subclass
    that knows its derivative is faster with a :meth:`slope` of its own.
    """

    family = "prior"
    mistake = PriorError
    mean: Tensor
    needs_draw: ClassVar[bool] = True
    """Whether :meth:`kl_gradient` looks at the draw; closed forms and tables do not."""
    mirrored: ClassVar[bool] = False
    """Whether :meth:`kl_gradient` takes the slope at the draw's mirror image too: less noise for a second evaluation."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Give a class with a density of its own the derivatives by autograd where it has none: never another density's."""
        super().__init_subclass__(**arguments)
        if "forward" in vars(cls) or "typical_scale" in vars(cls):
            for name in {"kl_gradient", "slope", "is_elementwise", "needs_draw"} - vars(cls).keys():
                setattr(cls, name, vars(Prior)[name])

    @abstractmethod
    def forward(self) -> Distribution:
        """The distribution p, whose batch shape broadcasts with the weight tensor."""

    @abstractmethod
    def typical_scale(self) -> Tensor:
        """A typical width of the density (a scale, not a std: a Cauchy has none); a positive tensor."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """The numbers in use as plain floats and lists, enough to rebuild the density elsewhere."""

    def breakpoints(self, fine: bool = True) -> Tensor:
        """Where the density bends, shape (b,): quadrature splits its panels there. Coarse is enough for training."""
        return around(self.mean, self.typical_scale(), (-2, 4) if fine else (0, 0))

    def update(self, weights: Sequence[Moments], rate: float = 1.0) -> None:
        """Move learned numbers by ``rate`` of the way to their best given every tensor's (mean, std), where that is known."""

    def given(self) -> str:
        """What the receiver is assumed to hold already, to be named in the ledger; nothing for most."""
        return ""

    def check(self, shape: torch.Size) -> None:
        """Raise PriorError when the distribution cannot code a weight tensor of this shape."""

    def start(self) -> Tensor | None:
        """Where the posterior means should begin, when the prior knows better than the layer's initialisation."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Numbers too many for :meth:`values` (a mean for every weight), stored as tensors beside the posterior."""
        return {}

    @property
    def is_elementwise(self) -> bool:
        """Whether one scalar density codes every weight, so that a tensor may be handed over in flat pieces."""
        if "_is_elementwise" not in self.__dict__:
            p = self()
            self._is_elementwise = not p.event_shape and p.batch_shape.numel() == 1
        return self._is_elementwise

    @torch.no_grad()
    def kl_gradient(self, mean: Tensor, log_std: Tensor, draw: Tensor, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        """Find an unbiased gradient of KL(N(mean, std^2) || p) in nats, of every weight by its mean and by its log std.

        With h the slope of -log p at the draw w = mean + std e, it is (h, h (w - mean) - 1): the entropy's part is exact, the
        rest by the path-wise derivative (Kingma & Welling 2014; Blundell et al. 2015, section 3.2). With :attr:`mirrored`, h
        is taken at 2 mean - w as well and the two are averaged. Priors that know better override this: then nothing of the
        draw may remain.

        Args:
            mean, log_std, draw: of one shape and dtype; flat pieces are fine where :attr:`is_elementwise`, whole tensors else.
            rate: how much of the gradient by each learned number of the prior is added to that number's ``.grad``; where the
                slope is taken at draws, that of -log p(w).

        Returns:
            Two new tensors of that shape, which the caller may change.

        >>> from bitsback.priors import GaussianPrior
        >>> by_mean, by_log_std = GaussianPrior(2.0).kl_gradient(torch.ones(1), torch.zeros(1), torch.ones(1))
        >>> round(by_mean.item(), 6), round(by_log_std.item(), 6)  # mean / 2^2 and std^2 / 2^2 - 1
        (0.25, -0.75)
        """
        noise = draw - mean
        if not self.mirrored:
            slope = self.slope(draw, rate)
            return slope, (slope * noise).sub_(1)
        slope, behind = self.slope(draw, rate), self.slope(mean - noise)
        by_log_std = noise.mul_(slope - behind).mul_(0.5).sub_(1)
        return slope.lerp_(behind, 0.5), by_log_std

    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Find the derivative of -log p at ``weights``, in nats, as a new tensor of their shape; by autograd unless overridden.

        Args:
            weights: of any shape where :attr:`is_elementwise`, the whole tensor else.
            rate: how much of the gradient of the sum of -log p by each learned number is added to that number's ``.grad``.

        >>> from bitsback.priors import LaplacePrior
        >>> LaplacePrior(0.5).slope(torch.tensor([-3.0, 0.1])).tolist()
        [-2.0, 2.0]
        """
        learned = [parameter for parameter in self.parameters() if rate and parameter.requires_grad]
        with torch.enable_grad(), torch.autocast(weights.device.type, enabled=False):
            leaf = weights.detach().requires_grad_()
            nats = -self().log_prob(leaf).sum()
            slope, *gradients = torch.autograd.grad(nats, [leaf, *learned], materialize_grads=True)
        for parameter, gradient in zip(learned, gradients, strict=True):
            add_gradient(parameter, gradient, rate)
        return slope

    def extra_repr(self) -> str:
        return self.kind


def add_gradient(parameter: Tensor, gradient: Tensor, rate: float) -> None:
    """Add ``rate`` times a gradient to a parameter's ``.grad``, making it where there is none; nothing for a fixed number.

    >>> number = torch.nn.Parameter(torch.zeros(()))
    >>> add_gradient(number, torch.tensor(3.0), 0.5)
    >>> number.grad.item()
    1.5
    """
    if parameter.requires_grad:
        step = (gradient * rate).to(parameter).reshape(parameter.shape)
        parameter.grad = step if parameter.grad is None else parameter.grad.add_(step)


def around(centre: Tensor, width: Tensor, octaves: tuple[int, int]) -> Tensor:
    """Points ``centre`` and ``centre +- width * 2^k``, for k from the first to the last octave, along a new last axis."""
    distance = width.unsqueeze(-1) * 2.0 ** torch.arange(octaves[0], octaves[1] + 1, dtype=width.dtype, device=width.device)
    middle = centre.to(width).unsqueeze(-1)
    both = torch.cat([middle - distance, middle + distance], dim=-1)
    return torch.cat([both, middle.expand(*both.shape[:-1], 1)], dim=-1)


class ScalePrior(Prior):
    """A prior with a fixed location ``mean`` and one ``scale``, fixed or learned."""

    log_scale: Tensor

    def __init__(self, scale: float = 0.3, *, mean: float = 0.0, learn: Learn = "none") -> None:
        super().__init__()
        self._store("mean", mean, "none")
        self._store_scale(scale, learn)

    def typical_scale(self) -> Tensor:
        return self.log_scale.exp()

    def values(self) -> dict[str, Any]:
        return {"scale": math.exp(float(self.log_scale.detach())), "mean": float(self.mean)}

    def _learn_from_slope(self, slope: Tensor, distance: Tensor, rate: float) -> None:
        """Pass on the gradient by the log scale: of -log p, for a scale family, 1 - slope (w - location) for every weight."""
        if rate and self.log_scale.requires_grad:
            add_gradient(self.log_scale, slope.numel() - torch.dot(slope.flatten(), distance.flatten()), rate)

    def _learn_from_kl(self, by_mean: Tensor, by_log_std: Tensor, distance: Tensor, rate: float) -> None:
        """Pass on the same for the KL: for a scale family, minus the sum of by_mean (mean - location) + by_log_std."""
        if rate and self.log_scale.requires_grad:
            add_gradient(self.log_scale, -torch.dot(by_mean.flatten(), distance.flatten()) - by_log_std.sum(), rate)
