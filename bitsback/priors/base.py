"""What every prior offers: a distribution of mass one, and an honest account of the numbers it learned."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.distributions import Distribution

from bitsback.errors import PriorError
from bitsback.learned import Learn, Learned
from bitsback.registry import Registry, Settings

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
    prior, settings, registration).
    """

    family = "prior"
    mistake = PriorError
    mean: Tensor
    needs_draw: ClassVar[bool] = True
    """Whether :meth:`kl_gradient` looks at the draw; closed forms and tables do not."""

    @abstractmethod
    def forward(self) -> Distribution:
        """The distribution p, whose batch shape broadcasts with the weight tensor."""

    @abstractmethod
    def width(self) -> Tensor:
        """A typical width of the density (a scale, not a std: a Cauchy has none); a positive tensor."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """The numbers in use as plain floats and lists, enough to rebuild the density elsewhere."""

    def breakpoints(self, fine: bool = True) -> Tensor:
        """Where the density bends, shape (b,): quadrature splits its panels there. Coarse is enough for training."""
        return around(self.mean, self.width(), (-2, 4) if fine else (0, 0))

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

    def extra_repr(self) -> str:
        return self.kind


def around(centre: Tensor, width: Tensor, octaves: tuple[int, int]) -> Tensor:
    """Points ``centre`` and ``centre +- width * 2^k``, for k from the first to the last octave, along a new last axis."""
    distance = width.unsqueeze(-1) * 2.0 ** torch.arange(octaves[0], octaves[1] + 1, dtype=width.dtype, device=width.device)
    middle = centre.to(width).unsqueeze(-1)
    both = torch.cat([middle - distance, middle + distance], dim=-1)
    return torch.cat([both, middle.expand(*both.shape[:-1], 1)], dim=-1)


class PriorSettings(Settings):
    """What every prior can be told: how its numbers are learned, and which weights share them."""

    kind: str
    learn: Learn = Field(
        "gradient", description="none: numbers stay as given; otherwise they are learned, rounded to a grid and charged"
    )
    per: Literal["tensor", "layer", "model"] = Field("tensor", description="which weights share one set of numbers")

    @abstractmethod
    def build(self, weight: WeightInfo) -> Prior:
        """The prior of one weight tensor, or of the group of tensors that begins with it."""


class ScaleSettings(PriorSettings):
    """Settings of a prior with a location and a scale."""

    scale: PositiveFloat = Field(0.3, description="scale of the prior, at the start when it is learned")
    mean: float = Field(0.0, description="location of the prior, the same for every weight; never learned")
    relative_to: Literal["absolute", "fan_in"] = Field(
        "absolute", description="absolute: scale as it stands; fan_in: scale times 1/sqrt(fan_in)"
    )

    def start_scale(self, weight: WeightInfo) -> float:
        """The scale at the start, in absolute units."""
        return self.scale / math.sqrt(weight.fan_in) if self.relative_to == "fan_in" else self.scale


class ScalePrior(Prior):
    """A prior with a fixed location ``mean`` and one ``scale``, fixed or learned."""

    log_scale: Tensor

    def __init__(self, scale: float = 0.3, *, mean: float = 0.0, learn: Learn = "none") -> None:
        super().__init__()
        self._store("mean", mean, "none")
        self._store_scale(scale, learn)

    def width(self) -> Tensor:
        return self.log_scale.exp()

    def values(self) -> dict[str, Any]:
        return {"scale": math.exp(float(self.log_scale.detach())), "mean": float(self.mean)}


registry: Registry[type[PriorSettings]] = Registry("prior")
