"""Limits on the memory and time that a file may ask for, checked before anything is built; the numbers are in ``limits.py``."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from bitsback import limits
from bitsback.config import Config
from bitsback.config.network import SequentialSettings
from bitsback.config.ready_networks import ReadySettings
from bitsback.data.settings import FriedmanSettings
from bitsback.errors import FileError
from bitsback.formats._exact_outputs import BATCH
from bitsback.formats.repeatable import steps_of
from bitsback.inputs import Inputs, call

__all__ = ["check_data", "check_size", "check_steps", "is_shape"]

ROOMY = 1 << 26
"""Numbers of one layer's outputs that a batch of predictions may always have."""

NUMBERS_PER_INPUT = 16
"""Numbers that a file may ask for, for each number in the inputs that the receiver has."""


def is_shape(value: Any) -> bool:
    """Return whether a value that a file states is a list of sizes of axes; a bool is no size.

    >>> [is_shape(value) for value in ([1, 28], [], [0], [True], "28")]
    [True, True, False, False, False]
    """
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)


def check_size(
    config: Config,
    inputs: Sequence[int],
    outputs: int,
    *,
    whole: bool = False,
    file_bytes: int = 0,
    examples: int = 2,
    data_numbers: int = 0,
    symbols: int = 1,
    blank: Callable[[int], Inputs] | None = None,
) -> int:
    """Check that a file does not ask for a far larger model than it could describe; networks from a factory are not checked.

    Args:
        config: configuration of the file.
        inputs: shape of one input.
        outputs: number of network outputs that the likelihood needs.
        whole: whether inputs are whole numbers.
        file_bytes: size of the file in bytes.
        examples: number of examples in the forward pass, at most :data:`BATCH` at once; all their outputs are kept.
        data_numbers: number of numbers in the inputs that the receiver has.
        symbols: number of targets of an example, each of which has as many outputs.
        blank: makes so many examples of inputs that are several tensors; default: one tensor of the shape ``inputs``.

    Returns:
        largest number of examples in one forward pass.

    Raises:
        FileError: if the model is too large for the file.
    """
    most = limits.numbers_for(file_bytes) + NUMBERS_PER_INPUT * data_numbers
    widest, products, weights = prod(inputs), 0, 0
    network = config.network
    if isinstance(network, SequentialSettings | ReadySettings):
        depth = network.depth if isinstance(network, ReadySettings) else _layers(network)
        limits.LAYERS.check(depth, "the file's network", FileError)
        _check_numbers(2 * widest + symbols * outputs * max(2, examples), most, file_bytes)

        if isinstance(network, ReadySettings):
            _check_numbers(network.least_weights, most, file_bytes)
        whole_sequences = dict[nn.Module, tuple[Any, ...]]()

        def shorten(module: nn.Module, given: Any) -> Any:
            """Let a recurrent layer take one step, for steps without memory are a slow loop in Python."""
            if not isinstance(module, nn.RNNBase) or not given or not isinstance(given[0], Tensor) or given[0].ndim < 2:
                return None
            whole_sequences[module] = given
            axis = _time_axis(module, given[0])
            return (given[0].narrow(axis, 0, min(1, given[0].shape[axis])), *given[1:])

        def look(module: nn.Module, given: Any, output: Any) -> Any:
            nonlocal widest, products
            if module in whole_sequences:
                assert isinstance(module, nn.RNNBase)
                given, sizes = whole_sequences.pop(module), list(output[0].shape)
                axis = _time_axis(module, given[0])
                sizes[axis] = given[0].shape[axis]
                output = (output[0].new_empty(sizes), *output[1:])
            made = output if isinstance(output, tuple) else (output,)
            parts = [part for part in (*made, *given) if isinstance(part, Tensor)]
            widest = max([widest, *(-(-part.numel() // 2) for part in parts), _attention(module, parts)])
            counted = given if getattr(module, "transposed", False) else made
            products += max((_products(module, part) for part in counted if isinstance(part, Tensor)), default=0)
            return output

        hooks = register_module_forward_pre_hook(shorten), register_module_forward_hook(look)
        try:
            with torch.device("meta"):  # shapes only, no memory
                kind = torch.int64 if whole else torch.float32
                example = torch.zeros(2, *inputs, dtype=kind) if blank is None else blank(2)
                built = network.model_copy(update={"pretrained": None}).build(example, outputs)
                if isinstance(network, ReadySettings):  # a row of layers has been run to find its sizes
                    call(built.eval(), example)
        finally:
            for hook in hooks:
                hook.remove()
        weights = sum(tensor.numel() for tensor in [*built.parameters(), *built.buffers()])
        numbers = weights + widest * min(max(2, examples), BATCH) + symbols * outputs * examples
        _check_numbers(numbers, most, file_bytes)
        limits.USES.check(products // most, "put through the file's network, each of its numbers", FileError, "it is damaged")
    else:
        _check_numbers(2 * widest + symbols * outputs * max(2, examples), most, file_bytes)
    return max(2, min(BATCH, max(most, ROOMY) // max(1, widest)))


def _layers(network: SequentialSettings) -> int:
    """Return the number of layers, those inside of recurrent layers and transformers included."""
    arguments = [values or {} for layer in network.layers if isinstance(layer, dict) for values in layer.values()]
    inside = [value for given in arguments for name, value in given.items() if "layers" in name]
    return len(network.layers) + sum(value for value in inside if isinstance(value, int) and value > 0)


def _time_axis(module: nn.RNNBase, steps: Tensor) -> int:
    """Return the axis of a recurrent layer's inputs that counts steps."""
    return 1 if module.batch_first and steps.ndim == 3 else 0


def _attention(module: nn.Module, parts: Sequence[Tensor]) -> int:
    """Return the size of the attention matrix of one example, over all heads; 0 for other layers."""
    attention = getattr(module, "self_attn", module)
    if not isinstance(attention, nn.MultiheadAttention):
        return 0
    positions = max(part.numel() // max(1, part.shape[-1]) for part in parts)
    return attention.num_heads * positions**2 // 2


def _products(module: nn.Module, part: Tensor) -> int:
    """Return the multiplications of a layer for two examples, from its output (or a transposed layer's input)."""
    own = sum(p.numel() for p in module.parameters(recurse=False))
    if not own:
        kernel = getattr(module, "kernel_size", 1)
        sizes = kernel if isinstance(kernel, tuple) else (kernel,) * max(0, part.ndim - 2)
        return part.numel() * prod(size for size in sizes if isinstance(size, int))
    axis = 1 if isinstance(module, nn.modules.conv._ConvNd) and part.ndim > 1 else -1
    return own * (part.numel() // max(1, part.shape[axis])) if part.ndim else own


def _check_numbers(numbers: int, most: int, file_bytes: int) -> None:
    if numbers > most:
        raise FileError(
            f"the file's network is too large for a file of {file_bytes:,} bytes: it asks for {limits.shown(numbers)} numbers, "
            f"and {limits.NUMBERS.allowed(numbers, most, 'it is damaged')}"
        )


def check_data(config: Config, what: str, file_bytes: int = 0, *, labels: bool = True) -> None:
    """Check that a file does not ask for synthetic data of unbounded size.

    Args:
        config: configuration of the file.
        what: name of the file in error messages.
        file_bytes: size of the file in bytes.
        labels: whether the file codes labels, which synthetic data do not have.

    Raises:
        FileError: if it does.
    """
    data = config.data
    if not isinstance(data, FriedmanSettings):
        return
    # synthetic data are made in any size that a file asks for, so a file could make a receiver work without limit
    if labels:
        raise FileError(f"{what} names data without labels (friedman); it is damaged")
    limits.EXAMPLES.check(data.examples, what, FileError)
    numbers = data.inputs * (data.examples + data.inputs)  # examples, and a matrix of inputs by inputs
    if numbers > (most := limits.numbers_for(file_bytes)):
        raise FileError(f"{what} asks for data of {limits.shown(numbers)} numbers, and {limits.NUMBERS.allowed(numbers, most)}")


def check_steps(config: Config, examples: int, what: str) -> None:
    """Raise FileError if a receiver would have to train for too many steps.

    Args:
        config: configuration of the file.
        examples: number of training examples.
        what: name of the file in error messages.
    """
    limits.STEPS.check(steps_of(config.training, examples), what, FileError)
