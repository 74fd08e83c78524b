"""Tensors of which each process holds a shard (``torch.distributed.tensor.DTensor``)."""

import math
import sys
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitsback.errors import LayerError

__all__ = ["Shard", "holds_unreduced", "is_shard", "laid_out_as", "local", "resharded", "shard_of", "whole"]


@dataclass(frozen=True)
class Shard:
    """Place of a process's shard in a tensor that is cut along its first axis.

    Attributes:
        first: flat index of the shard's first element.
        whole: number of elements of the whole tensor.
        layout: a DTensor of that layout.
    """

    first: int
    whole: int
    layout: Any

    def global_(self, part: Tensor) -> Tensor:
        """Return the DTensor that has a plain tensor for this process's shard; they share memory."""
        like = self.layout
        return type(like).from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def of(self, full: Tensor) -> Tensor:
        """Return this process's shard of a whole tensor, a copy."""
        count = math.prod(local(self.layout).shape)
        return full.detach().reshape(-1)[self.first : self.first + count].view(local(self.layout).shape).clone()


def is_shard(tensor: Any) -> bool:
    """Return True for a DTensor."""
    tensors = sys.modules.get("torch.distributed.tensor")  # not imported: there is none
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a DTensor, and any other tensor as it is."""
    part: Tensor = tensor._local_tensor if is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a DTensor, gathered from all processes (collective), and any other tensor as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def laid_out_as(full: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor laid out over the processes as another, without messages.

    Args:
        full: the whole tensor, the same in every process.
        like: a DTensor, or any other tensor.

    Returns:
        a DTensor; ``full`` itself if ``like`` is none.
    """
    if not is_shard(like) or is_shard(full):
        return full
    shard = shard_of(like, "a tensor")
    return shard.global_(shard.of(full))


def shard_of(tensor: Tensor, name: str) -> Shard:
    """Return the place of this process's shard of a DTensor.

    Args:
        tensor: a DTensor, replicated or cut along its first axis.
        name: of the weight, for the message.

    Returns:
        its place.

    Raises:
        LayerError: for other layouts.
    """
    from torch.distributed.tensor import Shard as Cut
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = tensor.placements  # type: ignore[attr-defined]
    cuts = [place for place in placements if not place.is_replicate()]
    if len(cuts) > 1 or any(type(cut) is not Cut or cut.dim != 0 for cut in cuts):
        raise LayerError(
            f"'{name}' is laid out over processes as {tuple(placements)}; a posterior needs weights that are cut along their "
            "first axis, as fully_shard does by default"
        )
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, placements)  # type: ignore[attr-defined]
    first = offset[0] * math.prod(tensor.shape[1:]) if tensor.ndim else 0
    return Shard(min(first, tensor.numel()), tensor.numel(), tensor)


def holds_unreduced(network: nn.Module) -> bool:
    """Return True if FSDP2 keeps gradients of a backward pass that were not sent (``set_requires_gradient_sync(False)``)."""
    for module in _sharded_modules(network):
        for group in module._get_fsdp_state()._fsdp_param_groups:  # torch has no public way to ask
            for p in group.fsdp_params:
                gathered = getattr(p, "_unsharded_param", None)
                if p.unsharded_accumulated_grad is not None or (gathered is not None and gathered.grad is not None):
                    return True
    return False


def resharded(network: nn.Module) -> None:
    """Let FSDP2 give up the whole weights that a forward left, so that the modules hold their shards again."""
    for module in _sharded_modules(network):
        module.reshard()


def _sharded_modules(network: nn.Module) -> list[Any]:
    """Return the modules that ``fully_shard`` was applied to."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: there are none
    return [module for module in network.modules() if isinstance(module, fsdp.FSDPModule)] if fsdp is not None else []
