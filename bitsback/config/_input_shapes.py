"""Shapes of the inputs that ready networks take, and the messages about others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.errors import ConfigError
from bitsback.inputs import CHANNELS_LAST, Inputs, described, looks_channels_last

__all__ = ["columns_of", "flat", "image_of", "length_of", "patch_of", "vectors_of"]

COLUMNS = ("numbers", "categories")
"""Inputs of a network over tables, by name."""

PATCHES = 64
"""Most patches of an image whose patch size is not set."""


def flat(inputs: Inputs) -> bool:
    """Return whether inputs are one tensor.

    >>> flat(torch.zeros(3, 2)), flat({"numbers": torch.zeros(3, 2)})
    (True, False)
    """
    return isinstance(inputs, Tensor)


def columns_of(inputs: Inputs, categories: Sequence[int] | None) -> tuple[int, tuple[int, ...]]:
    """Return the number of columns of numbers, and the numbers of values of those of categories.

    Args:
        inputs: one tensor (n, ...) of numbers, or a dict of numbers (n, k), categories (n, c), or both.
        categories: number of values of each column of categories, as configured.

    Returns:
        k, and one number for each column of categories.

    Raises:
        ConfigError: for other inputs, and for columns of categories whose numbers of values are not known.

    >>> columns_of({"numbers": torch.zeros(5, 3), "categories": torch.zeros(5, 2, dtype=torch.long)}, (4, 6))
    (3, (4, 6))
    """
    parts = inputs if isinstance(inputs, dict) else {"numbers": inputs.flatten(1)} if isinstance(inputs, Tensor) else {}
    if not parts or set(parts) - set(COLUMNS) or any(part.ndim != 2 for part in parts.values()):
        raise ConfigError(
            "network mlp takes one tensor, network.categories left out, or a dict of numbers (n, k) and categories (n, c), "
            f"and the data give {described(inputs)}; name a factory that returns a network which takes them: "
            "network: {kind: factory, factory: package.module:function}"
        )
    given = parts["categories"].shape[1] if "categories" in parts else 0
    if given != len(categories or ()):
        raise ConfigError(
            f"the data have {given} columns of categories, and network.categories has {len(categories or ())} numbers; give "
            "the number of values of each column, and leave network.categories out if there is none"
        )
    return (parts["numbers"].shape[1] if "numbers" in parts else 0), tuple(categories or ())


def vectors_of(inputs: Inputs, kind: str) -> int:
    """Return the numbers of a vector of a sequence of vectors, or 0 for a sequence of tokens.

    Args:
        inputs: (n, L), tokens, or (n, L, k), vectors.
        kind: of the network, for the message.

    Returns:
        k, or 0.

    Raises:
        ConfigError: for other inputs.

    >>> vectors_of(torch.zeros(5, 4, 3), "lstm"), vectors_of(torch.zeros(5, 4, dtype=torch.long), "lstm")
    (3, 0)
    """
    if isinstance(inputs, Tensor):
        if inputs.ndim == 2 and not inputs.is_floating_point() and inputs.dtype != torch.bool:
            return 0
        if inputs.ndim == 3 and inputs.is_floating_point():
            return inputs.shape[2]
    what = f"{'' if not isinstance(inputs, Tensor) else f'{inputs.dtype} of '}{described(inputs)}"
    fix = "name another network, such as network.kind=mlp"
    if isinstance(inputs, Tensor) and inputs.ndim == 2:
        fix = (
            "tokens stay whole with data.scaling=none in settings, and with .long() in Python; a series of numbers needs a "
            "third axis, (n, L, 1); for rows of numbers set network.kind=mlp"
        )
    elif isinstance(inputs, Tensor) and inputs.ndim == 3:
        fix = "vectors are real numbers: set data.scaling=standard in settings, or convert them with .float() in Python"
    raise ConfigError(
        f"network {kind} takes sequences of tokens (n, L), whole numbers, or of vectors (n, L, k), real numbers, and the data "
        f"give {what}; {fix}"
    )


def length_of(inputs: Inputs) -> int:
    """Return the number of positions of sequences (n, L, ...)."""
    return int(inputs.shape[1]) if isinstance(inputs, Tensor) else 0


def image_of(inputs: Inputs, kind: str) -> tuple[int, int, int]:
    """Return channels, height and width of images.

    Args:
        inputs: (n, channels, height, width), real numbers.
        kind: of the network, for the message.

    Returns:
        the three sizes.

    Raises:
        ConfigError: for other inputs, with the fix where they look like images with channels last or left out.

    >>> image_of(torch.zeros(5, 3, 32, 24), "resnet")
    (3, 32, 24)
    """
    is_tensor = isinstance(inputs, Tensor)
    sizes = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
    if len(sizes) == 3 and isinstance(inputs, Tensor) and inputs.is_floating_point():
        if not looks_channels_last(sizes):
            return sizes[0], sizes[1], sizes[2]
        fix = f"these {CHANNELS_LAST}"
    elif len(sizes) == 3:
        fix = "pixels are real numbers: set data.scaling=standard in settings, or convert them with .float() in Python"
    elif len(sizes) == 2:
        fix = "images of one channel need an axis for it: inputs.unsqueeze(1)"
    else:
        fix = f"for {'rows of numbers' if is_tensor else 'such inputs'} set network.kind=mlp"
    raise ConfigError(
        f"network {kind} takes images (n, channels, height, width), real numbers, and the data give {described(inputs)}; {fix}"
    )


def patch_of(height: int, width: int, patch: int | None) -> int:
    """Return the side of a patch in pixels.

    Args:
        height: of an image in pixels.
        width: of an image in pixels.
        patch: side that was set; None: the smallest from 2 that divides both into at most :data:`PATCHES` patches.

    Returns:
        the side.

    Raises:
        ConfigError: if no patch, or not this one, divides the image.

    >>> patch_of(32, 32, None), patch_of(28, 28, None), patch_of(8, 8, None)
    (4, 4, 2)
    """
    sides = range(2, min(height, width) + 1) if patch is None else [patch]
    for side in sides:
        few = patch is not None or (height // side) * (width // side) <= PATCHES
        if not height % side and not width % side and few:
            return side
    what = f"no side of a patch divides them into at most {PATCHES}" if patch is None else f"{patch} does not divide both"
    raise ConfigError(
        f"network vit cuts images into square patches, and of {height} x {width} pixels {what}; set network.patch to a common "
        "divisor, or give images of another size"
    )
