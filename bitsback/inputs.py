"""Inputs of a network: a tensor, a tuple or a dict of tensors, called as ``network(x)``, ``network(*x)``, ``network(**x)``."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bitsback.errors import ConfigError, DataError, LayerError, near_miss

__all__ = [
    "CHANNELS_LAST",
    "Inputs",
    "Output",
    "call",
    "channels_first",
    "check_channels",
    "chosen",
    "described",
    "each",
    "grey",
    "joined",
    "leaves",
    "like",
    "looks_channels_last",
    "placed",
    "rows",
    "shapes_of",
    "split",
    "structure",
]

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""Inputs of some examples; the first axis of every tensor usually counts them."""

Output = str | int
"""Choice among a network's outputs: ``auto``, a name, or an index."""

CHANNELS = (1, 3, 4)
"""Numbers of channels of usual images."""

CHANNELS_LAST = (
    "look like images with channels last, and torch has them first: inputs.permute(0, 3, 1, 2), or data.channels=last for an "
    "NPZ file"
)
"""End of a message on such inputs."""


def looks_channels_last(shape: Sequence[int]) -> bool:
    """Return whether the shape of one example looks like that of an image with its channels last.

    >>> looks_channels_last((32, 32, 3)), looks_channels_last((3, 32, 32)), looks_channels_last((16, 3, 3))
    (True, False, False)
    """
    return len(shape) == 3 and shape[-1] in CHANNELS and min(shape[:2]) > max(CHANNELS)


def channels_first(array: Any, what: str) -> Any:
    """Return images (n, height, width, channels) as (n, channels, height, width).

    Args:
        array: a tensor or an array.
        what: name of it, for the message.

    Returns:
        a view of the array.

    Raises:
        DataError: if it has other axes.

    >>> channels_first(torch.zeros(5, 32, 16, 3), "the array").shape
    torch.Size([5, 3, 32, 16])
    """
    if array.ndim != 4:
        raise DataError(
            f"{what} has shape {tuple(array.shape)}, and images with channels last are (n, height, width, channels); leave "
            "data.channels out"
        )
    return array.swapaxes(2, 3).swapaxes(1, 2)


def check_channels(shape: Sequence[int], wanted: Sequence[int]) -> None:
    """Check that one input has its numbers in the order of those that a network takes.

    Args:
        shape: of one input.
        wanted: shape that the network takes.

    Raises:
        DataError: for an image with channels last where they come first, and for other axes than the network's.
    """
    turned = len(shape) == 3 and shape[2] in CHANNELS[1:] and tuple(wanted) == (shape[2], shape[0], shape[1])
    if turned and tuple(shape) != tuple(wanted):
        raise DataError(
            f"inputs of shape {tuple(shape)} are images with channels last, and the network takes {tuple(wanted)}; give "
            "inputs.permute(0, 3, 1, 2), in numpy inputs.transpose(0, 3, 1, 2)"
        )
    sizes, others = ([size for size in axes if size > 1] for axes in (shape, wanted))
    if min(len(sizes), len(others)) > 1 and sizes != others and math.prod(sizes) == math.prod(others):
        raise DataError(
            f"inputs have shape {tuple(shape)}, and the network takes {tuple(wanted)}, with the numbers in another order; give "
            "inputs of that shape"
        )


def leaves(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of some inputs, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, dict) else list(inputs)


def rows(inputs: Inputs) -> int:
    """Return the number of examples: the length of the first tensor."""
    return len(leaves(inputs)[0])


def each(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Return inputs of the same structure, with a function applied to every tensor.

    Args:
        inputs: a tensor, a tuple or a dict of tensors.
        function: of one tensor.

    Returns:
        the results, in the structure of ``inputs``.

    >>> each({"ids": torch.tensor([1, 2])}, lambda tensor: tensor + 1)
    {'ids': tensor([2, 3])}
    """
    return like(inputs, [function(tensor) for tensor in leaves(inputs)])


def like(inputs: Inputs, tensors: Sequence[Tensor]) -> Inputs:
    """Return other tensors in the structure of some inputs.

    Args:
        inputs: a tensor, a tuple or a dict of tensors.
        tensors: as many, in the order of :func:`leaves`.

    Returns:
        the tensors, in the structure of ``inputs``.
    """
    if isinstance(inputs, Tensor):
        return tensors[0]
    return dict(zip(inputs, tensors, strict=True)) if isinstance(inputs, dict) else tuple(tensors)


def placed(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Return inputs on a device, with real numbers in a dtype; whole numbers keep theirs.

    Args:
        inputs: a tensor, a tuple or a dict of tensors.
        device: where to.
        dtype: of floating-point tensors.

    Returns:
        the inputs there.
    """
    return each(inputs, lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate inputs of several groups of examples along the first axis."""
    return like(parts[0], [torch.cat(several) for several in zip(*map(leaves, parts), strict=True)])


def split(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Yield inputs of at most ``size`` examples each.

    Args:
        inputs: a tensor, a tuple or a dict of tensors.
        size: largest number of examples.

    Yields:
        the groups, in order.

    >>> [rows(part) for part in split((torch.zeros(5), torch.ones(5, 2)), 2)]
    [2, 2, 1]
    """
    for start in range(0, rows(inputs), size):
        yield each(inputs, lambda tensor, start=start: tensor[start : start + size])  # type: ignore[misc]


def grey(tensor: Tensor) -> Tensor:
    """Return 8-bit grey levels as real numbers from 0 to 1; other tensors are unchanged."""
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor


def structure(inputs: Inputs) -> Any:
    """Return the shapes of one example's tensors, in the structure of the inputs.

    >>> structure({"ids": torch.zeros(3, 7)})
    {'ids': (7,)}
    """
    if isinstance(inputs, Tensor):
        return tuple(inputs.shape[1:])
    if isinstance(inputs, dict):
        return {name: tuple(tensor.shape[1:]) for name, tensor in inputs.items()}
    return [tuple(tensor.shape[1:]) for tensor in inputs]


def shapes_of(inputs: Inputs) -> str:
    """Return names, shapes, memory layouts and dtypes of inputs as a key: equal keys are equal calls for a device.

    >>> two = shapes_of(torch.zeros(2, 3))
    >>> two == shapes_of(torch.ones(2, 3)), two == shapes_of(torch.zeros(3, 3))
    (True, False)
    """
    names = list(inputs) if isinstance(inputs, dict) else ""
    return repr((names, [(tuple(leaf.shape), leaf.stride(), leaf.dtype) for leaf in leaves(inputs)]))


def described(inputs: Inputs) -> str:
    """Return the shape of one example's inputs in words, for messages.

    >>> described(torch.zeros(3, 7)), described({"ids": torch.zeros(3, 7), "mask": torch.zeros(3, 7)})
    ('shape (7,)', 'shapes ids (7,), mask (7,)')
    """
    if isinstance(inputs, Tensor):
        return f"shape {structure(inputs)}"
    shapes = structure(inputs)
    named = shapes.items() if isinstance(shapes, dict) else enumerate(shapes)
    return "shapes " + ", ".join(f"{name} {shape}" for name, shape in named)


def call(network: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a network with a tensor as one argument, a tuple as several, and a dict by name.

    Args:
        network: the network, or another function.
        inputs: its arguments.

    Returns:
        what it returns.
    """
    if isinstance(inputs, Tensor):
        return network(inputs)
    return network(**inputs) if isinstance(inputs, dict) else network(*inputs)


def chosen(output: Any, choice: Output = "auto") -> Tensor:
    """Return the tensor among a network's outputs that the likelihood reads.

    Args:
        output: a tensor, a tuple or list, or a mapping such as a ``ModelOutput`` of transformers.
        choice: ``auto`` takes a tensor as it is, ``logits`` of a mapping, and the first of a tuple; or a name, or an index.

    Returns:
        the tensor.

    Raises:
        ConfigError: if the network has no such output.
        LayerError: if that output is not a tensor.

    >>> chosen((torch.zeros(2), None)).tolist(), chosen({"logits": torch.ones(1)}).tolist()
    ([0.0, 0.0], [1.0])
    """
    if isinstance(output, Tensor) and choice == "auto":
        return output
    found = _named(output, choice)
    if not isinstance(found, Tensor):
        kind = type(found).__name__
        raise LayerError(
            f"the network's output {_shown(choice)} is a {kind}, not a tensor; set network.output to its name or index"
        )
    return found


def _named(output: Any, choice: Output) -> Any:
    if isinstance(output, Mapping):
        names = [str(name) for name, value in output.items() if value is not None]
        name = "logits" if choice == "auto" else choice
        if isinstance(name, int) and 0 <= name < len(names):
            return output[names[name]]
        if name not in names:
            hint = near_miss(str(name), names)
            raise ConfigError(f"the network has no output '{name}'{hint}; set network.output to one of: {', '.join(names)}")
        return output[name]
    if isinstance(output, tuple | list):
        fields: tuple[str, ...] = getattr(output, "_fields", ())
        index = 0 if choice == "auto" else choice
        if isinstance(index, int) and -len(output) <= index < len(output):
            return output[index]
        if index in fields:
            return getattr(output, str(index))
        raise ConfigError(
            f"the network has {len(output)} outputs and none is '{index}'; set network.output to 0 to {len(output) - 1}"
        )
    if isinstance(output, Tensor):
        raise ConfigError(f"the network's output is one tensor; leave network.output ({choice!r}) out")
    return output


def _shown(choice: Output) -> str:
    return "" if choice == "auto" else f"'{choice}'"
