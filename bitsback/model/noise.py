"""Standard normal noise as a function of (seed, number of the draw, stream, index), so that it can be recomputed.

:class:`BlockNoise` uses torch's generator, seeded for every block of 32,768 numbers, so that any block of a tensor can be made
alone. :class:`CounterNoise` encrypts the index itself, as GPU kernels do where they need the noise. :class:`PooledNoise`
reuses most numbers from draw to draw. :class:`ExactNoise` is bit-identical on every machine, for trainings that a receiver
repeats.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bitsback.kernels import Clock, fill_normals

__all__ = [
    "BlockNoise",
    "CounterNoise",
    "DeviceNoise",
    "ExactNoise",
    "Noise",
    "OutputNoise",
    "PooledNoise",
    "as_key",
    "fill_part",
    "fresh_seed",
    "mixed",
    "short_stream",
]

BLOCK = 32768
"""Numbers drawn after one seeding; 5 % slower than a single seeding, but any block can be made alone."""

MASK = (1 << 64) - 1
POOL, PLACE, OUTPUTS = 1 << 40, 1 << 41, 1 << 42
"""First stream numbers, beyond those of weight tensors: shares of a pool, read positions in a pool, outputs of layers."""


def mixed(*numbers: int) -> int:
    """Return a 64-bit hash of several integers (finaliser of splitmix64, Steele, Lea & Flood 2014).

    >>> mixed(0, 1) != mixed(1, 0), mixed(-3) == mixed(-3)
    (True, True)
    """
    state = 0
    for number in numbers:
        state = (state + (number & MASK) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def fresh_seed() -> int:
    """Return a seed from torch's generator, so that torch.manual_seed determines the draws too."""
    return mixed(int(torch.randint(1 << 62, ()))) >> 2


class Noise(ABC):
    """Generator of standard normal noise."""

    @abstractmethod
    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
        """Fill a tensor with consecutive numbers of a stream.

        Args:
            out: tensor (n,), filled in place.
            seed: seed.
            number: number of the draw.
            stream: number of the stream, such as a weight's index.
            start: index of the first number in the stream, a multiple of :data:`BLOCK`.

        Returns:
            ``out``.
        """

    def clock(self, device: torch.device) -> Clock | None:
        """Return seed and number on a device if GPU kernels make this noise there, else None."""
        return None


class BlockNoise(Noise):
    """Noise from torch's generators, seeded for each block.

    >>> whole, part = torch.empty(2 * BLOCK), torch.empty(BLOCK)
    >>> noise = BlockNoise()
    >>> bool((noise.fill(whole, 0, 1, 2)[BLOCK:] == noise.fill(part, 0, 1, 2, start=BLOCK)).all())
    True
    """

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
        """Fill ``out`` from a torch generator of its device.

        Args:
            out: tensor (n,), filled in place.
            seed: seed.
            number: number of the draw.
            stream: number of the stream.
            start: index of the first number in the stream.

        Returns:
            ``out``.
        """
        generator = self._generators.get(out.device)
        if generator is None:
            generator = self._generators[out.device] = torch.Generator(out.device)
        first = start // BLOCK
        if len(out) <= BLOCK:
            generator.manual_seed(mixed(seed, number, stream, first) & 0xFFFFFFFF)
            return out.normal_(generator=generator)
        for block, part in enumerate(out.split(BLOCK), first):
            generator.manual_seed(mixed(seed, number, stream, block) & 0xFFFFFFFF)  # torch's CPU generator takes 32 bits
            part.normal_(generator=generator)
        return out

    def __deepcopy__(self, memo: object) -> "BlockNoise":
        return BlockNoise()  # generators hold no state that matters: each is seeded before it is used

    def __getstate__(self) -> dict[str, object]:
        return {"_generators": {}}


def fill_part(source: Noise, out: Tensor, place: tuple[int, int, int], start: int, whole: int) -> Tensor:
    """Fill a tensor with a part of a stream, the same numbers as if the whole stream had been made at once.

    Args:
        source: generator.
        out: tensor (n,), filled in place.
        place: seed, number of the draw and number of the stream.
        start: index of the part's first number, any.
        whole: length of the stream, at least ``start + n``: the generator may make a last, incomplete block differently.

    Returns:
        ``out``.

    >>> noise = BlockNoise()
    >>> every, part = torch.empty(40000), torch.empty(20000)
    >>> bool((noise.fill(every, 0, 1, 2)[7:20007] == fill_part(noise, part, (0, 1, 2), 7, 40000)).all())
    True
    """
    seed, number, stream = place
    at = start
    while at < start + len(out):
        begin = at - at % BLOCK
        end = min(begin + BLOCK, whole)
        wanted = out[at - start : min(end, start + len(out)) - start]
        if len(wanted) == end - begin:
            source.fill(wanted, seed, number, stream, begin)
        else:
            block = source.fill(torch.empty(end - begin, dtype=out.dtype, device=out.device), seed, number, stream, begin)
            wanted.copy_(block[at - begin : at - begin + len(wanted)])
        at = end
    return out


class CounterNoise(Noise):
    """Noise from Philox 4x32-10 and Box-Muller (:mod:`bitsback.kernels`), to rounding the same on every device.

    On a GPU the kernels make it where it is needed; elsewhere it is slow.

    >>> out = CounterNoise().fill(torch.empty(1000), 0, 1, 2)
    >>> 0.9 < out.std().item() < 1.1
    True
    """

    def __init__(self) -> None:
        self._clocks: dict[torch.device, Clock] = {}

    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
        """Fill ``out`` with a stream's numbers from an index on.

        Args:
            out: tensor (n,), filled in place.
            seed: seed.
            number: number of the draw, modulo 2^32.
            stream: number of the stream, of whose numbers the lower 30 bits and the purpose count.
            start: index of the first number in the stream.

        Returns:
            ``out``.
        """
        return fill_normals(out, short_stream(stream), start, self.clock(out.device), as_key(seed), number)

    def clock(self, device: torch.device) -> Clock:
        """Return seed and number on a device."""
        clock = self._clocks.get(device)
        if clock is None:
            clock = self._clocks[device] = Clock(device)
        return clock

    def __deepcopy__(self, memo: object) -> "CounterNoise":
        return CounterNoise()

    def __getstate__(self) -> dict[str, object]:
        return {"_clocks": {}}


def as_key(seed: int) -> int:
    """Return a seed as a signed 64-bit integer."""
    return (seed + (1 << 63) & MASK) - (1 << 63)


def short_stream(stream: int) -> int:
    """Return a stream's number in 32 bits: two for its purpose, 30 for the rest.

    >>> short_stream(5), hex(short_stream(OUTPUTS + 5))
    (5, '0xc0000005')
    """
    purpose = next((place for place, first in enumerate((POOL, PLACE, OUTPUTS), 1) if stream & first), 0)
    return purpose << 30 | stream & (1 << 30) - 1


class DeviceNoise(Noise):
    """Noise as each device makes it fastest: :class:`CounterNoise` on CUDA and ROCm, :class:`BlockNoise` elsewhere.

    >>> one, other = torch.empty(5), torch.empty(5)
    >>> bool((DeviceNoise().fill(one, 0, 1, 2) == BlockNoise().fill(other, 0, 1, 2)).all())
    True
    """

    def __init__(self) -> None:
        self._block, self._counter = BlockNoise(), CounterNoise()

    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
        """Fill ``out`` as its device does.

        Args:
            out: tensor (n,), filled in place.
            seed: seed.
            number: number of the draw.
            stream: number of the stream.
            start: index of the first number in the stream.

        Returns:
            ``out``.
        """
        source: Noise = self._counter if out.is_cuda else self._block
        return source.fill(out, seed, number, stream, start)

    def clock(self, device: torch.device) -> Clock | None:
        """Return seed and number on a GPU; None for other devices."""
        return self._counter.clock(device) if device.type == "cuda" else None


class ExactNoise(Noise):
    """Noise in the coder's exact arithmetic, bit-identical on every machine; for trainings that a receiver repeats."""

    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
        """Fill ``out`` with :func:`bitsback.coding.normals.exact_normals`.

        Args:
            out: tensor (n,), filled in place.
            seed: seed.
            number: number of the draw.
            stream: number of the stream.
            start: index of the first number in the stream.

        Returns:
            ``out``.
        """
        from bitsback.coding.normals import exact_normals

        return out.copy_(torch.from_numpy(exact_normals(seed, number, stream, len(out), start)))


class PooledNoise:
    """Pool of standard normal numbers, of which each draw replaces one share and reuses the rest.

    Generating normal numbers takes longer than all other work on a weight. So draw ``number`` regenerates one of
    ``reuse + 1`` shares and reads the pool from a random offset: within a draw the numbers are independent and exactly N(0, 1);
    over time each is used about ``reuse`` times, by different weights (as in the shared noise table of Salimans et al. 2017,
    "Evolution strategies as a scalable alternative to reinforcement learning", section 2.1). The result depends on
    (seed, number) alone: share k holds the numbers of the last draw with number = k modulo (reuse + 1).

    Args:
        size: numbers that a draw needs.
        reuse: number of draws that use each number; at least 2.
        like: tensor that gives device and dtype.
        source: generator of the shares; default: that of the device.
        stream: offset of the pool's stream numbers, different for each pool.

    >>> pool, other = (PooledNoise(100, 4, torch.zeros(1)) for _ in range(2))
    >>> several = [pool.at(0, number).clone() for number in (1, 2, 3)]
    >>> bool((other.at(0, 3) == several[2]).all()), bool((several[1] == several[2]).any())
    (True, False)
    """

    def __init__(self, size: int, reuse: int, like: Tensor, source: Noise | None = None, stream: int = 0) -> None:
        self.size, self.reuse, self.stream = size, reuse, stream
        self._source = source or DeviceNoise()
        self._share = -(-size // reuse)
        self._pool = torch.empty((reuse + 1) * self._share, dtype=like.dtype, device=like.device)
        self._made: list[tuple[int, int] | None] = [None] * (reuse + 1)

    def at(self, seed: int, number: int) -> Tensor:
        """Return the noise of a draw.

        Args:
            seed: seed.
            number: number of the draw.

        Returns:
            View (size,) of the pool, valid until the next call.
        """
        shares = self.reuse + 1
        for k, made in enumerate(self._made):
            wanted = (seed, number - (number - k) % shares)
            if made != wanted:
                part = self._pool[k * self._share : (k + 1) * self._share]
                self._source.fill(part, *wanted, POOL + self.stream)
                self._made[k] = wanted
        start = mixed(seed, number, PLACE + self.stream) % (len(self._pool) - self.size + 1)
        return self._pool[start : start + self.size]


class OutputNoise:
    """Noise for the outputs of layers (local reparameterisation), with one stream for each call of a layer in a step.

    Args:
        reuse: number of draws that use each number, as in :class:`PooledNoise`; 1 means no pool.
        source: generator of the noise.

    Attributes:
        rows: number of this process's first row in the batch that all processes share, and the counts of its own rows and of
            all; only their ratio to the rows of an output counts.
    """

    def __init__(self, reuse: int, source: Noise) -> None:
        self.reuse, self.source = reuse, source
        self.rows = 0, 1, 1
        self._pools: list[PooledNoise | None] = []
        self.begin(0, 0)

    def begin(self, seed: int, number: int) -> None:
        """Begin a step: reset the count of calls.

        Args:
            seed: seed of the training draws.
            number: number of the draw.
        """
        self._seed, self._number, self._used = seed, number, 0

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return noise for the next call of a layer, in the shape, dtype and memory order of its outputs."""
        count, use = outputs.numel(), self._used
        self._used += 1
        before, own, every = self.rows
        start, whole = count * before // own, count * every // own
        if self.reuse == 1 or self.source.clock(outputs.device) is not None:
            numbers = outputs.new_empty(count)
            fill_part(self.source, numbers, (self._seed, self._number, OUTPUTS + use), start, whole)
            return numbers.as_strided(outputs.shape, outputs.stride())
        if use == len(self._pools):
            self._pools.append(None)
        pool = self._pools[use]
        if pool is None or pool.size < whole:
            pool = self._pools[use] = PooledNoise(whole, self.reuse, outputs, self.source, OUTPUTS + use)
        numbers = pool.at(self._seed, self._number)[start : start + count]
        return numbers.as_strided(outputs.shape, outputs.stride(), numbers.storage_offset())
