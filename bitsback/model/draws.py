"""Outputs under whole-network draws, computed one draw at a time or, for dense networks, several at once with vmap."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bitsback.inputs import Inputs, call, chosen, leaves, like, shapes_of
from bitsback.kernels import Captured, Captures, captures_on
from bitsback.model.weight import State

if TYPE_CHECKING:
    from bitsback.model.model import BayesianModel

__all__ = ["SHOWN_AFTER_SECONDS", "Draws", "draw_of", "drawing", "draws_at_once", "forward_of", "outputs_under"]

SHOWN_AFTER_SECONDS = 2.0
"""Time after which a progress bar appears."""

TOGETHER = 10
"""Draws computed at once: 50 to 75 % of the time of single draws for a dense network, at ten times the memory for outputs."""

NUMBERS_TOGETHER = 1 << 26
"""Most weights of all draws that are computed at once, 256 MiB in float32."""

BATCHED: tuple[type[nn.Module], ...] = (
    nn.Sequential, nn.Linear, nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    nn.Softplus,
)  # fmt: skip
"""Layers for which draws are batched; convolutions take twice as long under vmap, and other layers may not support it."""

Draws = Callable[[Inputs], list[Tensor]]
"""Function from inputs to a list of outputs, one for each draw."""


def draws_at_once(model: "BayesianModel") -> int:
    """Return the number of draws to compute at once: up to 10 for dense networks without hooks, else 1.

    >>> from bitsback.model import bayesianize
    >>> draws_at_once(bayesianize(nn.Linear(2, 2))), draws_at_once(bayesianize(nn.Conv2d(1, 1, 3)))
    (10, 1)
    """
    modules = list(model.network.modules())
    hooked = has_hooks(model.network)  # a hook may read concrete values (.item()), which tensors under vmap do not have
    kinds = [next(kind for kind in type(module).__mro__ if "forward" in vars(kind)) for module in modules]
    if hooked or not all(kind in BATCHED for kind in kinds):
        return 1
    weights = sum(weight.posterior.numel for weight in model.weights)
    return max(1, min(TOGETHER, NUMBERS_TOGETHER // max(1, weights)))


def forward_of(model: "BayesianModel") -> Callable[[Inputs], Tensor]:
    """Return the function from inputs to the outputs that a likelihood reads, under the values that the weights hold.

    On a GPU it is captured as a CUDA graph for each shape of the inputs: all draws of an evaluation replay the same graph,
    because draws are written into the weights.

    >>> from bitsback.model import bayesianize
    >>> forward_of(bayesianize(nn.Linear(2, 3)))(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def forward(inputs: Inputs) -> Tensor:
        return chosen(call(model.network, inputs), model.output)

    if model.device.type != "cuda" or not model.evaluation_graphs or has_hooks(model.network) or model.is_sharded:
        return forward  # shards are gathered by messages
    return GraphedForward(forward, captures_on(model.device))


def has_hooks(network: nn.Module) -> bool:
    """Return whether a module has forward hooks, which may do anything, also on the host."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class GraphedForward:
    """Function of inputs, without gradients, that is captured once for each of their shapes.

    Args:
        forward: function.
        captures: device.
    """

    def __init__(self, forward: Callable[[Inputs], Tensor], captures: Captures) -> None:
        self.forward, self.captures = forward, captures
        self._seen: set[str] = set()
        self._graphs: dict[str, tuple[Inputs, Captured]] = {}
        self._is_off = False

    def __call__(self, inputs: Inputs) -> Tensor:
        key = shapes_of(inputs)
        if key not in self._graphs and (self._is_off or key not in self._seen or len(self._graphs) >= MOST_GRAPHS):
            self._seen.add(key)
            with self.captures.trial() as trial:
                outputs = self.forward(inputs)
            if trial.waits and not self._is_off:
                self._give_up(trial.waits)
            return outputs
        if key not in self._graphs:
            own = like(inputs, [leaf.clone() for leaf in leaves(inputs)])
            try:
                captured = self.captures.capture(lambda: self.forward(own))
            except RuntimeError as error:  # such as a forward that reads a number from the device
                self._give_up(str(error).splitlines()[0])
                return self.forward(inputs)
            self._graphs[key] = own, captured
        own, captured = self._graphs[key]
        for buffer, given in zip(leaves(own), leaves(inputs), strict=True):
            buffer.copy_(given)
        return captured.replay().clone()

    def _give_up(self, reason: str) -> None:
        """Run inputs of further shapes as usual, and say why."""
        self._is_off = True
        warnings.warn(f"evaluations run without CUDA graphs: {reason}", stacklevel=3)


MOST_GRAPHS = 8
"""Largest number of graphs of a function; inputs of further shapes run as usual."""


@contextmanager
def drawing(model: "BayesianModel", seed: int, numbers: Sequence[int], forward: Callable[[Inputs], Tensor]) -> Iterator[Draws]:
    """Provide a function that returns the outputs under the same draws at every call.

    Must be used inside ``model.keeping()``, because a single draw is written into the weights.

    Args:
        model: Bayesian model.
        seed: seed of the draws.
        numbers: numbers of the draws; empty for the posterior means.
        forward: function of :func:`forward_of`, for a single draw.

    Yields:
        Function from inputs to a list of outputs, one for each draw.
    """
    states = [State("draw", seed, number) for number in numbers] or [model.state_of_means()]
    if len(states) == 1:
        model.hold(states[0])
        yield lambda inputs: [forward(inputs)]
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
