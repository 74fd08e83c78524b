"""Check that a backward pass sees the same weights as its forward pass; otherwise its gradients would be wrong."""

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
    """Register hooks that make the backward pass raise if the weights have changed since the forward pass.

    Args:
        model: model whose values are compared.
        output: output of its forward pass, a tensor or nested containers of tensors.

    Raises:
        LayerError: from the hook, in the backward pass.
    """
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
    """Return True if a gradient by class scores, (batch, classes), is that of a sum of cross-entropies, not of a mean."""
    # Each row of the gradient of a cross-entropy sums to 0, and its absolute values to at most 2. For a mean over the batch the
    # absolute values of all rows together sum to at most 2.
    if gradient.ndim != 2 or len(gradient) < 4 or gradient.shape[1] < 2:
        return False
    rows = gradient.detach().float()
    sizes = rows.abs().sum(1)
    is_softmax = bool((rows.sum(1).abs() <= 1e-4 * sizes + 1e-12).all())
    return is_softmax and float(sizes.max()) <= 2.001 and float(sizes.sum()) > 2.001
