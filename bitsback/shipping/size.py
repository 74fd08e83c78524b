"""How large a network a file may ask for, found out before anything is allocated."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bitsback.config import Config
from bitsback.config.network import SequentialSettings
from bitsback.errors import FileError

LARGEST_OF_ANY, LARGEST_PER_BYTE, MOST_LAYERS = 1 << 24, 1 << 12, 4096
"""Numbers (weights, statistics, activations of two examples) that a file of any size, and a byte of it, may ask for."""


def check_size(config: Config, inputs: Sequence[int], outputs: int, *, whole: bool = False, file_bytes: int = 0) -> None:
    """Raise FileError when a file asks for far more than it could describe; a factory's network is the caller's own business.

    Args:
        config: of the file.
        inputs: shape of one input.
        outputs: how many outputs the likelihood needs.
        whole: whether inputs are whole numbers.
        file_bytes: size of the file.
    """
    most = LARGEST_OF_ANY + LARGEST_PER_BYTE * file_bytes
    count = 2 * prod(inputs)
    network = config.network
    if count + outputs <= most and isinstance(network, SequentialSettings) and len(network.layers) <= MOST_LAYERS:

        def add(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal count
            count += output.numel() if isinstance(output, Tensor) else 0

        hook = register_module_forward_hook(add)
        try:
            with torch.device("meta"):  # shapes without numbers
                example = torch.zeros(2, *inputs, dtype=torch.int64 if whole else torch.float32)
                built = network.model_copy(update={"pretrained": None}).build(example, outputs)
        finally:
            hook.remove()
        count += sum(tensor.numel() for tensor in [*built.parameters(), *built.buffers()])
    if count + outputs > most or (isinstance(network, SequentialSettings) and len(network.layers) > MOST_LAYERS):
        raise FileError(f"the file's network is too large for a file of {file_bytes:,} bytes; it is damaged")
