"""One weight tensor of a network that holds draws, with its posterior and its prior."""

import weakref
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError
from bitsback.layers import Choice
from bitsback.model.pieces import side_by_side
from bitsback.posteriors import GaussianPosterior, Posterior
from bitsback.priors import Prior

__all__ = ["COARSE", "Holds", "State", "Weight", "carry", "difference", "differs"]

ROUNDING = 8
"""Units in the last place by which a value made again may differ."""

COARSE = 2.0**-12
"""A std below this share of its mean: w - m has lost too many of its digits, and the noise is made again from its seed."""

NOTHING = 2.0**-40
"""A std below this share of its mean moves nothing."""

Holds = Literal["draw", "mean"]


class State(NamedTuple):
    """What the weights hold: their means, or the draw of a seed and a number, mirrored where the sign is -1."""

    holds: Holds
    seed: int
    number: int
    sign: int = 1


class Weight:
    """One weight tensor of a network, with its posterior and its prior.

    Attributes:
        name: dotted name in the network.
        posterior, prior: q and p.
        index: which of the network's weight tensors it is; a stream of noise.
        noise_on_outputs: a training adds noise to the outputs of its layer, and lets the weight hold its mean.
        is_narrow: stds lie far below their means, as :meth:`look` found it; None where others have set the posterior since.
    """

    def __init__(self, choice: Choice, posterior: Posterior, prior: Prior, index: int) -> None:
        self.name, self.refs, self.index = choice.name, choice.refs, index
        self.posterior, self.prior = posterior, prior
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
        """The first module that reads it."""
        return self.refs[0].owner

    @property
    def local(self) -> str:
        """Its name there."""
        return self.refs[0].local

    @property
    def parameter(self) -> nn.Parameter:
        """The network's parameter, which holds the current draw.

        Raises:
            LayerError: when another parameter lies in its place.
        """
        found = self.owner._parameters.get(self.local)
        if found is not self.known:
            what = "was replaced by another parameter" if found is not None else "is gone"
            raise LayerError(
                f"'{self.name}' {what} since bayesianize; write into it (with torch.no_grad(): weight.copy_(...)), or make a "
                "new model of the changed network"
            )
        if found.shape != next(iter(self._parts())).shape:
            raise LayerError(
                f"'{self.name}' has changed its shape from {tuple(self.posterior.mean.shape)} to {tuple(found.shape)} since "
                "bayesianize; make a new model of the changed network"
            )
        return found

    @property
    def is_gaussian(self) -> bool:
        """Whether it is drawn at all."""
        return isinstance(self.posterior, GaussianPosterior)

    @property
    def is_trained(self) -> bool:
        """Whether an optimiser may move it: frozen weights do not require gradients."""
        return self.known.requires_grad

    @torch.no_grad()
    def look(self) -> None:
        """See whether some std is so far below its mean that w - m has too few digits."""
        q = self.posterior
        if isinstance(q, GaussianPosterior):
            self.is_narrow = any(_has_narrow(m, log_std) for m, log_std in side_by_side(q.mean, q.log_std))

    @property
    def is_coarse(self) -> bool:
        """Whether s e has to be made again, for the weight holds too few digits of it."""
        if self.is_gaussian and self.is_narrow is None:
            self.look()
        return self.is_gaussian and (bool(self.is_narrow) or self.known.dtype != next(iter(self._parts())).dtype)

    def tensors(self) -> list[Tensor]:
        """The parameter, and its posterior's: mean, and log std unless it is a point."""
        return [self.parameter, *self._parts()]

    def _parts(self) -> Iterable[Tensor]:
        """Mean and log std, without torch's walk through modules."""
        return self.posterior._parameters.values()  # type: ignore[return-value]

    def versions(self) -> tuple[int, ...]:
        """What tells that somebody has written to the weight or its posterior."""
        return (self.known._version, *[part._version for part in self._parts()])

    def use_gradient(self) -> None:
        """Remember that an optimiser's step has used the gradient."""
        gradient = self.known.grad
        self._used = (weakref.ref(gradient), gradient._version) if gradient is not None else None

    @property
    def has_used_gradient(self) -> bool:
        """Whether the gradient is one that a step has used."""
        if self._used is None:
            return False
        gradient = self.known.grad
        return gradient is not None and self._used[0]() is gradient and self._used[1] == gradient._version

    def mark(self) -> None:
        """Remember that the weight holds what was written last."""
        self.seen = self.versions()

    def __getstate__(self) -> dict[str, Any]:
        moved = tuple(now != then for now, then in zip(self.versions(), self.seen, strict=True)) if self.seen else ()
        return {**self.__dict__, "seen": moved, "_used": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copy over: tensors of a copy count their versions anew, and what was written to stays so."""
        self.__dict__.update(state)
        self.seen = tuple(now - moved for now, moved in zip(self.versions(), self.seen, strict=True)) if self.seen else ()

    def __repr__(self) -> str:
        return f"Weight({self.name!r}, {self.posterior}, {self.prior})"


def _has_narrow(mean: Tensor, log_std: Tensor) -> bool:
    """Return whether a std lies far below its mean, and yet moves it."""
    share = log_std.exp().div_(mean.abs())
    if share.amin() >= 2 * COARSE:  # false for nan
        return False
    return bool(((share < 2 * COARSE) & (share > NOTHING)).any())


def differs(parameter: Tensor, value: Tensor, q: Posterior) -> Tensor:
    """Return which elements differ by more than rounding."""
    kind = parameter.dtype if torch.finfo(parameter.dtype).eps > torch.finfo(value.dtype).eps else value.dtype
    slack = ROUNDING * torch.finfo(kind).eps
    difference = (parameter.to(value.dtype) - value).abs()
    return ~(difference <= slack * (value.abs() + q.mean.abs()))  # a nan differs


def difference(weight: Weight, after: Tensor, before: Tensor) -> Tensor:
    """Return after - before, in the precision of the mean."""
    dtype = weight.posterior.mean.dtype
    return after.to(dtype) - before.to(dtype)


def carry(weight: Weight, change: Tensor) -> None:
    """The weight has changed by so much with a gradient pending."""
    q, gradient = weight.posterior, weight.parameter.grad
    assert isinstance(q, GaussianPosterior)
    assert gradient is not None
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    if q.log_std.grad is None:
        q.log_std.grad = torch.zeros_like(q.log_std)
    q.log_std.grad.addcmul_(dense.to(q.mean.dtype), change, value=-1)
