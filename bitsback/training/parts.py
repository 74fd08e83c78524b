"""One weight tensor in a fused training step: what the network is handed of it, and its gradients in closed form.

A step draws the weights w = m + s e (or lends the variances s^2 to layers that draw their outputs), and the network answers
with the gradient g of the loss with respect to w (or v, to s^2). The rest is known: for the prior N(mu, p^2), with k the
gradient of the loss with respect to the KL in nats,

    d/dm     = g + k (m - mu) / p^2,
    d/dlog s = s (g e + k s / p^2) - k    or    s^2 (2 v + k / p^2) - k.

Only w (or s^2) lives through the step besides parameters and gradients: s itself becomes the gradient of log s, in place. All
passes over a piece of the tensor follow each other while it is in the cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.posterior import GaussianPosterior

PIECE = 131072
"""Weights whose mean, log std, std, noise and draw are in a processor's cache together."""


def is_dense(tensor: Tensor) -> bool:
    """True when the tensor fills a stretch of memory, in whatever order."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()


def _pieces(tensor: Tensor) -> list[Tensor]:
    """The numbers of a dense tensor in the order of its memory, cut."""
    count, start = tensor.numel(), tensor.storage_offset()
    tensor = tensor.detach()
    if count <= PIECE:
        return [tensor.as_strided((count,), (1,))]
    return [tensor.as_strided((min(PIECE, count - at),), (1,), start + at) for at in range(0, count, PIECE)]


class Part(ABC):
    """One weight tensor in a step.

    Args:
        q: its posterior.
        centre: mu of its prior; None where the cost is another's business.
        leaves: how many tensors the network is handed.
    """

    def __init__(self, q: GaussianPosterior, centre: float | None, leaves: int) -> None:
        self.q, self.centre = q, centre
        self.std = torch.empty_like(q.mean, requires_grad=False)
        self.leaves = [torch.empty_like(q.mean, requires_grad=True) for _ in range(leaves)]
        self.look()

    def look(self) -> None:
        """Find the pieces; to be called again when parameters may have moved in memory."""
        several = (self.q.mean, self.q.log_std, self.std, *self.leaves)
        self.pieces = list(zip(*(_pieces(tensor) for tensor in several), strict=True))

    @abstractmethod
    def finish(self, k: float, pull: float) -> None:
        """Gradients of mean and log std from those of the leaves; ``pull`` is k / p^2. The std is lost."""

    def _sums(self, mean: Tensor, log_std: Tensor, std: Tensor) -> tuple[Tensor, ...]:
        """Of s^2, (m - mu)^2 and log s over a piece, where they are asked for."""
        if self.centre is None:
            return ()
        distance = mean - self.centre if self.centre else mean
        return torch.dot(std, std), torch.dot(distance, distance), log_std.sum()

    def _pull_mean(self, gradient: Tensor, mean: Tensor, pull: float) -> None:
        if pull:
            gradient.add_(mean - self.centre if self.centre else mean, alpha=pull)


class Drawn(Part):
    """A tensor whose layers are handed draws; the sign of a draw is 1, or -1 where it mirrors the one before."""

    def __init__(self, q: GaussianPosterior, centre: float | None, signs: Sequence[float]) -> None:
        super().__init__(q, centre, len(signs))
        self.signs = signs

    def begin(self, noises: Sequence[Tensor], place: int) -> list[Tensor]:
        """Draw with numbers of the vector of each draw, from ``place`` on; returns three sums for each piece."""
        self.noises: list[list[Tensor]] = []
        sums: list[Tensor] = []
        for mean, log_std, std, *draws in self.pieces:
            torch.exp(log_std, out=std)
            sums += self._sums(mean, log_std, std)
            count = len(mean)
            several = [noise.narrow(0, place, count) for noise in noises]
            for draw, sign, noise in zip(draws, self.signs, several, strict=True):
                torch.addcmul(mean, std, noise, value=sign, out=draw)
            self.noises.append(several)
            place += count
        return sums

    def finish(self, k: float, pull: float) -> None:
        gradients = [_take_gradient(leaf) for leaf in self.leaves]
        cut = zip(*map(_pieces, gradients), strict=True)
        for (mean, _, std, slope, *_), several, (gradient, *more) in zip(self.pieces, self.noises, cut, strict=True):
            torch.mul(gradient, several[0], out=slope)
            for other, sign, noise in zip(more, self.signs[1:], several[1:], strict=True):
                slope.addcmul_(other, noise, value=sign)
                gradient.add_(other)
            self._pull_mean(gradient, mean, pull)
            torch.mul(slope.add_(std, alpha=pull), std, out=std).sub_(k)
        _add_gradient(self.q.mean, gradients[0])
        _add_gradient(self.q.log_std, self.std)


class Lent(Part):
    """A tensor whose layer draws its outputs, and is lent s^2 for that."""

    def __init__(self, q: GaussianPosterior, centre: float | None) -> None:
        super().__init__(q, centre, 1)

    def begin(self) -> list[Tensor]:
        """Square the std; returns three sums for each piece."""
        sums: list[Tensor] = []
        for mean, log_std, std, variance in self.pieces:
            torch.exp(log_std, out=std)
            sums += self._sums(mean, log_std, std)
            torch.mul(std, std, out=variance)
        return sums

    def finish(self, k: float, pull: float) -> None:
        gradient, slopes = _take_gradient(self.q.mean), _take_gradient(self.leaves[0])  # the first by autograd
        cut = zip(_pieces(gradient), _pieces(slopes), strict=True)
        for (mean, _, std, variance), (part, slope) in zip(self.pieces, cut, strict=True):
            self._pull_mean(part, mean, pull)
            torch.mul(slope.mul_(2).add_(pull), variance, out=std).sub_(k)
        _add_gradient(self.q.mean, gradient)
        _add_gradient(self.q.log_std, self.std)


def _take_gradient(leaf: Tensor) -> Tensor:
    """A leaf's gradient, which it loses; zero when nothing has used the leaf."""
    gradient, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if gradient is None else gradient


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to a parameter's gradient; ``gradient`` is given away."""
    parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
