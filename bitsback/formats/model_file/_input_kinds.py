"""Description of a network's inputs in the settings of a model file: one tensor, or several in order or by name."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from bitsback.errors import FileError
from bitsback.formats._size_limits import is_shape
from bitsback.inputs import Inputs, described, each, leaves, like, structure

__all__ = ["InputKinds"]

DTYPES = {"real": torch.float32, "whole": torch.int64, "yes_no": torch.bool}
"""Types of inputs, by their name in files."""


class InputKinds:
    """Shapes and types of a network's inputs.

    Args:
        tree: value of ``inputs`` in the settings: the shape of one input that is a tensor; for several tensors a list, or an
            object by name, of ``{"shape": [...], "kind": "real" | "whole" | "yes_no"}``.
        whole: whether a single tensor holds whole numbers.

    Raises:
        ValueError: if the settings do not describe inputs.
    """

    def __init__(self, tree: Any, *, whole: bool = False) -> None:
        several = tree if isinstance(tree, dict) else dict(enumerate(tree)) if tree and isinstance(tree[0], dict) else None
        if several is None:
            if not is_shape(tree):
                raise ValueError("not the sizes of a tensor")
            parts: dict[Any, tuple[list[int], str]] = {None: (tree, "whole" if whole else "real")}
        else:
            parts = {name: (part["shape"], part["kind"]) for name, part in several.items()}
        if not parts or any(not is_shape(shape) or kind not in DTYPES for shape, kind in parts.values()):
            raise ValueError("not the shapes and kinds of inputs")
        tensors = [torch.empty(0, dtype=DTYPES[kind]).expand(0, *shape) for shape, kind in parts.values()]
        self._like: Inputs = (
            tensors[0]
            if several is None
            else dict(zip(parts, tensors, strict=True))
            if isinstance(tree, dict)
            else tuple(tensors)
        )

    @classmethod
    def tree_of(cls, inputs: Inputs) -> Any:
        """Return the settings that describe some inputs (n, ...)."""
        if isinstance(inputs, Tensor):
            return list(inputs.shape[1:])
        parts = [{"shape": list(leaf.shape[1:]), "kind": _kind(leaf)} for leaf in leaves(inputs)]
        return dict(zip(inputs, parts, strict=True)) if isinstance(inputs, dict) else parts

    @property
    def axes(self) -> int | None:
        """Return the axes of a batch, the batch's own included; None for several tensors."""
        return self._like.ndim if isinstance(self._like, Tensor) else None

    @property
    def numbers(self) -> int:
        """Return the numbers of one example."""
        return sum(prod(leaf.shape[1:]) for leaf in leaves(self._like))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the shape of one input; of several tensors, the number of their numbers."""
        return tuple(self._like.shape[1:]) if isinstance(self._like, Tensor) else (self.numbers,)

    @property
    def is_one_tensor(self) -> bool:
        """Return whether the network takes one tensor."""
        return isinstance(self._like, Tensor)

    @property
    def is_whole(self) -> bool:
        """Return whether the network takes one tensor of whole numbers."""
        return isinstance(self._like, Tensor) and not self._like.is_floating_point()

    def blank(self, count: int) -> Inputs:
        """Return inputs of ``count`` examples that are zero."""
        return each(self._like, lambda leaf: torch.zeros(count, *leaf.shape[1:], dtype=leaf.dtype))

    def fitted(self, inputs: Inputs) -> Inputs:
        """Return inputs of several tensors in the types that the network takes.

        Args:
            inputs: in the structure of the network's, (n, ...).

        Returns:
            the inputs, in the types of the file.

        Raises:
            FileError: for inputs of another structure.
        """
        wanted, given = structure(self._like), inputs if isinstance(inputs, Tensor | dict) else tuple(inputs)
        alike = isinstance(given, type(self._like)) and (not isinstance(given, dict) or set(given) == set(wanted))
        if not alike or len(leaves(given)) != len(leaves(self._like)):
            raise FileError(f"the model takes inputs of {described(self._like)}, got {described(given)}; give such inputs")
        ordered = {name: given[name] for name in wanted} if isinstance(given, dict) else given
        pairs = zip(leaves(ordered), leaves(self._like), strict=True)
        return like(self._like, [tensor.to(leaf.dtype) for tensor, leaf in pairs])


def _kind(tensor: Tensor) -> str:
    return "real" if tensor.is_floating_point() else "yes_no" if tensor.dtype == torch.bool else "whole"
