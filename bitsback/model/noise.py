"""Standard normal noise as a function of (seed, number of the draw, stream, index): the same for whoever asks again.

On a CPU it comes from torch's generator, seeded afresh for every block of 32,768 numbers, so that any stretch of a tensor can
be made alone. Where steps may share numbers, a pool of them is kept, of which each draw makes a share anew
(:class:`PooledNoise`). What a receiver has to repeat takes :class:`ExactNoise`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["BlockNoise", "ExactNoise", "Noise", "OutputNoise", "PooledNoise", "fresh_seed", "mixed"]

BLOCK = 32768
"""Numbers that are drawn after one seeding: a twentieth slower than a single seeding, and any block alone is the same."""

MASK = (1 << 64) - 1
POOL, PLACE, OUTPUTS = 1 << 40, 1 << 41, 1 << 42
"""Streams beyond those of the weight tensors: shares of a pool, where it is read, and the outputs of layers."""


def mixed(*numbers: int) -> int:
    """Return 64 well-mixed bits of several whole numbers (the finaliser of splitmix64, Steele, Lea & Flood 2014).

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
    """Return a seed from torch's generator, so that torch.manual_seed governs the draws too."""
    return mixed(int(torch.randint(1 << 62, ()))) >> 2


class Noise(ABC):
    """Where noise comes from."""

    @abstractmethod
    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
        """Fill ``out`` (n,) with the numbers ``start`` .. ``start + n`` of a stream; ``start`` is a multiple of a block."""


class BlockNoise(Noise):
    """Noise of torch's generators.

    >>> whole, part = torch.empty(2 * BLOCK), torch.empty(BLOCK)
    >>> noise = BlockNoise()
    >>> bool((noise.fill(whole, 0, 1, 2)[BLOCK:] == noise.fill(part, 0, 1, 2, start=BLOCK)).all())
    True
    """

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
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
        return BlockNoise()  # generators are no state: each is seeded before it is used

    def __getstate__(self) -> dict[str, object]:
        return {"_generators": {}}


class ExactNoise(Noise):
    """The coder's own normal numbers, the same last bit on every machine; for trainings that a receiver repeats."""

    def fill(self, out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
        from bitsback.coding.normals import exact_normals

        return out.copy_(torch.from_numpy(exact_normals(seed, number, stream, len(out), start)))


class PooledNoise:
    """A vector of independent N(0, 1) numbers for each draw, of which most have served before.

    Drawing normal numbers takes longer than all else that is done to a weight. So draw ``number`` makes one share of a pool
    afresh and reads the pool from a random place on: within a draw the numbers are independent and exactly N(0, 1), and over
    time each is used about ``reuse`` times, by different weights (as in the shared noise table of Salimans et al. 2017,
    "Evolution strategies as a scalable alternative to reinforcement learning", section 2.1). What is read at ``number`` depends
    on (seed, number) alone: share k holds the numbers of the last draw that was k modulo the number of shares.

    Args:
        size: numbers that a draw needs.
        reuse: how often each number is used; at least 2.
        like: says the device and the dtype.
        stream: tells pools apart.

    >>> pool, other = (PooledNoise(100, 4, torch.zeros(1)) for _ in range(2))
    >>> several = [pool.at(0, number).clone() for number in (1, 2, 3)]
    >>> bool((other.at(0, 3) == several[2]).all()), bool((several[1] == several[2]).any())
    (True, False)
    """

    def __init__(self, size: int, reuse: int, like: Tensor, source: Noise | None = None, stream: int = 0) -> None:
        self.size, self.reuse, self.stream = size, reuse, stream
        self._source = source or BlockNoise()
        self._share = -(-size // reuse)
        self._pool = torch.empty((reuse + 1) * self._share, dtype=like.dtype, device=like.device)
        self._made: list[tuple[int, int] | None] = [None] * (reuse + 1)

    def at(self, seed: int, number: int) -> Tensor:
        """Return the numbers of a draw, (size,); valid until the next call."""
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
    """Noise for the outputs of layers: a stream for each use of a layer in a step."""

    def __init__(self, reuse: int, source: Noise) -> None:
        self.reuse, self.source = reuse, source
        self._pools: list[PooledNoise | None] = []
        self.begin(0, 0)

    def begin(self, seed: int, number: int) -> None:
        """Begin a step: the uses of layers are counted from the first."""
        self._seed, self._number, self._used = seed, number, 0

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return numbers for the next use, in the shape, dtype and memory order of the outputs."""
        count, use = outputs.numel(), self._used
        self._used += 1
        if self.reuse == 1:
            numbers = self.source.fill(outputs.new_empty(count), self._seed, self._number, OUTPUTS + use)
            return numbers.as_strided(outputs.shape, outputs.stride())
        if use == len(self._pools):
            self._pools.append(None)
        pool = self._pools[use]
        if pool is None or pool.size < count:
            pool = self._pools[use] = PooledNoise(count, self.reuse, outputs, self.source, OUTPUTS + use)
        numbers = pool.at(self._seed, self._number)
        return numbers.as_strided(outputs.shape, outputs.stride(), numbers.storage_offset())
