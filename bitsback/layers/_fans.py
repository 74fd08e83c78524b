"""Fan-in of a layer's weights."""

import math

from torch import nn

__all__ = ["fan_in"]

ONE_INPUT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""Layers with a fan-in of 1."""


def fan_in(module: nn.Module, name: str) -> int:
    """Return the fan-in of a weight tensor; a bias has that of its layer's weight, normalisation layers and embeddings 1.

    Args:
        module: layer that owns the tensor.
        name: name of the tensor in the layer.

    Returns:
        Number of inputs of one output unit.

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
