"""The processes of ``torch.distributed``: sums, means and copies of tensors, and whether all agree."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bitsback.errors import ConfigError

__all__ = ["ALONE", "Ranks", "number_over_ranks", "over_ranks", "present", "summing"]

BUCKET = 1 << 24
"""Numbers that are sent together; more are sent in several messages."""


@dataclass(frozen=True)
class Ranks:
    """A group of processes, each with its number; a single process needs no process group.

    Every method but :meth:`bounds` is collective: all processes of the group have to call it, in the same order.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        group: process group of ``torch.distributed``; None: the default one.

    >>> Ranks().sums([1.5, 2.0]), Ranks(rank=1, count=2).bounds(5)
    ([1.5, 2.0], (3, 5))
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Return True for rank 0, which alone writes files and prints."""
        return self.rank == 0

    def bounds(self, count: int) -> tuple[int, int]:
        """Return first and last (exclusive) of this rank's share of ``count`` things, as ``tensor_split`` cuts them."""
        each, more = divmod(count, self.count)
        first = self.rank * each + min(self.rank, more)
        return first, first + each + (self.rank < more)

    def share(self, index: Tensor) -> Tensor:
        """Return this rank's share of a tensor (n, ...), a view."""
        first, last = self.bounds(len(index))
        return index[first:last] if self.count > 1 else index

    @property
    def _device(self) -> torch.device:
        """Return a device whose tensors the group can send: the CPU where it can."""
        backends = dist.get_backend_config(self.group) if self.count > 1 else ""
        return torch.device("cpu" if "cpu" in backends or not backends else torch.accelerator.current_accelerator() or "cpu")

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, computed in float64, in the tensor's dtype and on its device."""
        if self.count == 1:
            return tensor
        total = tensor.detach().to(self._device, torch.float64, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(tensor)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum of each number over the ranks, in float64."""
        if self.count == 1 or not numbers:
            return list(numbers)
        total = torch.tensor(list(numbers), dtype=torch.float64, device=self._device)
        dist.all_reduce(total, group=self.group)
        return [float(number) for number in total.tolist()]

    def of_first(self, numbers: Sequence[float]) -> list[float]:
        """Return the numbers of rank 0."""
        return self.sums([number if self.is_first else 0.0 for number in numbers])

    def least(self, number: float) -> float:
        """Return the smallest of the ranks' numbers."""
        if self.count == 1:
            return number
        found = torch.tensor(number, dtype=torch.float64, device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MIN, group=self.group)
        return float(found)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in place; all ranks get the same bits."""
        if self.count == 1:
            return
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
        for kind in sorted(kinds, key=str):
            for bucket in _buckets([tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]):
                # one message for many tensors: small ones cost as much as 100,000 numbers
                flat = bucket[0] if len(bucket) == 1 else torch.cat([tensor.reshape(-1) for tensor in bucket])
                flat = flat if flat.is_contiguous() else flat.contiguous()
                flat.div_(self.count)  # first: a sum of float16 could overflow
                dist.all_reduce(flat, group=self.group)
                if len(bucket) > 1 or flat is not bucket[0]:
                    parts = flat.split([tensor.numel() for tensor in bucket]) if len(bucket) > 1 else [flat]
                    torch._foreach_copy_(bucket, [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])

    def _sendable(self, device: torch.device) -> bool:
        """Return True if the group sends tensors of a device."""
        return f"{device.type}:" in dist.get_backend_config(self.group)

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor by that of rank 0."""
        for tensor in tensors if self.count > 1 else ():
            if not tensor.numel():
                continue
            sent = tensor.detach().contiguous().reshape(-1).view(torch.uint8)  # any dtype
            sent = sent if self._sendable(sent.device) else sent.to(self._device)
            dist.broadcast(sent, self._first, group=self.group)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent.view(tensor.dtype).view(tensor.shape))

    @property
    def _first(self) -> int:
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)

    def texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, by rank."""
        if self.count == 1:
            return [text]
        own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
        length = torch.tensor([len(own)], device=self._device)
        lengths = [torch.zeros_like(length) for _ in range(self.count)]
        dist.all_gather(lengths, length, group=self.group)
        sizes = [int(one) for one in lengths]
        padded = torch.zeros(max(*sizes, 1), dtype=torch.uint8, device=self._device)
        padded[: len(own)] = own
        found = [torch.zeros_like(padded) for _ in range(self.count)]
        dist.all_gather(found, padded, group=self.group)
        return [bytes(one[:size].tolist()).decode() for one, size in zip(found, sizes, strict=True)]

    def text_of_first(self, text: str) -> str:
        """Return the text of rank 0."""
        return self.texts(text)[0]

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.count > 1:
            dist.barrier(group=self.group)

    def check_alike(self, what: str, text: str, fix: str) -> None:
        """Check that all ranks have the same text.

        Args:
            what: name of the text, for the message.
            text: this rank's.
            fix: what to do about a difference.

        Raises:
            ConfigError: on every rank, with the first lines that differ.
        """
        found = self.texts(text)
        other = next((rank for rank, one in enumerate(found) if one != found[0]), None)
        if other is None:
            return
        here, there = (set(found[rank].splitlines()) for rank in (0, other))
        lines = [next((line.strip() for line in found[r].splitlines() if line not in seen), "nothing")
                 for r, seen in ((0, there), (other, here))]  # fmt: skip
        raise ConfigError(f"the processes disagree on {what}: rank 0 has {lines[0]}, rank {other} has {lines[1]}; {fix}")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in groups of at most :data:`BUCKET` numbers."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


ALONE = Ranks()
"""A single process."""


def present(group: Any = None) -> Ranks:
    """Return the processes of a group that ``torch.distributed`` has started; :data:`ALONE` if it has not."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    count = dist.get_world_size(group)
    return Ranks(dist.get_rank(group), count, group) if count > 1 else ALONE


_summing = [ALONE]


@contextmanager
def summing(ranks: Ranks) -> Iterator[None]:
    """Let :func:`over_ranks` sum over these ranks inside the context: each holds a shard of every tensor."""
    _summing.append(ranks)
    try:
        yield
    finally:
        _summing.pop()


def over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks that hold shards of a model; the tensor itself outside :func:`summing`.

    For sums over all weights in code that sees the shard of one process.
    """
    return _summing[-1].summed(tensor)


def number_over_ranks(number: float) -> float:
    """Return the sum of a number over the ranks as :func:`over_ranks` does that of a tensor."""
    return _summing[-1].sums([number])[0]
