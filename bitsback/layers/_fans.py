"""Facts about a layer and its weights."""

import math

from torch import nn

__all__ = ["fan_in"]

ONE_INPUT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""Layers whose every weight is fed by one input."""


def fan_in(module: nn.Module, name: str) -> int:
    """Return how many inputs feed one unit of the tensor ``name``; a bias takes its layer's, a norm's weight has one.

    >>> fan_in(nn.Conv2d(3, 8, 5), "bias")
    75
    """
    shapes = {local: p.shape for local, p in module._parameters.items() if p is not None}
    matrices = [shapes[name], *shapes.values()]
    shape = next((shape for shape in matrices if len(shape) >= 2), None)
    if shape is None or isinstance(module, ONE_INPUT):
        return 1
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return shape[0] // module.groups * math.prod(shape[2:])
    return math.prod(shape[1:])
