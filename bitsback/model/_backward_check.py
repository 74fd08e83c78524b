"""A backward pass that meets another draw than its forward pass did is refused, for its gradients would be wrong."""

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsback.errors import LayerError

if TYPE_CHECKING:
    from bitsback.model._resident import Resident

__all__ = ["is_slope_of_sum", "watch"]


def watch(model: "Resident", output: Any) -> None:
    """Make the backward pass raise unless the weights still hold what they held in the forward pass."""
    own, placed = weakref.ref(model), model._placed

    def check(gradient: Tensor) -> None:
        model = own()
        if model is None:
            return
        if model._placed != placed:
            raise LayerError(
                "the weights hold another draw than in the forward pass: call backward() before model.draw(), "
                "optimizer.step(), model.eval() and model.train(), inside the same `with model.sample():` as the forward"
            )
        model._reached = placed
        if model._loss_looks > 0:
            model._loss_looks -= 1
            model.loss_is_sum = is_slope_of_sum(gradient)

    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(leaf):
            leaf.register_hook(check)


def is_slope_of_sum(gradient: Tensor) -> bool:
    """Return whether a gradient at class scores is that of cross-entropies that were added up, not averaged.

    Each row of the slope of a cross-entropy sums to zero, and its absolute values to at most 2; of a mean, those of all do.
    """
    if gradient.ndim != 2 or len(gradient) < 4 or gradient.shape[1] < 2:
        return False
    rows = gradient.detach().float()
    sizes = rows.abs().sum(1)
    is_softmax = bool((rows.sum(1).abs() <= 1e-4 * sizes + 1e-12).all())
    return is_softmax and float(sizes.max()) <= 2.001 and float(sizes.sum()) > 2.001
