"""Weight tensor of a Bayesian model, with its posterior and its prior."""

import weakref
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bitsback.distributed import Shard, local, whole
from bitsback.errors import LayerError
from bitsback.layers import Choice
from bitsback.model.noise import Noise, fill_part, mixed
from bitsback.model.pieces import side_by_side
from bitsback.posteriors import GaussianPosterior, Posterior
from bitsback.priors import Prior

__all__ = ["COARSE", "Holds", "State", "Weight", "carry", "difference", "differs"]

ROUNDING = 8
"""Units in the last place by which a recomputed value may differ."""

COARSE = 2.0**-12
"""Ratio of std to mean below which w - m has lost too many digits, so that s e is recomputed from the seed instead."""

NOTHING = 2.0**-40
"""Ratio of std to mean below which s e does not change the weight at all, in float32."""

Holds = Literal["draw", "mean"]


class State(NamedTuple):
    """Value of all weights: their means, or the draw m + sign s e with e from (seed, number).

    Attributes:
        holds: ``mean`` or ``draw``.
        seed: seed of the noise.
        number: number of the draw; negative for draws that are not training draws.
        sign: 1, or -1 for the mirrored draw.
        lane: 0 for the draw that all processes share, or the number of the process whose own draw it is.
    """

    holds: Holds
    seed: int
    number: int
    sign: int = 1
    lane: int = 0

    @property
    def noise_seed(self) -> int:
        """Return the seed of the noise."""
        return mixed(self.seed, self.lane) if self.lane else self.seed


class Weight:
    """Weight tensor of a network, with its posterior and its prior.

    Attributes:
        name: dotted name in the network.
        refs: all places where it is read; several if it is tied.
        posterior, prior: q and p; of a weight of which each process holds a shard, the posterior of the shard.
        shown: the posterior as it is registered in the model: ``posterior`` itself, or one with DTensors in its memory.
        shard: place of this process's shard, or None for a weight that is held as a whole.
        index: index among the model's weight tensors, and number of its noise stream.
        known: the network's parameter when it was last looked up.
        seen: version counters of parameter, mean and log std when the weight was last written.
        noise_on_outputs: True while training uses local reparameterisation for its layer: the weight then holds its mean.
        is_narrow: whether stds lie far below their means, as found by :meth:`look`; None if not known.
        constant_row: index of a row that is never drawn (``padding_idx`` of an embedding), or None.
        is_rewritten_in_forward: True if the layer's forward changes the weight (``max_norm`` of an embedding).
    """

    def __init__(self, choice: Choice, posterior: Posterior, prior: Prior, index: int) -> None:
        self.name, self.refs, self.index = choice.name, choice.refs, index
        self.posterior, self.prior = posterior, prior
        self.shown = posterior
        self.shard: Shard | None = None
        self.known = choice.refs[0].parameter
        self.noise_on_outputs = False
        self.is_narrow: bool | None = None
        self._used: tuple[Any, int] | None = None
        self.seen: tuple[int, ...] = ()
        owner = self.owner
        self.constant_row: int | None = getattr(owner, "padding_idx", None) if self.local == "weight" else None
        self.is_rewritten_in_forward = getattr(owner, "max_norm", None) is not None

    @property
    def owner(self) -> nn.Module:
        """Return the first module that reads it."""
        return self.refs[0].owner

    @property
    def local(self) -> str:
        """Return its name in :attr:`owner`."""
        return self.refs[0].local

    @property
    def parameter(self) -> nn.Parameter:
        """Return the network's parameter, which holds the current draw; the shard of a DTensor.

        Raises:
            LayerError: when the parameter was replaced, removed or changed its shape.
        """
        found = self.owner._parameters.get(self.local)
        if found is not self.known:
            what = "was replaced by another parameter" if found is not None else "is gone"
            raise LayerError(
                f"'{self.name}' {what} since bayesianize; write into it (with torch.no_grad(): weight.copy_(...)), or make a "
                "new model of the changed network"
            )
        if self.shard is not None:
            found = local(found)  # type: ignore[assignment]
        if found.shape != next(iter(self._parts())).shape:
            raise LayerError(
                f"'{self.name}' has changed its shape from {tuple(self.posterior.mean.shape)} to {tuple(found.shape)} since "
                "bayesianize; make a new model of the changed network"
            )
        return found

    @property
    def is_gaussian(self) -> bool:
        """Return True if the posterior is Gaussian, False for a point estimate."""
        return isinstance(self.posterior, GaussianPosterior)

    @property
    def gradient(self) -> Tensor | None:
        """Return the gradient of the parameter, that of its shard for a DTensor; None if there is none."""
        gradient = self.known.grad
        return gradient if self.shard is None or gradient is None else local(gradient)

    @property
    def numel(self) -> int:
        """Return the number of weights in the whole tensor."""
        return self.posterior.numel if self.shard is None else self.shard.whole

    def whole(self, part: Tensor) -> Tensor:
        """Return the whole tensor of which a process holds a part of the posterior's shape (collective for shards)."""
        return part if self.shard is None else whole(self.shard.global_(part.detach()))

    def fill(self, source: Noise, out: Tensor, state: State, start: int = 0) -> Tensor:
        """Fill a tensor (n,) with the noise of a draw, from element ``start`` of this process's part on.

        Args:
            source: generator.
            out: filled in place.
            state: seed and number of the draw.
            start: index of the first element, a multiple of the noise's blocks.

        Returns:
            ``out``.
        """
        if self.shard is None:
            return source.fill(out, state.noise_seed, state.number, self.index, start)
        place = state.noise_seed, state.number, self.index
        return fill_part(source, out, place, self.shard.first + start, self.shard.whole)

    @property
    def is_trained(self) -> bool:
        """Return True if the parameter requires gradients; frozen weights are not moved."""
        return self.known.requires_grad

    @torch.no_grad()
    def look(self) -> None:
        """Set :attr:`is_narrow`: whether some std is so far below its mean that w - m has too few digits."""
        q = self.posterior
        if isinstance(q, GaussianPosterior):
            self.is_narrow = any(_has_narrow(m, log_std) for m, log_std in side_by_side(q.mean, q.log_std))

    @property
    def is_coarse(self) -> bool:
        """Return True if w - m has too few digits of s e (narrow stds or a half-precision weight), which is then recomputed."""
        if self.is_gaussian and self.is_narrow is None:
            self.look()
        return self.is_gaussian and (bool(self.is_narrow) or self.known.dtype != next(iter(self._parts())).dtype)

    def tensors(self) -> list[Tensor]:
        """Return the parameter, the mean and, unless it is a point, the log std."""
        return [self.parameter, *self._parts()]

    def gaussian_tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parameter, mean and log std of a Gaussian, detached."""
        parameter, mean, log_std = (tensor.detach() for tensor in self.tensors())
        return parameter, mean, log_std

    def _parts(self) -> Iterable[Tensor]:
        """Return mean and log std."""
        # Avoids torch's walk through modules, because this is called several times for each weight and step.
        return self.posterior._parameters.values()  # type: ignore[return-value]

    def versions(self) -> tuple[int, ...]:
        """Return torch's version counters of parameter, mean and log std, which in-place writes increase."""
        known = self.known if self.shard is None else local(self.known)
        return (known._version, *[part._version for part in self._parts()])

    def use_gradient(self) -> None:
        """Mark the current gradient as used by an optimiser step."""
        # A weak reference and a version: the next backward makes a new tensor or adds to this one.
        gradient = self.gradient
        self._used = (weakref.ref(gradient), gradient._version) if gradient is not None else None

    @property
    def has_used_gradient(self) -> bool:
        """Return True if the gradient was used by a step and has not changed since."""
        if self._used is None:
            return False
        gradient = self.gradient
        return gradient is not None and self._used[0]() is gradient and self._used[1] == gradient._version

    def mark(self) -> None:
        """Store the version counters: the weight now holds the value of the current state."""
        self.seen = self.versions()

    def __getstate__(self) -> dict[str, Any]:
        moved = tuple(now != then for now, then in zip(self.versions(), self.seen, strict=True)) if self.seen else ()
        return {**self.__dict__, "seen": moved, "_used": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy: its version counters start anew, and tensors written to before the copy still count as written."""
        self.__dict__.update(state)
        self.seen = tuple(now - moved for now, moved in zip(self.versions(), self.seen, strict=True)) if self.seen else ()

    def __repr__(self) -> str:
        return f"Weight({self.name!r}, {self.posterior}, {self.prior})"


def _has_narrow(mean: Tensor, log_std: Tensor) -> bool:
    """Return True if a std lies below twice :data:`COARSE` times its mean, and above :data:`NOTHING` times it."""
    share = log_std.exp().div_(mean.abs())
    if not share.numel() or share.amin() >= 2 * COARSE:  # false for nan
        return False
    return bool(((share < 2 * COARSE) & (share > NOTHING)).any())


def differs(parameter: Tensor, value: Tensor, q: Posterior) -> Tensor:
    """Return which elements of a parameter differ from a value by more than rounding.

    Args:
        parameter: parameter, possibly in lower precision.
        value: expected value, the same shape.
        q: posterior; the tolerance scales with abs(value) + abs(mean).

    Returns:
        Boolean tensor of that shape.
    """
    kind = parameter.dtype if torch.finfo(parameter.dtype).eps > torch.finfo(value.dtype).eps else value.dtype
    slack = ROUNDING * torch.finfo(kind).eps
    difference = (parameter.to(value.dtype) - value).abs()
    return ~(difference <= slack * (value.abs() + q.mean.abs()))  # a nan differs


def difference(weight: Weight, after: Tensor, before: Tensor) -> Tensor:
    """Return ``after - before`` in the dtype of the mean.

    Args:
        weight: weight whose values these are.
        after: new value.
        before: old value.

    Returns:
        Tensor of the weight's shape.
    """
    dtype = weight.posterior.mean.dtype
    return after.to(dtype) - before.to(dtype)


def carry(weight: Weight, change: Tensor) -> None:
    """Subtract gradient times change from ``log_std.grad`` where a weight changes while its gradient is pending.

    The optimiser later adds gradient times (weight - mean), with the weight's last value. A gradient that was taken at an
    earlier value is thereby multiplied by the wrong difference, and this correction makes up for it.

    Args:
        weight: Gaussian weight whose parameter has a gradient.
        change: new value minus old value, in the dtype of the mean.
    """
    q, gradient = weight.posterior, weight.gradient
    assert isinstance(q, GaussianPosterior)
    assert gradient is not None
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    if q.log_std.grad is None:
        q.log_std.grad = torch.zeros_like(q.log_std)
    q.log_std.grad.addcmul_(dense.to(q.mean.dtype), change, value=-1)
