"""Prior from any Pyro distribution, by its name and arguments, some of which may be learned."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, TransformedDistribution, constraints

from bitsback.errors import PriorError, near_miss
from bitsback.learned import BFLOAT16, LOG_SCALE, LOGIT, Grid, plain
from bitsback.priors.base import Prior, add_gradient, around
from bitsback.registry import Learn

__all__ = ["PyroPrior", "pyro_class"]


class PyroPrior(Prior):
    """Distribution of ``scale * X``, where X has the Pyro distribution ``distribution(**arguments)``.

    Training follows -log p at the draw, for the weights and for every learned number. A learned argument is kept on the grid of
    its kind, on which it is charged: the logarithm of a positive one (10 bits), the logit of one between 0 and 1 (9 bits), any
    other real number in bfloat16 (16 bits).

    Args:
        distribution: a name in ``pyro.distributions``, for example ``"Normal"``, ``"AsymmetricLaplace"``.
        arguments: arguments of the distribution, numbers or lists of numbers; an argument that is a distribution itself is a
            mapping with ``distribution`` and ``arguments``.
        scale: factor of X; ``learn="gradient"`` learns it.
        learn: how the scale is learned.
        learned: names of arguments that are learned by gradient, from the values in ``arguments``.

    Raises:
        PriorError: for an unknown name, invalid arguments, an improper distribution, a support that is not all of the reals
            (a Gaussian posterior then has infinite KL), or an argument that cannot be learned.

    >>> PyroPrior("Normal", {"loc": 0.0, "scale": 2.0}).typical_scale().item()
    2.0
    >>> prior = PyroPrior("StudentT", {"df": 4.0, "loc": 0.0, "scale": 1.0}, scale=0.3, learned=["df"])
    >>> [(charge.name, charge.bits) for charge in prior.charges()]
    [('argument_df', 10.0)]
    """

    kind = "pyro"
    log_scale: Tensor

    def __init__(self, distribution: str, arguments: dict[str, Any] | None = None, *, scale: float = 1.0,
                 learn: Learn = "none", learned: Sequence[str] = ()) -> None:  # fmt: skip
        super().__init__()
        self.distribution, self.arguments, self.learned = distribution, dict(arguments or {}), tuple(learned)
        self._store_scale(scale, learn)
        self._constants: dict[tuple[torch.dtype, torch.device], dict[str, Any]] = {}
        self._kinds: dict[str, Grid] = {}
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
        for name in self.learned:
            self._learn(name, learn)

    def _learn(self, name: str, learn: Learn) -> None:
        """Store an argument as a learned number, on the grid of its kind."""
        if name not in self.arguments or isinstance(self.arguments[name], Mapping):
            hint = near_miss(name, self.arguments)
            raise PriorError(
                f"prior.learned names '{name}', which is no number in prior.arguments{hint}; give its first value there"
            )
        if name == "scale" and learn != "none":
            raise PriorError("prior.learned has 'scale', and prior.scale is learned as well, which is the same number twice; "
                             "set prior.learn to none")  # fmt: skip
        grid = _grid(pyro_class(self.distribution).arg_constraints.get(name))
        if grid is None:
            raise PriorError(f"the argument '{name}' of pyro.distributions.{self.distribution} cannot be learned: it is "
                             "neither "
                             "real, positive nor between 0 and 1; leave it out of prior.learned")  # fmt: skip
        value = torch.as_tensor(self.arguments[name], dtype=torch.float64)
        free = value.log() if grid == LOG_SCALE else value.logit() if grid == LOGIT else value
        self._kinds[name] = grid
        self._store(f"argument_{name}", free, "gradient", grid)

    def _base(self, dtype: torch.dtype) -> Distribution:
        """Return the distribution of X; its fixed arguments are checked once for each dtype and device."""
        place = (dtype, self.log_scale.device)
        is_new = place not in self._constants
        kept = {name: value for name, value in self.arguments.items() if name not in self._kinds}
        try:
            if is_new:
                self._constants[place] = {name: _number(value, *place) for name, value in kept.items()}
            numbers = {**self._constants[place], **{name: self._current(name).to(dtype) for name in self._kinds}}
            return pyro_class(self.distribution)(**numbers, validate_args=is_new)
        except PriorError:
            raise
        except Exception as error:  # whatever the distribution raises
            self._constants.pop(place, None)
            reason = str(error).splitlines()[0]
            raise PriorError(f"pyro.distributions.{self.distribution} refuses {self.arguments}: {reason}") from error

    def _current(self, name: str) -> Tensor:
        """Return the present value of a learned argument."""
        free: Tensor = getattr(self, f"argument_{name}")
        grid = self._kinds[name]
        return free.exp() if grid == LOG_SCALE else free.sigmoid() if grid == LOGIT else free

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
            rate: factor with which the gradient of -log p by the log scale, sum(1 - slope w), and by each learned argument is
                added to its ``.grad``.

        Returns:
            Slopes, the shape of ``weights``.
        """
        scale = self.log_scale.exp()
        at = weights / scale
        stored = [getattr(self, f"argument_{name}") for name in self._kinds]
        wanted = [number for number in stored if rate and number.requires_grad]
        with torch.enable_grad(), torch.autocast(weights.device.type, enabled=False):
            log_p = self._base(self.log_scale.dtype).log_prob(at.requires_grad_())
            weighting = (-1 / scale).to(log_p).expand_as(log_p)
            slope, *gradients = torch.autograd.grad(log_p, [at, *wanted], weighting, materialize_grads=True)
        for number, gradient in zip(wanted, gradients, strict=True):
            add_gradient(number, gradient * scale, rate)
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
        learned = {name: plain(self._current(name)) for name in self._kinds}
        return {"distribution": self.distribution, "arguments": {**self.arguments, **learned}, "scale": scale}


def pyro_class(name: str) -> Any:
    """Return a class of ``pyro.distributions``; raises PriorError for an unknown name or an improper distribution."""
    import pyro.distributions as library

    found = getattr(library, name, None) if name in library.__all__ else None
    if not isinstance(found, type):
        names = [each for each in library.__all__ if isinstance(getattr(library, each), type)]
        raise PriorError(f"pyro.distributions has no '{name}'{near_miss(name, names)}; see docs.pyro.ai for the names")
    if name == "ImproperUniform":
        raise PriorError(
            "pyro.distributions.ImproperUniform is improper: its mass is not one, so it codes no weights; use a proper "
            "prior, such as a wide gaussian"
        )
    return found


def _number(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return an argument as a tensor, or the distribution that a mapping names."""
    if isinstance(value, Mapping) and "distribution" in value:
        arguments = {key: _number(each, dtype, device) for key, each in value.get("arguments", {}).items()}
        return pyro_class(value["distribution"])(**arguments, validate_args=True)
    return torch.tensor(value, dtype=dtype, device=device)


def _grid(constraint: Any) -> Grid | None:
    """Return the grid on which an argument with this constraint is learned; None if there is none."""
    constraint = getattr(constraint, "base_constraint", constraint)
    if constraint is constraints.real or constraint is constraints.real_vector:
        return BFLOAT16
    if constraint is constraints.unit_interval:
        return LOGIT
    is_bounded = isinstance(constraint, type(constraints.positive) | type(constraints.nonnegative))
    return LOG_SCALE if is_bounded and constraint.lower_bound == 0 else None


def _width(base: Distribution) -> Tensor:
    """Return the scale of a distribution if it has one, else its std."""
    for name in ("scale", "stddev"):
        width = getattr(base, name, None)
        if isinstance(width, Tensor) and torch.isfinite(width).all() and (width > 0).all():
            return width
    raise PriorError(f"prior 'pyro' finds neither a scale nor a finite std on {type(base).__name__}; use another distribution")
