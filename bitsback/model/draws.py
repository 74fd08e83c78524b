"""Whole-network draws: one after the other, or several at once where that is faster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import vmap

from bitsback.layers import BayesianModule
from bitsback.layout import interleaved
from bitsback.model.model import BayesianModel
from bitsback.posterior import Posterior, holding

TOGETHER = 10
"""Draws at once: a dense network takes half to three quarters of the time, and ten outputs of memory."""

BATCHED: tuple[type[nn.Module], ...] = (
    nn.Sequential, nn.Linear, nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    nn.Softplus,
)  # fmt: skip
"""Networks made of these alone are drawn together; convolutions take twice as long that way, and others may not be able to."""

Draws = Callable[[Tensor], list[Tensor]]
"""From inputs to the outputs under each draw."""


def draws_at_once(model: BayesianModel) -> int:
    """How many draws are best taken together.

    >>> from bitsback.model import bayesianize
    >>> draws_at_once(bayesianize(nn.Linear(2, 2))), draws_at_once(bayesianize(nn.Conv2d(1, 1, 3)))
    (10, 1)
    """
    inside = {id(m) for q in model.posteriors() for m in q.modules()}
    kinds = [_plain_kind(m) for m in model.network.modules() if id(m) not in inside and not isinstance(m, nn.ModuleDict)]
    return TOGETHER if all(kind in BATCHED for kind in kinds) else 1


def _plain_kind(module: nn.Module) -> type:
    """The torch class whose forward a module runs."""
    return next(kind for kind in type(module).__mro__ if "forward" in vars(kind) and not issubclass(kind, BayesianModule))


@contextmanager
def drawing(model: BayesianModel, count: int) -> Iterator[Draws]:
    """Inside, the function that is given sees the same ``count`` draws of all weights at every call; 0: their means.

    The draws are those that ``count`` contexts of one draw each would make.
    """
    posteriors = model.posteriors()
    if count <= 1:
        with holding(posteriors, _draw if count else _mean):
            yield lambda inputs: [model(inputs)]
        return
    several = [[posterior.draw() for posterior in posteriors] for _ in range(count)]
    stacked = [torch.stack(tensors) for tensors in zip(*several, strict=True)]

    def one(weights: list[Tensor], inputs: Tensor) -> Tensor:
        held = dict(zip(map(id, posteriors), weights, strict=True))
        with holding(posteriors, lambda posterior: held[id(posterior)]):
            outputs: Tensor = model(inputs)
        return outputs

    yield lambda inputs: list(vmap(one, in_dims=(0, None))(stacked, inputs))


def _draw(posterior: Posterior) -> Tensor:
    return interleaved(posterior.draw())


def _mean(posterior: Posterior) -> Tensor:
    return interleaved(posterior.mean).clone()  # some layers write to it
