"""Description of a network's inputs in the settings of a model file: one tensor, or several in order or by name."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from bitsback.errors import FileError
from bitsback.formats._size_limits import is_shape
from bitsback.inputs import Inputs, described, grey, leaves

__all__ = ["InputKinds"]

ONE = ""
"""Name of a single tensor."""

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
        named = tree if isinstance(tree, dict) else _numbered(tree) if _lists_objects(tree) else None
        one = {"shape": tree, "kind": "whole" if whole else "real"}
        self._parts = {name: (part["shape"], part["kind"]) for name, part in (named or {ONE: one}).items()}
        if any(not is_shape(shape) or kind not in DTYPES for shape, kind in self._parts.values()):
            raise ValueError("not the shapes and kinds of inputs")
        self._has_names = isinstance(tree, dict)
        self.is_one_tensor = named is None

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
        return 1 + len(self.sizes) if self.is_one_tensor else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the shape of one input; of several tensors, the number of their numbers."""
        if self.is_one_tensor:
            return tuple(self._parts[ONE][0])
        return (sum(prod(shape) for shape, _ in self._parts.values()),)

    @property
    def is_whole(self) -> bool:
        """Return whether the network takes one tensor of whole numbers."""
        return self.is_one_tensor and self._parts[ONE][1] == "whole"

    def blank(self, count: int) -> Inputs:
        """Return inputs of ``count`` examples that are zero."""
        zeros = {name: torch.zeros(count, *shape, dtype=DTYPES[kind]) for name, (shape, kind) in self._parts.items()}
        return zeros[ONE] if self.is_one_tensor else zeros if self._has_names else tuple(zeros.values())

    def fitted(self, inputs: Inputs) -> Inputs:
        """Return inputs of several tensors in the types that the network takes.

        Args:
            inputs: in the structure of the network's, (n, ...).

        Returns:
            the inputs, in the types of the file.

        Raises:
            FileError: for inputs of another structure.
        """
        tensors = _numbered(inputs) if isinstance(inputs, tuple | list) else inputs
        if self.is_one_tensor or not isinstance(tensors, dict) or set(tensors) != set(self._parts):
            named = ", ".join(f"{name} {tuple(shape)}" for name, (shape, _) in self._parts.items()).strip()
            raise FileError(f"the model takes inputs {named}, and these have {described(inputs)}; give such inputs")
        levels = {name: grey(tensors[name]) if kind == "real" else tensors[name] for name, (_, kind) in self._parts.items()}
        fitted = {name: levels[name].to(DTYPES[kind]) for name, (_, kind) in self._parts.items()}
        return fitted if self._has_names else tuple(fitted.values())


def _numbered(parts: Sequence[Any]) -> dict[str, Any]:
    return {str(number): part for number, part in enumerate(parts)}


def _lists_objects(tree: Any) -> bool:
    return isinstance(tree, list) and bool(tree) and all(isinstance(part, dict) for part in tree)


def _kind(tensor: Tensor) -> str:
    return "real" if tensor.is_floating_point() else "yes_no" if tensor.dtype == torch.bool else "whole"
