"""Shapes of the inputs that ready networks take, and the messages about others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsback.errors import ConfigError
from bitsback.inputs import Inputs, described

__all__ = ["columns_of", "flat", "vectors_of"]

COLUMNS = ("numbers", "categories")
"""Inputs of a network over tables, by name."""


def flat(inputs: Inputs) -> bool:
    """Return whether inputs are one tensor.

    >>> flat(torch.zeros(3, 2)), flat({"numbers": torch.zeros(3, 2)})
    (True, False)
    """
    return isinstance(inputs, Tensor)


def columns_of(inputs: Inputs, categories: Sequence[int] | None) -> tuple[int, tuple[int, ...]]:
    """Return the number of columns of numbers, and the numbers of values of those of categories.

    Args:
        inputs: a dict of numbers (n, k), categories (n, c), or both.
        categories: number of values of each column of categories, as configured.

    Returns:
        k, and one number for each column of categories.

    Raises:
        ConfigError: for other inputs, and for columns of categories whose numbers of values are not known.

    >>> columns_of({"numbers": torch.zeros(5, 3), "categories": torch.zeros(5, 2, dtype=torch.long)}, (4, 6))
    (3, (4, 6))
    """
    parts = inputs if isinstance(inputs, dict) else {}
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
            "the number of values of each column"
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
