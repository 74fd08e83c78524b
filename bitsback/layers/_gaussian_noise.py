"""Gaussian noise of a given variance, with a backward pass that needs one saved tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["with_noise"]


class _Noise(Function):
    """mean + sqrt(variance) noise; saves noise / (2 std) for the backward pass, where autograd would save three tensors."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        std = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt_()
        output = torch.addcmul(mean, std, noise) if mean.dtype == std.dtype else mean + (std * noise).to(mean.dtype)
        ctx.save_for_backward(torch.div(noise, std.mul_(2), out=std))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient, gradient * slope, None


def with_noise(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """Return a draw from N(mean, variance), differentiable in both (local reparameterisation, Kingma, Salimans & Welling 2015).

    Args:
        mean: (batch, ...), any floating dtype.
        variance: the same shape, float32 or wider, at least 0.
        noise: standard normal numbers of the variance's shape and dtype.

    Returns:
        mean + sqrt(variance) noise, in the dtype of ``mean``.

    >>> with_noise(torch.ones(3), torch.zeros(3), torch.randn(3)).tolist()
    [1.0, 1.0, 1.0]
    """
    noisy: Tensor = _Noise.apply(mean, variance, noise)
    return noisy
