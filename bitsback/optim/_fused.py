"""Adam on tensors, by torch's fused kernels where there are some (Kingma & Ba 2015)."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["Rates", "adam", "fused_adam", "in_double", "is_fused", "rates"]

FUSED = ("cuda", "mps", "xpu")
"""Devices besides the CPU on which torch has a fused Adam kernel."""

Rates = tuple[float | Tensor, float, float, float]
"""Learning rate (a tensor where a captured step reads it from the device), beta1, beta2, eps."""


def rates(group: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return learning rate, betas and eps of a parameter group."""
    return float(group["lr"]), *group["betas"], group["eps"]


def adam(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: Tensor, numbers: Rates, pull: float = 0.0
) -> None:
    """Take one step of Adam on a tensor, in place; the gradient is ``gradient + pull * parameter``.

    Args:
        parameter: tensor to move.
        gradient: of the same shape; not changed.
        first: running average of gradients, updated in place.
        second: running average of squared gradients, updated in place.
        step: number of this step, from 1, a scalar tensor.
        numbers: learning rate, beta1, beta2, eps.
        pull: L2 coefficient, here the gradient of a Gaussian prior around zero.
    """
    # The fused kernel reads and writes every tensor once; weight_decay adds the prior's pull in the same pass.
    if is_fused(parameter) and gradient.dtype == parameter.dtype:
        fused_adam([parameter], [gradient], [first], [second], [step], numbers, pull)
        return
    lr, beta1, beta2, eps = numbers
    gradient = torch.add(gradient.to(first.dtype), parameter, alpha=pull)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    count = in_double(step)
    root = second.sqrt().div_((1 - beta2**count).sqrt_()).add_(eps)
    parameter.sub_(torch.div(first, root).mul_(lr / (1 - beta1**count)))


def in_double(count: Tensor) -> Tensor:
    """Return a count in float64, in which 1 - beta^count keeps its digits; as it is on mps, which has no float64."""
    return count if count.device.type == "mps" else count.double()


def is_fused(parameter: Tensor) -> bool:
    """Return whether torch has a fused Adam kernel for a tensor."""
    return parameter.is_cpu or parameter.device.type in FUSED


def fused_adam(
    parameters: list[Tensor], gradients: list[Tensor], firsts: list[Tensor], seconds: list[Tensor], steps: list[Tensor],
    numbers: Rates, pull: float = 0.0,
) -> None:  # fmt: skip
    """Take one step of Adam on several tensors by torch's fused kernel, as :func:`adam`."""
    lr, beta1, beta2, eps = numbers
    torch._fused_adam_(
        parameters, gradients, firsts, seconds, [], steps, lr=lr, beta1=beta1, beta2=beta2, weight_decay=pull, eps=eps,
        amsgrad=False, maximize=False,
    )  # fmt: skip
