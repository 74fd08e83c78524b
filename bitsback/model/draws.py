"""Whole-network draws: one after the other in the network itself, or several at once where that is faster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bitsback.model.model import BayesianModel
from bitsback.model.weight import State

__all__ = ["Draws", "draw_of", "drawing", "draws_at_once", "outputs_under"]

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
    """Return how many draws are best taken together; hooks may look at numbers, which vmap does not have.

    >>> from bitsback.model import bayesianize
    >>> draws_at_once(bayesianize(nn.Linear(2, 2))), draws_at_once(bayesianize(nn.Conv2d(1, 1, 3)))
    (10, 1)
    """
    modules = list(model.network.modules())
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    kinds = [next(kind for kind in type(module).__mro__ if "forward" in vars(kind)) for module in modules]
    return TOGETHER if not hooked and all(kind in BATCHED for kind in kinds) else 1


@contextmanager
def drawing(model: BayesianModel, seed: int, numbers: Sequence[int]) -> Iterator[Draws]:
    """Inside, the function that is given sees the same draws of all weights at every call: one for each number, or the means.

    Within ``model.keeping()``. The draws are those of one context for each number.
    """
    states = [State("draw", seed, number) for number in numbers] or [model.state_of_means()]
    if len(states) == 1:
        model.hold(states[0])
        yield lambda inputs: [model.network(inputs)]
        return
    several = [draw_of(model, state) for state in states]
    stacked = {name: torch.stack([draw[name] for draw in several]) for name in several[0]}
    call = vmap(partial(functional_call, model.network), in_dims=(0, None))
    yield lambda inputs: list(call(stacked, (inputs,)))


def draw_of(model: BayesianModel, state: State) -> dict[str, Tensor]:
    """Return the weights that a state says, by name, beside those in the network."""
    found: dict[str, Tensor] = {}
    for weight in model.weights:
        value = model.value(weight, state)
        found[weight.name] = (weight.posterior.mean.detach() if value is None else value).to(weight.parameter.dtype)
    return found


def outputs_under(model: BayesianModel, weights: dict[str, Tensor], *args: Any) -> Any:
    """Return the network's output under these weights, by name; differentiable in them."""
    return functional_call(model.network, weights, args)
