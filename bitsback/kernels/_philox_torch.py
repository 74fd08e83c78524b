"""Philox 4x32-10 (Salmon et al. 2011) and the Box-Muller transform in torch's integer operations, on any device.

The same function of (seed, number, stream, index) as in the Triton kernels. Slow: for tests, and for GPUs without Triton.
"""

import math

import torch
from torch import Tensor

__all__ = ["counter_normals", "philox"]

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF

AT_ONCE = 1 << 18
"""Numbers made at once, which bounds the memory of the temporaries."""


def philox(counters: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int], key: int) -> list[Tensor]:
    """Encrypt 128-bit counters under a 64-bit key.

    Args:
        counters: four words of 32 bits, as int64 tensors (or integers) of 0 to 2^32 - 1 that broadcast.
        key: 64 bits.

    Returns:
        Four int64 tensors of 0 to 2^32 - 1.

    >>> [f"{int(word):08x}" for word in philox((torch.zeros((), dtype=torch.int64), 0, 0, 0), 0)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = counters
    low, high = key & WORD, key >> 32 & WORD
    for _ in range(ROUNDS):
        # an int64 product wraps around at 2^64, and its upper and lower words are still right
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (second >> 32 & WORD) ^ b ^ low, second & WORD, (first >> 32 & WORD) ^ d ^ high, first & WORD
        low, high = low + WEYL[0] & WORD, high + WEYL[1] & WORD
    return [torch.as_tensor(word) for word in (a, b, c, d)]


def counter_normals(out: Tensor, seed: int, number: int, stream: int, start: int = 0) -> Tensor:
    """Fill a tensor with standard normal numbers of a stream.

    Args:
        out: tensor (n,), filled in place.
        seed: 64 bits, the key.
        number: number of the draw, modulo 2^32.
        stream: 32 bits.
        start: index of the first number.

    Returns:
        ``out``.

    >>> whole, part = torch.empty(10), torch.empty(4)
    >>> bool((counter_normals(whole, 1, 2, 3)[6:] == counter_normals(part, 1, 2, 3, start=6)).all())
    True
    """
    for first in range(0, len(out), AT_ONCE):
        part = out[first : first + AT_ONCE]
        index = torch.arange(start + first, start + first + len(part), device=out.device)
        words = philox((index & WORD, index >> 32 & WORD, number & WORD, stream & WORD), seed)
        wide = torch.promote_types(out.dtype, torch.float32)
        radius, angle = ((word.to(wide) + 0.5) * 2.0**-32 for word in words[:2])
        part.copy_(radius.log_().mul_(-2).clamp_min_(0).sqrt_() * angle.mul_(2 * math.pi).cos_())
    return out
