"""Base class of priors: a proper distribution and the cost of its learned hyper-parameters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from bitsback.errors import PriorError
from bitsback.learned import Learned
from bitsback.registry import Learn

__all__ = ["NO_SHAPE", "KernelForm", "Moments", "Prior", "ScalePrior", "Shape", "WeightInfo", "add_gradient", "around"]

Shape = torch.Size | list[int] | tuple[int, ...]
"""Sample shape, with the types that torch accepts."""

NO_SHAPE = torch.Size()

Moments = tuple[Tensor, Tensor | None]
"""Mean and std of one weight tensor's posterior; the std is None for a point estimate."""


@dataclass(frozen=True)
class WeightInfo:
    """Description of a weight tensor for a prior: dotted name, shape, fan-in, and the axes of output and input units."""

    name: str
    shape: torch.Size
    fan_in: int = 1
    output_axis: int = 0
    input_axis: int = 1


class KernelForm(NamedTuple):
    """Density that the kernels of :mod:`bitsback.kernels` know, with the tensors that hold its numbers.

    Attributes:
        name: ``normal``, ``laplace``, ``power`` (Student's t), ``logistic``, ``mixture`` or ``horseshoe``.
        location: a number, one for every weight, or one for every component of a mixture.
        log_scale: a number, one for every slice of the weights, or one for every component.
        third: degrees of freedom, free logits of a mixture, or the table of the horseshoe.
        table_start, table_step: of that table, log r in its first column, and between two columns.
    """

    name: str
    location: Tensor
    log_scale: Tensor
    third: Tensor | None = None
    table_start: float = 0.0
    table_step: float = 1.0


class Prior(Learned, ABC):
    """Distribution p(w) over a weight tensor, elementwise unless its batch or event shape says otherwise.

    A subclass stores each of its numbers with :meth:`_store`, as a buffer if it is fixed, or as a parameter that is rounded to
    a grid and charged if it is learned, and builds its distribution in :meth:`forward`. Training calls :meth:`kl_gradient`,
    which uses autograd by default; a subclass with a known derivative is faster with a :meth:`slope` of its own.

    Attributes:
        mean: location of the density.
    """

    family = "prior"
    mistake = PriorError
    mean: Tensor
    needs_draw: ClassVar[bool] = True
    """True if :meth:`kl_gradient` depends on the draw; closed forms and tables do not."""
    mirrored: ClassVar[bool] = False
    """True if :meth:`kl_gradient` also evaluates the slope at the mirrored draw (antithetic), which reduces its variance."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Reset derivatives to autograd in a subclass that defines its own density but not its own derivatives."""
        # Otherwise a subclass that overrides forward() would inherit the closed-form slope of its parent's density.
        super().__init_subclass__(**arguments)
        own = vars(cls)
        if "forward" in own or "typical_scale" in own:
            for name in {"kl_gradient", "slope", "is_elementwise", "needs_draw"} - own.keys():
                setattr(cls, name, vars(Prior)[name])
        if own.keys() & {"forward", "typical_scale", "kl_gradient", "slope"} and "kernel_form" not in own:
            cls.kernel_form = Prior.kernel_form  # type: ignore[method-assign]

    @abstractmethod
    def forward(self) -> Distribution:
        """Return the distribution p, whose batch shape broadcasts with the weight tensor."""

    @abstractmethod
    def typical_scale(self) -> Tensor:
        """Return a typical scale of the density, a positive tensor (not a std: that of a Cauchy does not exist)."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return the current numbers as floats and lists, enough to rebuild the density elsewhere."""

    def breakpoints(self, fine: bool = True) -> Tensor:
        """Return points at which quadrature splits its panels, (b,): kinks, poles, and octaves of the scale around them.

        Args:
            fine: True for the ledger; False returns fewer points, enough for training.

        Returns:
            Points in units of the weights.
        """
        return around(self.mean, self.typical_scale(), (-2, 4) if fine else (0, 0))

    def update(self, weights: Sequence[Moments], rate: float | Tensor = 1.0) -> None:
        """Move learned numbers towards the minimum of the KL, if the prior knows it in closed form; else do nothing.

        Args:
            weights: posterior (mean, std) of every weight tensor that shares this prior.
            rate: share of the way; 1 goes to the optimum.
        """

    def given(self) -> str:
        """Return a description of what the receiver is assumed to have, for the ledger; empty for most priors."""
        return ""

    def check(self, shape: torch.Size) -> None:
        """Raise PriorError if the distribution cannot code a weight tensor of this shape."""

    def start(self) -> Tensor | None:
        """Return initial posterior means that replace the layer's initialisation; None for most priors."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return numbers too many for :meth:`values` (a mean for every weight), to be stored beside the posterior."""
        return {}

    def kernel_form(self) -> KernelForm | None:
        """Return the density as the GPU kernels know it; None if they do not, and :meth:`kl_gradient` has to be called."""
        return None

    @property
    def is_elementwise(self) -> bool:
        """Return True if all weights have the same scalar density, so that methods accept flat pieces of a tensor."""
        if "_is_elementwise" not in self.__dict__:
            p = self()
            self._is_elementwise = not p.event_shape and p.batch_shape.numel() == 1
        return self._is_elementwise

    @torch.no_grad()
    def kl_gradient(self, mean: Tensor, log_std: Tensor, draw: Tensor, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return an unbiased estimate of the gradient of KL(N(mean, std^2) || p) in nats, by mean and by log std.

        With h the slope of -log p at the draw w = mean + std e, it is (h, h (w - mean) - 1): the derivative of the entropy is
        exact, that of E_q[-log p] path-wise (Kingma & Welling 2014; Blundell et al. 2015, section 3.2). If :attr:`mirrored`,
        it is averaged over w and 2 mean - w. Priors with a closed form or a table override this, and set
        :attr:`needs_draw` to False if the draw is not used.

        Args:
            mean: posterior means; flat pieces if :attr:`is_elementwise`, else the whole tensor.
            log_std: posterior log stds, the same shape and dtype.
            draw: weights drawn from the posterior, the same shape and dtype.
            rate: factor with which the gradient by each learned number of the prior (of the KL, or of -log p at the draw) is
                added to that number's ``.grad``.

        Returns:
            Gradients by mean and by log std, two new tensors of that shape, which the caller may change.

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
        """Return the derivative of -log p in nats at given weights; by autograd unless overridden.

        Args:
            weights: weights, of any shape if :attr:`is_elementwise`, else the whole tensor.
            rate: factor with which the gradient of the sum of -log p by each learned number is added to its ``.grad``.

        Returns:
            New tensor of the shape of ``weights``.

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
        """Return the kind, for ``repr``."""
        return self.kind


def add_gradient(parameter: Tensor, gradient: Tensor, rate: float | Tensor) -> None:
    """Add ``rate`` times a gradient to a parameter's ``.grad``; do nothing if the parameter does not require gradients.

    Args:
        parameter: learned number or numbers of a prior.
        gradient: gradient with as many elements.
        rate: factor of the gradient.

    >>> number = torch.nn.Parameter(torch.zeros(()))
    >>> add_gradient(number, torch.tensor(3.0), 0.5)
    >>> number.grad.item()
    1.5
    """
    if parameter.requires_grad:
        step = (gradient * rate).to(parameter).reshape(parameter.shape)
        parameter.grad = step if parameter.grad is None else parameter.grad.add_(step)


def around(centre: Tensor, width: Tensor, octaves: tuple[int, int]) -> Tensor:
    """Return the points ``centre`` and ``centre +- width * 2^k``, for k from the first to the last octave.

    Args:
        centre: centres, which broadcast with ``width``.
        width: positive widths.
        octaves: first and last k.

    Returns:
        Tensor with a new last axis of the points of each centre.
    """
    distance = width.unsqueeze(-1) * 2.0 ** torch.arange(octaves[0], octaves[1] + 1, dtype=width.dtype, device=width.device)
    middle = centre.to(width).unsqueeze(-1)
    both = torch.cat([middle - distance, middle + distance], dim=-1)
    return torch.cat([both, middle.expand(*both.shape[:-1], 1)], dim=-1)


class ScalePrior(Prior):
    """Base class of priors with a fixed location ``mean`` and one ``scale``, fixed or learned."""

    log_scale: Tensor

    def __init__(self, scale: float = 0.3, *, mean: float = 0.0, learn: Learn = "none") -> None:
        super().__init__()
        self._store("mean", mean, "none")
        self._store_scale(scale, learn)

    def typical_scale(self) -> Tensor:
        """Return the scale."""
        return self.log_scale.exp()

    def values(self) -> dict[str, Any]:
        """Return the current scale and the mean as floats, under ``scale`` and ``mean``."""
        return {"scale": math.exp(float(self.log_scale.detach())), "mean": float(self.mean)}

    def _learn_from_slope(self, slope: Tensor, distance: Tensor, rate: float) -> None:
        """Add the gradient of -log p by the log scale: for a scale family, the sum of 1 - slope (w - location)."""
        if rate and self.log_scale.requires_grad:
            add_gradient(self.log_scale, slope.numel() - torch.dot(slope.flatten(), distance.flatten()), rate)

    def _learn_from_kl(self, by_mean: Tensor, by_log_std: Tensor, distance: Tensor, rate: float) -> None:
        """Add the gradient of the KL by the log scale: for a scale family, -sum(by_mean (mean - location) + by_log_std)."""
        if rate and self.log_scale.requires_grad:
            add_gradient(self.log_scale, -torch.dot(by_mean.flatten(), distance.flatten()) - by_log_std.sum(), rate)
