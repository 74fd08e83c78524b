"""Standard normal numbers for many steps, of which each step draws a share afresh."""

import torch
from torch import Tensor


class NoisePool:
    """A vector of independent N(0, 1) numbers for each step.

    Drawing normal numbers takes longer than all else that is done to a weight. So each step draws ``1 / reuse`` of a pool
    afresh and reads the pool from a random place on: within a step the numbers are independent and exactly N(0, 1), and
    over time each is used about ``reuse`` times, by different weights (as in the shared noise table of Salimans et al. 2017,
    "Evolution strategies as a scalable alternative to reinforcement learning", section 2.1).

    Args:
        size: numbers a step needs.
        reuse: how often each number is used; 1 draws all of them in every step.
        like: says the device and the dtype.

    >>> pool = NoisePool(100, reuse=4, like=torch.zeros(1))
    >>> pool.restart()
    >>> first, second = pool.next().clone(), pool.next()
    >>> first.shape, bool((first == second).any())
    (torch.Size([100]), False)
    """

    def __init__(self, size: int, reuse: int, like: Tensor) -> None:
        self.size, self.reuse = size, reuse
        self._share = -(-size // reuse)
        self._pool = torch.empty(size if reuse == 1 else (reuse + 1) * self._share, dtype=like.dtype, device=like.device)
        self.restart()

    def restart(self) -> None:
        """Draw everything afresh: what follows depends on the generator alone."""
        self._pool.normal_()
        self._step = 0

    def next(self) -> Tensor:
        """The numbers of the next step, shape (size,); valid until the one after."""
        if self.reuse == 1:
            return self._pool.normal_()
        start = self._step % (self.reuse + 1) * self._share
        self._pool[start : start + self._share].normal_()
        self._step += 1
        place = int(torch.randint(len(self._pool) - self.size + 1, ()))
        return self._pool[place : place + self.size]


class OutputNoise:
    """Noise for the outputs of layers: a pool for each use of a layer in a step, made when it is first asked for."""

    def __init__(self, reuse: int) -> None:
        self.reuse = reuse
        self._pools: list[NoisePool] = []
        self._used = 0

    def restart(self) -> None:
        """Forget everything that was drawn."""
        self._pools.clear()

    def begin(self) -> None:
        """Begin a step: the uses of layers are counted from the first."""
        self._used = 0

    def __call__(self, outputs: Tensor) -> Tensor:
        """Numbers for the next use, in the shape, dtype and memory order of the outputs."""
        count = outputs.numel()
        if self._used == len(self._pools):
            self._pools.append(NoisePool(count, self.reuse, outputs))
        elif self._pools[self._used].size < count:
            self._pools[self._used] = NoisePool(count, self.reuse, outputs)
        numbers = self._pools[self._used].next()
        self._used += 1
        return numbers.as_strided(outputs.shape, outputs.stride(), numbers.storage_offset())
