"""One pass over the weights in an optimiser step, piece by piece: gradients, update, sums for the next KL, next draw."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, repeat
from typing import Any, Protocol

import torch
from torch import Tensor

from bitsback.model import BayesianModel, State, Weight
from bitsback.model.pieces import PIECE, Scratch, are_alike, as_laid, is_dense, rows
from bitsback.optim._cost import GaussianCost, sums_of
from bitsback.posteriors import Posterior

__all__ = ["Gradients", "Move", "Sweep", "UpdateRule", "aligned"]

# Each piece (131,072 numbers on a CPU, the whole tensor on other devices) goes through all stages before the next is loaded,
# so that main memory is read and written once a step:
#
#     w    m    log s    g = w.grad                      read
#     |    |      |          |
#     v    v      v          v
#     gm = g         + k dKL/dm                          gradients, in scratch buffers
#     gl = g (w - m) + k dKL/dlog s + log_std.grad
#                 |
#                 v
#     m, log s  <-  update of the optimiser (Move)       in place
#         |
#         +---->  sum s^2, sum (m - mu)^2                kept for the KL and the prior's scale of the next step
#         v
#     w  <-  m + s e                                     next draw, e from (seed, draw number) of Sweep.state

Gradients = tuple[Tensor, Tensor | None, float]
"""Gradient by the mean, by the log std (None for a point), and pull: the full mean gradient is the first plus pull * m."""

Move = Callable[[int, Tensor, Tensor | None, Tensor, Tensor | None, float], None]
"""Update of one piece: (number, mean, log std or None for a point, *:data:`Gradients`); the mean's gradient is read-only."""


class UpdateRule(Protocol):
    """Update of an optimiser, as a pass over the weights needs it."""

    rule: int
    """Number of the update in the kernels of :mod:`bitsback.kernels`."""
    param_groups: list[dict[str, Any]]

    def mover(self, weight: Weight) -> Move:
        """Return the function that updates each piece of a weight in this step."""

    def move_all(
        self, weights: Sequence[Weight], means: list[Tensor], log_stds: list[Tensor], gm: list[Tensor], gl: list[Tensor]
    ) -> None:
        """Update whole weights by the gradients of their means and log stds.

        Args:
            weights: Gaussian weights.
            means: their means.
            log_stds: their log stds.
            gm: gradients by the means.
            gl: gradients by the log stds.
        """

    def averages_of(self, weight: Weight) -> list[Tensor]:
        """Return the running averages of a weight, in the memory layout of its mean."""

    def count_of(self, parameter: Tensor) -> Tensor:
        """Return the number of steps that a parameter has been moved in, a scalar tensor on its device."""

    def settings_of(self, weight: Weight) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the groups of the mean and of the log std of a weight; None for the latter if it is a point."""


SPREAD, STD, MEAN_GRADIENT, NOISE, SQUARE = range(5)
"""Numbers of the scratch buffers."""


class Sweep:
    """Pass over the weights of one optimiser step.

    Args:
        model: model whose weights are moved.
        cost: closed-form KL of the tensors it contains; its sums are updated by :meth:`end`.
        k: gradient of the loss with respect to the KL in nats.
        state: seed and number of the next draw.
        scratch: buffers that are kept from step to step.
        kl_weights: by weight index, factor of the KL of each element, the shape of the weight.
    """

    def __init__(
        self, model: BayesianModel, cost: GaussianCost, k: float, state: State, scratch: Scratch, kl_weights: dict[int, Tensor]
    ) -> None:
        self.kl_weights = kl_weights
        self.model, self.cost, self.k, self.state, self.scratch = model, cost, k, state, scratch
        self._spreads: dict[int, Tensor] = {}
        self._pool: Tensor | None = None
        self._sums: list[tuple[int, list[Tensor]]] = []
        self._minus_k: Tensor | None = None
        self._buffer = scratch.get

    def begin(self, weights: Sequence[Weight]) -> None:
        """Compute w - m of coarse weights (:attr:`Weight.is_coarse`) from the noise of the current draw, and fetch the next."""
        # In this order: the pool's view of the current draw is invalid once the next one is asked for.
        model, now = self.model, self.model.state
        coarse = [weight for weight in weights if weight.is_coarse and not weight.noise_on_outputs]
        pool = model.noise_of(now) if coarse else None
        for weight in coarse:
            self._spreads[weight.index] = model.spread(weight, now, pool)
        self._pool = model.noise_of(self.state)

    def move(self, weights: Sequence[Weight], rule: UpdateRule) -> None:
        """Compute the gradients of weights, move them and write their next draws, each piece while it is in the cache.

        Args:
            weights: weights to move.
            rule: makes the update of each.
        """
        for weight in weights:
            self._weight(weight, rule.mover)

    def fill(self, weights: Sequence[Weight]) -> None:
        """Leave the gradients of weights in ``.grad`` of their means and log stds.

        Args:
            weights: weights, for which :meth:`move_filled` or :meth:`rewrite` is to be called later.
        """
        for weight in weights:
            self._weight(weight, None)

    def move_filled(self, weights: Sequence[Weight], rule: UpdateRule) -> None:
        """Move weights by the gradients in ``.grad`` of means and log stds, write their next draws, and clear those gradients.

        Args:
            weights: weights to move.
            rule: makes the update of each.
        """
        for weight in weights:
            move = rule.mover(weight)
            several = list(weight.posterior.parameters())
            cut = [rows(t) for p in several for t in (p, p.grad) if t is not None]
            for number, (m, gm, *rest) in enumerate(zip(*cut, strict=True)):
                move(number, m, rest[0] if rest else None, gm, rest[1] if rest else None, 0.0)
        self.rewrite(weights)

    def rewrite(self, weights: Sequence[Weight]) -> None:
        """Write the next draws of weights that have been moved, and clear ``.grad`` of their means and log stds.

        Args:
            weights: weights whose means and log stds are the new ones.
        """
        for weight in weights:
            self._rewrite(weight)
            for p in weight.posterior.parameters():
                p.grad = None

    def _weight(self, weight: Weight, mover: Callable[[Weight], Move] | None) -> None:
        """Compute the gradients of one weight; with a mover, move it and write its next draw, else fill ``.grad``."""
        tensors = weight.tensors()
        pieces = self._pieces(weight, tensors)  # makes w, m, log s dense and equally laid out in memory
        _, mean, *wide = tensors
        given = [self._data_gradient(weight.gradient, mean)]
        for tensor in (wide[0].grad if wide else None, self._spreads.get(weight.index), self.kl_weights.get(weight.index)):
            given.append(tensor if tensor is None else as_laid(tensor, mean))
        gradients: Iterable[Gradients]
        if weight.index in self.cost or weight.prior.is_elementwise:
            cut = [repeat(None) if tensor is None else rows(tensor) for tensor in given]
            gradients = map(self._gradients, repeat(weight), pieces, count(), *cut)
        else:
            gradients = self._whole_gradients(weight, given)
        if mover is None:
            self._fill(weight.posterior, pieces, gradients)
            return
        move, sums = mover(weight), []
        for number, (piece, (gm, gl, pull)) in enumerate(zip(pieces, gradients, strict=True)):
            move(number, piece[1], piece[2] if wide else None, gm, gl, pull)
            sums += self.written(weight, piece, number)
        self.wrote(weight, sums)

    def _pieces(self, weight: Weight, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return pieces (w, m, log s) as flat views."""
        return self.scratch.rows.of(weight.index, tensors, lambda: aligned(weight))

    def _fill(self, q: Posterior, pieces: Sequence[tuple[Tensor, ...]], gradients: Iterable[Gradients]) -> None:
        """Write the gradients into ``.grad`` of mean and log std."""
        full = [torch.empty_like(p) for p in q.parameters()]
        cut = zip(*map(rows, full), strict=True)
        for (_, m, *_), (gm, gl, pull), (into, *wide) in zip(pieces, gradients, cut, strict=True):
            torch.add(gm, m, alpha=pull, out=into)
            if gl is not None:
                wide[0].copy_(gl)
        for p, gradient in zip(q.parameters(), full, strict=True):
            p.grad = gradient

    def _rewrite(self, weight: Weight) -> None:
        sums: list[Tensor] = []
        for number, piece in enumerate(self._pieces(weight, weight.tensors())):
            sums += self.written(weight, piece, number)
        self.wrote(weight, sums)

    def written(self, weight: Weight, piece: tuple[Tensor, ...], number: int) -> list[Tensor]:
        """Write w = m + s e over a piece.

        Args:
            weight: weight the piece belongs to.
            piece: views (n,) of w, m and, unless it is a point, log s.
            number: index of the piece in the tensor.

        Returns:
            Sums of s^2 and (m - mu)^2 as scalar tensors; empty if the KL is not in :attr:`cost`.
        """
        w, m, *wide = piece
        is_counted = weight.index in self.cost
        if not wide or (weight.noise_on_outputs and not is_counted):
            w.copy_(m)
            return []
        std = torch.exp(wide[0], out=self._buffer(STD, m))
        sums: list[Tensor] = []
        if is_counted:
            centre = self.cost.priors[id(weight.prior)].centre
            sums = sums_of(torch.sub(m, centre, out=self._buffer(SQUARE, m)) if centre else m, std)
        if weight.noise_on_outputs:
            w.copy_(m)
            return sums
        if w.dtype == m.dtype:
            torch.addcmul(m, std, self._noise(weight, w, number), out=w)
        else:
            w.copy_(torch.addcmul(m, std, self._noise(weight, self._buffer(NOISE, m), number)))
        return sums

    def wrote(self, weight: Weight, sums: list[Tensor]) -> None:
        """Finish a weight whose pieces hold the next draw: restore its constant row, record its sums and versions.

        Args:
            weight: weight whose pieces are written.
            sums: sums of its pieces, as :meth:`written` returns them.
        """
        if weight.constant_row is not None:
            weight.parameter.detach()[weight.constant_row] = weight.posterior.mean[weight.constant_row]
        if sums:
            self._sums.append((weight.index, sums))
        weight.mark()

    def end(self) -> None:
        """Pass the sums of all weights to the cost, with one transfer from the device."""
        if not self._sums:
            return
        every = [one for _, sums in self._sums for one in sums]
        numbers = iter(map(float, every) if every[0].is_cpu else torch.stack(every).tolist())
        for number, sums in self._sums:
            own = [next(numbers) for _ in sums]
            self.cost.sums[number] = sum(own[::2]), sum(own[1::2])

    def _gradients(
        self, weight: Weight, piece: tuple[Tensor, ...], number: int, g: Tensor | None, pending: Tensor | None,
        spread: Tensor | None, share: Tensor | None,
    ) -> Gradients:  # fmt: skip
        """Return the gradients of a piece; they may lie in scratch buffers that the next piece overwrites."""
        w, m, *rest = piece
        if not rest:
            slope = weight.prior.slope(m, self.k).mul_(self.k)
            return (slope if g is None else slope.add_(g)), None, 0.0
        if weight.index in self.cost:
            gm, gl, pull = self._gaussian(weight, w, m, rest[0], g, spread)
        else:
            (gm, gl), pull = self._of_prior(weight, w, m, rest[0], number), 0.0
            if share is not None:
                gm.mul_(share)
                gl.mul_(share)
            if g is not None:
                gm.add_(g)
                if not weight.noise_on_outputs:
                    gl.addcmul_(self._spread(w, m) if spread is None else spread, g)
        if pending is not None:
            gl.add_(pending)
        return gm, gl, pull

    def _of_prior(self, weight: Weight, w: Tensor, m: Tensor, log_std: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return k times the gradients of the KL by mean and log std, from the prior."""
        if weight.noise_on_outputs and weight.prior.needs_draw:  # the weight holds its mean: a draw for this alone
            noise = self._noise(weight, self._buffer(NOISE, m), number)
            noise = noise.as_strided(m.shape, m.stride(), noise.storage_offset())
            w = torch.addcmul(m, log_std.exp(), noise)
        gm, gl = weight.prior.kl_gradient(m, log_std, w.to(m.dtype), self.k)
        return gm.mul_(self.k), gl.mul_(self.k)

    def _whole_gradients(self, weight: Weight, given: Sequence[Tensor | None]) -> Iterator[Gradients]:
        """Yield the gradients of pieces when the prior needs the whole tensor (not elementwise): computed at once, then cut."""
        mean = weight.posterior.mean.detach()
        piece = weight.parameter.detach(), *(p.detach() for p in weight.posterior.parameters())
        *found, pull = self._gradients(weight, piece, 0, *given)
        for several in zip(*[rows(as_laid(gradient, mean)) for gradient in found if gradient is not None], strict=True):
            yield several[0], several[1] if len(several) > 1 else None, pull

    def _gaussian(
        self, weight: Weight, w: Tensor, m: Tensor, log_std: Tensor, g: Tensor | None, spread: Tensor | None
    ) -> tuple[Tensor, Tensor, float]:
        """Return g + k (m - mu) / p^2 and g (w - m) + k (s^2 / p^2 - 1), the closed form for a prior N(mu, p^2)."""
        # For mu = 0 the term k m / p^2 is returned as the factor `pull` and added by the update, which reads m anyway.
        pull, centre = self.k * self.cost.precision_of(weight), self.cost.priors[id(weight.prior)].centre
        std = torch.exp(log_std, out=self._buffer(STD, m))
        gl = torch.addcmul(self._less(m), std, std, value=pull, out=std)
        if g is None:
            gm = self._buffer(MEAN_GRADIENT, m).zero_()
        else:
            gm = g
            if not weight.noise_on_outputs:
                gl.addcmul_(self._spread(w, m) if spread is None else spread, g)
        if centre:
            gm, pull = torch.add(gm, m, alpha=pull, out=self._buffer(MEAN_GRADIENT, m)).sub_(pull * centre), 0.0
        return gm, gl, pull

    def _less(self, m: Tensor) -> Tensor:
        """Return -k as a scalar tensor of the mean's dtype and device."""
        if self._minus_k is None or self._minus_k.dtype != m.dtype:
            self._minus_k = m.new_tensor(-self.k)
        return self._minus_k

    def _spread(self, w: Tensor, m: Tensor) -> Tensor:
        """Return w - m = s e in the mean's dtype."""
        w = w if w.dtype == m.dtype else w.to(m.dtype)
        return torch.sub(w, m, out=self._buffer(SPREAD, m)) if w.ndim == 1 else w - m

    def _noise(self, weight: Weight, into: Tensor, number: int) -> Tensor:
        """Return the noise e of the next draw for a piece: a view of the pool, or ``into`` filled with it."""
        if self._pool is not None and weight.index in self.model.pooled:
            start = self.model.pooled[weight.index] + number * PIECE
            return self._pool[start : start + into.numel()]
        return weight.fill(self.model.noise_source, into, self.state, number * PIECE)

    def _data_gradient(self, gradient: Tensor | None, mean: Tensor) -> Tensor | None:
        """Return the gradient dense, in the memory layout and dtype of the mean; None if there is none."""
        if gradient is None:
            return None
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        return as_laid(gradient, mean)


def aligned(weight: Weight) -> None:
    """Make the weight dense, and give mean and log std its memory layout."""
    parameter = weight.parameter
    if not is_dense(parameter):
        parameter.data = parameter.detach().contiguous()
    if are_alike([parameter, *weight.posterior.parameters()]):
        return
    for p in weight.posterior.parameters():
        p.data = torch.empty_like(parameter, dtype=p.dtype, requires_grad=False).copy_(p.data)
