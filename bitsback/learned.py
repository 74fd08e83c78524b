"""Learned numbers that are not weights: the grids on which they are coded, and their cost in bits.

A receiver needs every learned number. Each is rounded to a grid with finitely many levels *before* the ledger is taken, so
that the value that is charged is the value in use.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from bitsback.errors import BitsbackError
from bitsback.ledger.entry import Charge
from bitsback.registry import GradientLearn as GradientLearn
from bitsback.registry import Learn as Learn

# A learned number, its grid and its bits, with k = level(x) and x' = round(x) = value(k):
#
#   UniformGrid(low, step, levels), for logarithms of scales and for logits:
#
#     low        low + step                      x x'           low + (levels - 1) step
#      |----------|----------|---- ... ----|-----*-|----- ... ----|
#     k = 0       1          2                     k              levels - 1       log2(levels) bits
#
#   Bfloat16Grid, Float32Grid: k is the bit pattern; steps grow with |x|           16 or 32 bits
#
# Closed form or gradient finds x; round_to_grid() replaces it by x'; the ledger charges bits_each, and a file holds k.

__all__ = [
    "BFLOAT16",
    "FLOAT32",
    "LOGIT",
    "LOG_SCALE",
    "Bfloat16Grid",
    "Float32Grid",
    "Grid",
    "Learned",
    "UniformGrid",
    "plain",
]


class Grid(Protocol):
    """A finite set of values with a fixed-length code."""

    @property
    def bits_each(self) -> float:
        """Return the bits for one number."""

    def round(self, values: Tensor) -> Tensor:
        """Round to the nearest value on the grid, elementwise, in the dtype of ``values``."""

    def level(self, values: Tensor) -> Tensor:
        """Return the index of the nearest value, from 0 to 2^bits_each - 1, as int64."""

    def value(self, levels: Tensor) -> Tensor:
        """Return the values at these indices, in float64."""


@dataclass(frozen=True)
class UniformGrid:
    """The values ``low + k * step`` for ``k = 0 .. levels - 1``.

    >>> grid = UniformGrid(low=-16.0, step=2**-5, levels=1024)
    >>> grid.bits_each, grid.round(torch.tensor([0.02, 99.0])).tolist()
    (10.0, [0.03125, 15.96875])
    """

    low: float
    step: float
    levels: int

    @property
    def bits_each(self) -> float:
        """Return log2 of the number of levels."""
        return math.log2(self.levels)

    def round(self, values: Tensor) -> Tensor:
        """Round to the nearest value on the grid."""
        return self.value(self.level(values)).to(values.dtype)

    def level(self, values: Tensor) -> Tensor:
        """Return the index of the nearest value; values beyond the ends take the first or last."""
        return ((values - self.low) / self.step).round().clamp(0, self.levels - 1).long()

    def value(self, levels: Tensor) -> Tensor:
        """Return ``low + level * step``."""
        return self.low + levels.double() * self.step


@dataclass(frozen=True)
class Bfloat16Grid:
    """The bfloat16 numbers: 16 bits, of which 8 are exponent and 7 mantissa; the range of float32.

    >>> BFLOAT16.round(torch.tensor([1.001])).item()
    1.0
    """

    bits_each: float = 16.0

    def round(self, values: Tensor) -> Tensor:
        """Round to bfloat16."""
        return values.to(torch.bfloat16).to(values.dtype)

    def level(self, values: Tensor) -> Tensor:
        """Return the 16-bit pattern."""
        # the mask makes patterns with the sign bit set positive
        return values.to(torch.bfloat16).view(torch.int16).long() & 0xFFFF

    def value(self, levels: Tensor) -> Tensor:
        """Return the number with this 16-bit pattern."""
        # a bfloat16 is the upper half of a float32
        return (levels << 16).to(torch.int32).view(torch.float32).double()


@dataclass(frozen=True)
class Float32Grid:
    """The single-precision numbers: 32 bits.

    >>> FLOAT32.value(FLOAT32.level(torch.tensor([0.1]))).float().item() == torch.tensor(0.1).item()
    True
    """

    bits_each: float = 32.0

    def round(self, values: Tensor) -> Tensor:
        """Round to float32."""
        return values.float().to(values.dtype)

    def level(self, values: Tensor) -> Tensor:
        """Return the 32-bit pattern."""
        return values.float().view(torch.int32).long() & 0xFFFFFFFF

    def value(self, levels: Tensor) -> Tensor:
        """Return the number with this 32-bit pattern."""
        return levels.to(torch.int32).view(torch.float32).double()


LOG_SCALE = UniformGrid(low=-16.0, step=2**-5, levels=1024)
"""Grid of natural logarithms of scales: 10 bits for a scale between e^-16 and e^16, to within 1.6 %."""

LOGIT = UniformGrid(low=-16.0, step=2**-4, levels=512)
"""Grid of logits of mixture weights: 9 bits each."""

BFLOAT16 = Bfloat16Grid()
"""Grid of locations and batch-norm statistics: 16 bits each."""

FLOAT32 = Float32Grid()
"""Grid of weights without a posterior: 32 bits each."""


class Learned(nn.Module):
    """Base class of modules with learned numbers that the ledger charges.

    Each number is stored by :meth:`_store`: as a buffer if it is fixed or learned in closed form, as a parameter if it is
    learned by gradient. Learned numbers are charged on the grid they were stored with.
    """

    kind: ClassVar[str]
    family: ClassVar[str]
    mistake: ClassVar[type[BitsbackError]] = BitsbackError
    has_closed_form: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._grids: dict[str, Grid] = {}
        self.learns_in_closed_form = False

    def _store(self, name: str, value: Any, learn: Learn, grid: Grid = LOG_SCALE) -> None:
        """Register a fixed or learned number, or several, under ``name``; ``grid`` applies if it is learned."""
        if learn == "closed_form" and not self.has_closed_form:
            raise self.mistake(f"{self.family} '{self.kind}' has no closed form for {name}; use learn='gradient'")
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).clone()
        if not torch.isfinite(tensor).all():
            raise self.mistake(f"{self.family} '{self.kind}' got {name} = {value}; every number must be finite")
        if learn == "gradient":
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)
        if learn != "none":  # a fixed number is part of the configuration, which the receiver holds
            self._grids[name] = grid
        self.learns_in_closed_form |= learn == "closed_form"

    def _store_scale(self, value: Any, learn: Learn, name: str = "scale") -> None:
        """Store a positive number (or several) as its logarithm ``log_NAME``."""
        scale = torch.as_tensor(value, dtype=torch.float64)
        if not bool((scale > 0).all() and torch.isfinite(scale).all()):
            raise self.mistake(
                f"{self.family} '{self.kind}' needs a positive, finite {name}, got {value}; set {self.family}.{name} above zero"
            )
        self._store(f"log_{name}", scale.log(), learn)

    def charges(self) -> list[Charge]:
        """Return the cost of every learned number."""
        return [Charge(name, getattr(self, name).numel(), grid.bits_each) for name, grid in self._grids.items()]

    def grids(self) -> dict[str, Grid]:
        """Return the grid of every learned number, by name."""
        return dict(self._grids)

    def round_to_grid(self) -> None:
        """Round every learned number to its grid, in place, so that the value charged is the value in use."""
        with torch.no_grad():
            for name, grid in self._grids.items():
                getattr(self, name).copy_(grid.round(getattr(self, name)))


def plain(tensor: Tensor) -> Any:
    """Convert a tensor to a float or nested list, in float64."""
    return tensor.detach().double().cpu().tolist()
