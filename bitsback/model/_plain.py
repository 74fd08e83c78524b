"""Plain networks of a Bayesian model: copies of the user's network that hold the means or one draw, and know no posterior."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitsback.errors import LayerError
from bitsback.model._layer_posteriors import LayerPosteriors
from bitsback.model._resident import Resident
from bitsback.model.draws import draw_of
from bitsback.model.weight import State

if TYPE_CHECKING:
    from bitsback.model.model import BayesianModel

__all__ = ["plain_network"]


@torch.inference_mode(False)  # a network that is made inside of a framework's evaluation can be trained as well
@torch.no_grad()
def plain_network(model: "BayesianModel", state: State) -> nn.Module:
    """Return a copy of the network with the values of a state in its weights, and nothing of bitsback in it.

    Ties, buffers, dtypes, the modes of modules and what is frozen are those of the network; gradients are not copied.

    Args:
        model: Bayesian model, which is not changed.
        state: the means, or a draw.

    Returns:
        Network of the class of ``model.network``; layers of :mod:`bitsback.nn` are torch's in it. Layers that return a KL as
        well, for bayesian-torch layers that were written by hand, have no counterpart in torch and stay as they are.

    Raises:
        LayerError: for a model of shards.
    """
    if model.is_sharded:
        raise LayerError(
            "each process holds a shard of the weights, and a plain network needs whole ones; train with out=DIRECTORY, and "
            "take it of what bitsback.load_run(DIRECTORY) reads, in one process"
        )
    model.honour_edits(everywhere=True)
    nothing = object()
    memo: dict[int, Any] = {}
    for module in model.network.modules():
        for value in vars(module).values():
            if isinstance(value, LayerPosteriors | Resident):  # of a layer, and of a layer of bitsback.nn that was used alone
                memo[id(value)] = nothing
            elif isinstance(value, Tensor) and not value.is_leaf:  # such as the weight that torch's old weight_norm computes
                memo[id(value)] = value.detach().clone()
    network = copy.deepcopy(model.network, memo)
    for module in network.modules():
        for name in [name for name, value in vars(module).items() if value is nothing]:
            del module.__dict__[name]
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_of_this_package(hook)]:
                del hooks[key]
        plain_class = getattr(type(module), "plain_class", None)  # of a layer of bitsback.nn
        if plain_class is not None:
            module.__class__ = plain_class()
    values = draw_of(model, state)
    for weight in model.weights:
        memo[id(weight.known)].copy_(values[weight.name])
    return network


def _is_of_this_package(hook: Any) -> bool:
    """Return True for a hook of local reparameterisation or of a trial forward, inside of which a network may be asked for."""
    return str(getattr(hook, "__module__", "")).startswith("bitsback.")
