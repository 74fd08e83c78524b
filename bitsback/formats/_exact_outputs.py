"""Outputs of a network as whole numbers, equal on every machine, in any order of summation, on any number of threads.

Weights and activations are held on binary lattices, so that every product and sum of a linear layer is an exact integer below
2^53; after every layer the activations are rounded back to 12 fractional bits.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.coding.categorical import FRACTION_BITS
from bitsback.errors import FileError, brief
from bitsback.inputs import each
from bitsback.model import BayesianModel
from bitsback.model.modes import evaluating

__all__ = ["BATCH", "EXACT_LIMIT", "WEIGHT_BITS", "exact_outputs", "exactly", "is_exact", "leaves", "on_lattice"]

EXACT_LIMIT = 2.0**53
"""Integers up to this one are exact in float64."""
BATCH = 512
"""Largest number of examples in one forward pass."""

OF_TYPES = ("dtype", "scalar type", "double", "float")
"""Words in torch's errors about tensors of different types; other errors, such as a lack of memory, have another cause."""

EXACT_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU,
    nn.Threshold, nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d, nn.PixelShuffle,
)  # fmt: skip
"""Layers whose arithmetic on lattice numbers is exact, or a single rounded operation."""


def on_lattice(tensor: Tensor, bits: int = FRACTION_BITS) -> Tensor:
    """Round to the nearest multiples of 2^-bits.

    Args:
        tensor: any numbers.
        bits: number of fractional bits.

    Returns:
        float64 tensor of the same shape.

    >>> on_lattice(torch.tensor([0.3]), 2).tolist()
    [0.25]
    """
    return torch.ldexp(torch.round(torch.ldexp(tensor.double(), torch.tensor(bits))), torch.tensor(-bits))


def leaves(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that compute: modules without children, or with parameters of their own."""
    for module in network.modules():
        has_own = any(parameter is not None for parameter in module._parameters.values())
        if has_own or (not any(True for _ in module.children()) and _is_layer(module)):
            yield module


def _is_layer(module: nn.Module) -> bool:
    return module.__module__.startswith("torch.nn") or type(module).forward is not nn.Module.forward


def is_exact(network: nn.Module) -> bool:
    """Return whether all arithmetic is exact on every machine; otherwise results may differ in last bits.

    Only sequences of known layers are exact: a user's forward method may compute anything between its layers.

    Returns:
        whether it is.
    """
    computing = set(leaves(network))
    rows = [m for m in network.modules() if m not in computing and any(True for _ in m.children())]
    inside = [m for m in rows if not isinstance(m, nn.Sequential | nn.ModuleDict)]
    own = [m for m in [*computing, *rows] if not _is_plain(m)]
    return not inside and not own and all(isinstance(module, EXACT_LAYERS) for module in computing)


def _is_plain(module: nn.Module) -> bool:
    """Return whether torch's own forward runs, without hooks."""
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    renorms = getattr(module, "max_norm", None) is not None
    inner = next((kind for kind in type(module).__mro__ if "_conv_forward" in vars(kind)), nn.Conv2d)
    own = not owner.__module__.startswith(("torch.nn.", "bitsback.")) or not inner.__module__.startswith("torch.nn.")
    return not own and not renorms and not module._forward_hooks


@contextmanager
def _rounded(network: nn.Module) -> Iterator[None]:
    """Round every layer's output to the lattice inside the context, and check that exact layers are exact."""

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor) and output.is_floating_point():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                _check_limit(module, inputs[0], output)
            return on_lattice(output)
        return output

    hooks = [module.register_forward_hook(after) for module in leaves(network)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_limit(module: nn.Module, inputs: Tensor, output: Tensor) -> None:
    """Raise FileError unless sums of |w| |x| and |bias| stay below 2^53 in units of the two lattices."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias = module.bias if isinstance(module.bias, Tensor) else torch.zeros(1)
    largest = float(weight.abs().flatten(1).sum(1).max()) * float(inputs.abs().max()) + float(bias.abs().max())
    if largest * 2.0 ** (FRACTION_BITS + WEIGHT_BITS) >= EXACT_LIMIT:
        raise FileError("the network's activations are too large for exact arithmetic; scale the inputs down (data.scaling)")


WEIGHT_BITS = 20
"""Fractional bits of the weights in the exact forward pass; finer grids are rounded to it. Part of the format."""


@contextmanager
def exactly(model: BayesianModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Hold weights on their lattice, and round the output of every layer to its own, inside the context.

    Args:
        model: in float64.
        weights: weight tensors by name.

    Yields:
        nothing.
    """
    values = {weight.name: on_lattice(weights[weight.name], WEIGHT_BITS) for weight in model.weights}
    with evaluating(model.network), model.holding(values), _rounded(model.network):
        yield


@torch.no_grad()
def exact_outputs(model: BayesianModel, weights: Mapping[str, Tensor], inputs: Any) -> Tensor:
    """Return the outputs of the network with given weights, computed exactly.

    Args:
        model: in float64; its statistics and deterministic weights are used as they are.
        weights: weight tensors by name.
        inputs: (n, ...), a tensor or rows.

    Returns:
        outputs (n, ...) in units of 2^-12, int64.

    Raises:
        FileError: if activations are too large to be exact, or the network does not run in float64.
        RuntimeError: if it fails for another reason.
    """

    def rounded(tensor: Tensor) -> Tensor:
        return on_lattice(tensor) if tensor.is_floating_point() else tensor

    parts = []
    with exactly(model, weights):
        for part in inputs.split(BATCH):
            try:
                parts.append(model.outputs(each(part, rounded)))
            except RuntimeError as error:
                if not any(word in str(error).lower() for word in OF_TYPES):
                    raise
                raise FileError(
                    f"the network does not run in float64, which exact outputs need ({brief(error)}); let it make tensors in "
                    "the type of its inputs, as x.new_zeros(...) does"
                ) from error
    return torch.ldexp(torch.cat(parts), torch.tensor(FRACTION_BITS)).round().long()
