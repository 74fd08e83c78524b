"""Launches of the Triton kernels over batches of weight tensors, and noise that the kernels make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bitsback.kernels._layout import (
    ADAM,
    FILL,
    FLOATS,
    FORMS,
    GROUP_NUMBERS,
    ROW,
    STEP,
    SUMS,
    Word,
)  # fmt: skip
from bitsback.kernels._philox_torch import counter_normals

__all__ = [
    "ALIGNED",
    "CHUNK",
    "Batch",
    "Clock",
    "Numbers",
    "Row",
    "Table",
    "fill_normals",
    "has_triton",
    "is_capturing",
    "upload",
]

CHUNK = 1024
"""Elements of a tensor that one program works on."""

WARPS = 8
"""Warps of a program: four elements a thread, one 128-bit read of each tensor, and 80 registers."""

ALIGNED = 16
"""Bytes; addresses that are multiples of it are read 128 bits at a time."""

ADDED_TOGETHER = 512
"""Chunks whose sums one step of the reduction adds."""


@cache
def has_triton(device_type: str) -> bool:
    """Return whether the kernels can run on a device: Triton is installed, and there is a compiler or the interpreter for it.

    Args:
        device_type: ``cuda`` (also for AMD), ``xpu``, or ``cpu``, where only Triton's interpreter runs (TRITON_INTERPRET=1, for
            tests).

    Returns:
        Whether they can.
    """
    if find_spec("triton") is None:
        return False
    if device_type in ("cuda", "xpu"):
        return True
    from triton.runtime.interpreter import InterpretedFunction  # type: ignore[import-untyped]

    from bitsback.kernels import _triton

    return device_type == "cpu" and isinstance(_triton.sweep_kernel, InterpretedFunction)


def is_capturing(device: torch.device) -> bool:
    """Return whether the current stream of a device is being captured as a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(target: Tensor, values: Any) -> None:
    """Copy numbers to a tensor without waiting for its device.

    Args:
        target: tensor on any device.
        values: as many numbers, a nested list.
    """
    staged = torch.tensor(values, dtype=target.dtype)
    if target.is_cuda:  # the pinned block is kept, by torch's allocator, until the copy has been made
        staged = staged.pin_memory()
    target.copy_(staged, non_blocking=True)


class Clock:
    """Seed and number of a draw on the device, which captured launches read: a CUDA graph would keep plain numbers for ever.

    Launches name a draw by its distance from the number here, so that an ordinary launch needs no upload, and a captured one
    takes the draws that follow the number it finds at replay.

    >>> clock = Clock(torch.device("cpu"))
    >>> clock.set(7, 100)
    >>> clock.offset(7, 103), clock.tensor.tolist()
    (3, [7, 100])
    """

    def __init__(self, device: torch.device) -> None:
        self.tensor = torch.zeros(2, dtype=torch.int64, device=device)
        self._seed, self._number = 0, 0

    def set(self, seed: int, number: int) -> None:
        """Write seed and number to the device.

        Args:
            seed: seed of the draws.
            number: number from which draws are counted.
        """
        upload(self.tensor, [seed, number])
        self._seed, self._number = seed, number

    def offset(self, seed: int, number: int) -> int:
        """Return the distance of a draw from the number on the device; for another seed, write it there first.

        Args:
            seed: seed of the draw.
            number: number of the draw.

        Returns:
            Its number minus the one on the device.

        Raises:
            RuntimeError: for another seed while a graph is being captured.
        """
        if seed != self._seed:
            if is_capturing(self.tensor.device):
                raise RuntimeError("a draw of another seed cannot be captured")
            self.set(seed, number)
        return number - self._number


def fill_normals(out: Tensor, stream: int, start: int, clock: Clock, seed: int, number: int) -> Tensor:
    """Fill a tensor with standard normal numbers, a function of (seed, number, stream, index).

    Args:
        out: tensor (n,), filled in place.
        stream: 32 bits.
        start: index of the first number.
        clock: seed and number on the device of ``out``.
        seed: 64 bits.
        number: number of the draw, modulo 2^32.

    Returns:
        ``out``.

    >>> out = fill_normals(torch.empty(3), 0, 0, Clock(torch.device("cpu")), 1, 2)
    >>> bool(torch.isfinite(out).all())
    True
    """
    if not out.is_cuda or not has_triton(out.device.type) or out.dtype == torch.float64:
        return counter_normals(out, seed, number, stream, start)
    from bitsback.kernels._triton import fill_kernel

    with torch.cuda.device(out.device):
        fill_kernel[(-(-len(out) // CHUNK),)](
            out, len(out), start, clock.tensor, clock.offset(seed, number), stream, BLOCK=CHUNK
        )
    return out


@dataclass(frozen=True)
class Row:
    """Weight tensor of a batch: dense float32 tensors of one memory layout, and the numbers of its prior.

    Attributes:
        weight, mean, log_std: the tensors.
        stream: number of its noise stream.
        start: index, in the stream, of its first element.
        location, log_scale, third: tensors of the prior; None with the form ``given``.
        count: components of a mixture; of a prior with several scales, the elements side by side that share one.
        table_start, table_step: of a table in ``third``, (2, rows, columns), the argument at the first column, and between two.
    """

    weight: Tensor
    mean: Tensor
    log_std: Tensor
    stream: int
    start: int = 0
    location: Tensor | None = None
    log_scale: Tensor | None = None
    third: Tensor | None = None
    count: int = 1
    table_start: float = 0.0
    table_step: float = 1.0

    def words(self) -> list[int]:
        """Return the row's words that do not change from launch to launch, 0 for the others."""
        words = [0] * ROW
        scales = self.log_scale.numel() if self.log_scale is not None else 1
        several = {
            Word.WEIGHT: self.weight, Word.MEAN: self.mean, Word.LOG_STD: self.log_std, Word.LOCATION: self.location,
            Word.LOG_SCALE: self.log_scale, Word.THIRD: self.third,
        }  # fmt: skip
        for word, tensor in several.items():
            words[word] = tensor.data_ptr() if tensor is not None else 0
        words[Word.LENGTH], words[Word.STREAM], words[Word.START] = self.mean.numel(), self.stream, self.start
        words[Word.COUNT], words[Word.SCALES] = self.count, scales
        return words


class Table:
    """Tensor of whole numbers that is uploaded when it changes, at once or, while a graph is being captured, afterwards."""

    def __init__(self, like: Tensor) -> None:
        self.tensor = like
        self._values: Any = None
        self._spares: list[Tensor] = []
        self._captured: list[Tensor] = []
        self._late: list[tuple[Tensor, Any]] = []

    def prepare(self, count: int) -> None:
        """Allocate tensors for launches of the next capture: replays need each unchanged, whatever comes between.

        Args:
            count: largest number of launches with numbers of their own.
        """
        self._spares = [torch.empty_like(self.tensor) for _ in range(count)]

    def get(self, values: Any) -> Tensor:
        """Return a tensor of these numbers.

        Args:
            values: numbers, a nested list.

        Returns:
            Tensor on the device, with these numbers when the launch runs.

        Raises:
            RuntimeError: when a capture needs more tensors than were prepared.
        """
        if is_capturing(self.tensor.device):
            known = next((tensor for tensor, wanted in self._late if wanted == values), None)
            if known is None:
                if not self._spares:
                    raise RuntimeError("a captured step has more launches than were prepared")
                known = self._spares.pop()
                self._captured.append(known)
                self._late.append((known, values))
            return known
        if values != self._values:
            upload(self.tensor, values)
            self._values = values
        return self.tensor

    def finish(self) -> None:
        """Upload what launches of the finished capture read."""
        for tensor, values in self._late:
            upload(tensor, values)
        self._late.clear()
        self._spares.clear()


class Numbers:
    """Numbers of an update that change from step to step, on the device in float64: k, learning rates and the like.

    >>> numbers = Numbers(torch.device("cpu"))
    >>> numbers.set(0.5, 1.0, 0.03, [[0.1, 0.9, 0.999, 1e-8, 0.0]])
    >>> numbers.tensor[:5].tolist()
    [0.5, 1.0, 0.03, 0.0, 0.1]
    """

    def __init__(self, device: torch.device) -> None:
        self.tensor = torch.zeros(FLOATS, dtype=torch.float64, device=device)
        self.rates = torch.zeros(0, device=device)
        """Learning rate of each group in float32, as torch's fused kernels read them."""
        self._values: list[float] = []

    @property
    def k(self) -> Tensor:
        """Return the factor of the KL in nats, a scalar on the device."""
        return self.tensor[0]

    @property
    def prior_rate(self) -> Tensor:
        """Return the share of the way that closed-form priors move, a scalar on the device."""
        return self.tensor[2]

    def set(self, k: float, to_nats: float, prior_rate: float, groups: Sequence[Sequence[float]]) -> None:
        """Write the numbers to the device if they changed; while a graph is captured do nothing, as they are read at replay.

        Args:
            k: factor of the KL in nats.
            to_nats: nats in a unit of the loss, times the number of examples.
            prior_rate: share of the way that closed-form priors move.
            groups: learning rate, beta1, beta2, eps and largest step of every parameter group.
        """
        values = [k, to_nats, prior_rate, *[0.0] * (FLOATS - 3)]
        for group in groups:
            values += [*group, *[0.0] * (GROUP_NUMBERS - len(group))]
        if values == self._values or is_capturing(self.tensor.device):
            return
        if len(values) != len(self.tensor):
            self.tensor = self.tensor.new_zeros(len(values))
            self.rates = self.rates.new_zeros(len(groups))
        upload(self.tensor, values)
        upload(self.rates, [group[0] for group in groups])
        self._values = values


class Batch:
    """Weight tensors with one form of prior, which the same launches cover.

    Args:
        rows: the tensors.
        form: of their priors: ``normal``, ``laplace``, ``power``, ``logistic``, ``mixture``, ``horseshoe`` or ``given``.
        learns: whether the launches sum the gradients by learned numbers of the priors.

    Attributes:
        totals: (tensors, sums) float64, filled by :meth:`add`.
    """

    def __init__(self, rows: Sequence[Row], form: str, *, learns: bool = False) -> None:
        self.rows, self.form, self.learns = list(rows), form, learns
        device = rows[0].mean.device
        self.width = SUMS + (3 * max(row.count for row in rows) if form == "mixture" else 0)
        self._words = [row.words() for row in rows]
        counts = [-(-row.mean.numel() // CHUNK) for row in rows]
        firsts = [sum(counts[:place]) for place in range(len(counts))]
        chunks = torch.cat([_chunks(place, row, first) for place, (row, first) in enumerate(zip(rows, firsts, strict=True))])
        is_full = chunks[:, 3].bool()
        self._chunks = [(part.to(device), full) for full in (True, False) if len(part := chunks[is_full == full])]
        self._ranges = torch.tensor([[at, at + count] for at, count in zip(firsts, counts, strict=True)]).to(device)
        self.sums = torch.zeros(len(chunks), self.width, device=device)
        self.narrow = torch.ones(len(chunks), dtype=torch.int8, device=device)
        self.totals = torch.zeros(len(rows), self.width, dtype=torch.float64, device=device)
        self.table = Table(torch.zeros(len(rows), ROW, dtype=torch.int64, device=device))

    def launch(
        self,
        mode: int,
        draw: Tensor,
        now: tuple[int, int],
        after: tuple[int, int],
        words: Sequence[Mapping[int, int]],
        *,
        numbers: Tensor | None = None,
        rule: int = ADAM,
        carries: bool = False,
    ) -> None:
        """Launch the kernel over all tensors.

        Args:
            mode: one of ``STEP``, ``FILL``, ``FILLED``, ``DRAW``, ``LOOK`` and ``REWRITE``.
            draw: seed and number on the device, of a :class:`Clock`.
            now: distance of the current draw from that number, and its sign.
            after: the same of the draw to write.
            words: for each tensor, the words of its row that belong to this launch.
            numbers: of :class:`Numbers`; default: none, for modes without an update.
            rule: ``ADAM`` or ``IVON``.
            carries: correct pending gradients of log stds for the change of the draw.
        """
        from bitsback.kernels import _triton

        values = [list(own) for own in self._words]
        for own, further in zip(values, words, strict=True):
            for word, value in further.items():
                own[word] = value
        table = self.table.get(values)
        row = self.rows[0]
        lines, columns = row.third.shape[1:] if self.form == "horseshoe" and row.third is not None else (2, 2)
        with _current(table.device):
            for chunks, is_full in self._chunks:
                _triton.sweep_kernel[(len(chunks),)](
                    chunks, table, draw, draw if numbers is None else numbers, self.sums, self.narrow, *now, *after,
                    MODE=mode, RULE=rule, PRIOR=FORMS[self.form], WIDTH=self.width,
                    LEARN=self.learns and mode in (STEP, FILL), CARRY=carries, FULL=is_full, BLOCK=CHUNK, TABLE_COLUMNS=columns,
                    TABLE_ROWS=lines, LOWEST=row.table_start, CELLS=1 / row.table_step, num_warps=WARPS,
                )  # fmt: skip

    def add(self) -> Tensor:
        """Return the sums of each tensor, (tensors, sums) in float64."""
        from bitsback.kernels import _triton

        columns = 1 << (self.width - 1).bit_length()
        with _current(self.sums.device):
            _triton.reduce_kernel[(len(self.rows),)](
                self.sums, self._ranges, self.totals, WIDTH=self.width, COLUMNS=columns, BLOCK=ADDED_TOGETHER
            )
        return self.totals


def _chunks(place: int, row: Row, first: int) -> Tensor:
    """Return a tensor's chunks, (chunks, 4) int32: its place, number in the tensor and in all, and whether it is read whole."""
    count, size = -(-row.mean.numel() // CHUNK), row.mean.numel()
    found = torch.zeros(count, 4, dtype=torch.int32)
    found[:, 0], found[:, 1] = place, torch.arange(count)
    found[:, 2] = found[:, 1] + first
    is_aligned = all(tensor.data_ptr() % ALIGNED == 0 for tensor in (row.weight, row.mean, row.log_std))
    found[:, 3] = ((found[:, 1] + 1) * CHUNK <= size) & is_aligned
    return found


def _current(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else torch.no_grad()
