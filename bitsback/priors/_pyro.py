"""Prior from any Pyro distribution, by its name."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, TransformedDistribution, constraints

from bitsback.errors import PriorError, near_miss
from bitsback.priors.base import Prior, add_gradient, around
from bitsback.registry import Learn

__all__ = ["PyroPrior"]


class PyroPrior(Prior):
    """Distribution of ``scale * X``, where X has the Pyro distribution ``distribution(**arguments)``.

    Args:
        distribution: a name in ``pyro.distributions``, for example ``"Normal"``, ``"AsymmetricLaplace"``.
        arguments: arguments of the distribution, numbers or lists of numbers.
        scale: factor of X; ``learn="gradient"`` learns it.
        learn: how the scale is learned.

    Raises:
        PriorError: for an unknown name, invalid arguments, an improper distribution, or a support that is not all of the reals
            (a Gaussian posterior then has infinite KL).

    >>> PyroPrior("Normal", {"loc": 0.0, "scale": 2.0}).typical_scale().item()
    2.0
    """

    kind = "pyro"
    log_scale: Tensor

    def __init__(self, distribution: str, arguments: dict[str, Any] | None = None, *, scale: float = 1.0,
                 learn: Learn = "none") -> None:  # fmt: skip
        super().__init__()
        self.distribution, self.arguments = distribution, dict(arguments or {})
        self._store_scale(scale, learn)
        base = self._base(torch.get_default_dtype())
        try:
            support = base.support
            whole = getattr(support, "base_constraint", support) is constraints.real or support is constraints.real_vector
        except NotImplementedError as error:
            raise PriorError(f"pyro.distributions.{distribution} does not say what its support is; use another") from error
        if not whole:
            raise PriorError(
                f"prior 'pyro' needs all reals as support, {distribution} has {support}; "
                "a Gaussian posterior would cost infinitely many bits"
            )

    def _base(self, dtype: torch.dtype) -> Distribution:
        import pyro.distributions as library

        names = [name for name in library.__all__ if isinstance(getattr(library, name), type)]
        if self.distribution not in names:
            hint = near_miss(self.distribution, names)
            raise PriorError(f"pyro.distributions has no '{self.distribution}'{hint}; see docs.pyro.ai for the names")
        if self.distribution == "ImproperUniform":
            raise PriorError(
                "pyro.distributions.ImproperUniform is improper: its mass is not one, so it codes no weights; use a proper "
                "prior, such as a wide gaussian"
            )
        try:
            numbers = {key: self._tensor(value, dtype) for key, value in self.arguments.items()}
            return getattr(library, self.distribution)(**numbers, validate_args=True)
        except Exception as error:  # whatever the distribution raises
            reason = str(error).splitlines()[0]
            raise PriorError(f"pyro.distributions.{self.distribution} refuses {self.arguments}: {reason}") from error

    def _tensor(self, value: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=self.log_scale.device)

    def forward(self) -> Distribution:
        """Return the distribution p(w)."""
        base = self._base(self.log_scale.dtype)
        event_dim = len(base.event_shape)
        return TransformedDistribution(base, AffineTransform(0.0, self.log_scale.exp(), event_dim), validate_args=False)

    @torch.no_grad()
    def slope(self, weights: Tensor, rate: float = 0.0) -> Tensor:
        """Return the slope of -log p, by autograd at w / scale.

        Args:
            weights: weights.
            rate: factor with which the gradient by the log scale, sum(1 - slope w), is added to its ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        scale = self.log_scale.exp()
        at = weights / scale
        with torch.enable_grad(), torch.autocast(weights.device.type, enabled=False):
            log_p = self._base(self.log_scale.dtype).log_prob(at.requires_grad_())
            (slope,) = torch.autograd.grad(log_p, at, (-1 / scale).to(log_p).expand_as(log_p))
        if rate and self.log_scale.requires_grad:
            add_gradient(self.log_scale, slope.numel() - torch.dot(slope.flatten(), weights.flatten()), rate)
        return slope

    def check(self, shape: torch.Size) -> None:
        """Raise PriorError if batch or event shape do not fit the weight."""
        base = self._base(torch.get_default_dtype())
        event = tuple(base.event_shape)
        if base.batch_shape.numel() != 1 or (event and tuple(shape[-len(event) :]) != event):
            raise PriorError(
                f"pyro.distributions.{self.distribution} with {self.arguments} has batch {tuple(base.batch_shape)} and event "
                f"{event}, which does not fit a weight of shape {tuple(shape)}; give single numbers, or use prior_overrides"
            )

    def typical_scale(self) -> Tensor:
        """Return ``scale`` times the scale (or std) of X."""
        base = self._base(self.log_scale.dtype)
        return self.log_scale.exp() * _width(base)

    def breakpoints(self, fine: bool = True) -> Tensor:
        """Return points at which quadrature splits its panels."""
        base = self._base(self.log_scale.dtype)
        centre = getattr(base, "loc", torch.zeros_like(self.log_scale))
        return around(self.log_scale.exp() * centre, self.typical_scale(), (-6, 6) if fine else (0, 0))

    def values(self) -> dict[str, Any]:
        """Return the current numbers by name."""
        scale = math.exp(float(self.log_scale.detach()))
        return {"distribution": self.distribution, "arguments": self.arguments, "scale": scale}


def _width(base: Distribution) -> Tensor:
    """Return the scale of a distribution if it has one, else its std."""
    for name in ("scale", "stddev"):
        width = getattr(base, name, None)
        if isinstance(width, Tensor) and torch.isfinite(width).all() and (width > 0).all():
            return width
    raise PriorError(f"prior 'pyro' finds neither a scale nor a finite std on {type(base).__name__}; use another distribution")
