"""Outputs under whole-network draws, computed one draw at a time or, for dense networks, several at once with vmap."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bitsback.inputs import Inputs, call, chosen
from bitsback.model.weight import State

if TYPE_CHECKING:
    from bitsback.model.model import BayesianModel

__all__ = ["SHOWN_AFTER_SECONDS", "Draws", "draw_of", "drawing", "draws_at_once", "outputs_under"]

SHOWN_AFTER_SECONDS = 2.0
"""Time after which a progress bar appears."""

TOGETHER = 10
"""Draws computed at once: 50 to 75 % of the time of single draws for a dense network, at ten times the memory for outputs."""

BATCHED: tuple[type[nn.Module], ...] = (
    nn.Sequential, nn.Linear, nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    nn.Softplus,
)  # fmt: skip
"""Layers for which draws are batched; convolutions take twice as long under vmap, and other layers may not support it."""

Draws = Callable[[Inputs], list[Tensor]]
"""Function from inputs to a list of outputs, one for each draw."""


def draws_at_once(model: "BayesianModel") -> int:
    """Return the number of draws to compute at once: 10 for dense networks without hooks, else 1.

    >>> from bitsback.model import bayesianize
    >>> draws_at_once(bayesianize(nn.Linear(2, 2))), draws_at_once(bayesianize(nn.Conv2d(1, 1, 3)))
    (10, 1)
    """
    modules = list(model.network.modules())
    # A hook may read concrete values (.item()), which tensors under vmap do not have.
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    kinds = [next(kind for kind in type(module).__mro__ if "forward" in vars(kind)) for module in modules]
    return TOGETHER if not hooked and all(kind in BATCHED for kind in kinds) else 1


@contextmanager
def drawing(model: "BayesianModel", seed: int, numbers: Sequence[int]) -> Iterator[Draws]:
    """Provide a function that returns the outputs under the same draws at every call.

    Must be used inside ``model.keeping()``, because a single draw is written into the weights.

    Args:
        model: Bayesian model.
        seed: seed of the draws.
        numbers: numbers of the draws; empty for the posterior means.

    Yields:
        Function from inputs to a list of outputs, one for each draw.
    """
    states = [State("draw", seed, number) for number in numbers] or [model.state_of_means()]
    if len(states) == 1:
        model.hold(states[0])
        yield lambda inputs: [chosen(call(model.network, inputs), model.output)]
        return
    several = [draw_of(model, state) for state in states]
    stacked = {name: torch.stack([draw[name] for draw in several]) for name in several[0]}
    batched = vmap(partial(functional_call, model.network), in_dims=(0, None))
    yield lambda inputs: list(batched(stacked, (inputs,)))


def draw_of(model: "BayesianModel", state: State) -> dict[str, Tensor]:
    """Return the values of all weights in a state, without changing the network.

    Args:
        model: Bayesian model.
        state: state, such as a draw.

    Returns:
        Tensors by weight name, in the parameters' shapes and dtypes.
    """
    found: dict[str, Tensor] = {}
    for weight in model.weights:
        value = model.value(weight, state)
        found[weight.name] = (weight.posterior.mean.detach() if value is None else value).to(weight.parameter.dtype)
    return found


def outputs_under(model: "BayesianModel", weights: dict[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs that a likelihood reads under given weights; differentiable in them.

    Args:
        model: Bayesian model.
        weights: tensors by weight name.
        inputs: (n, ...), a tensor, or a tuple or dict of tensors.

    Returns:
        (n, ...).
    """

    def network(*args: Any, **kwargs: Any) -> Any:
        return functional_call(model.network, weights, args, kwargs)

    return chosen(call(network, inputs), model.output)
