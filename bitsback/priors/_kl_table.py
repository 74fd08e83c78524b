"""Table of the gradient of KL(Gaussian || symmetric scale family), for densities whose slope has too large a variance at draws.

For p(w) = f(|w - mu| / scale) / scale, write u = (mean - mu) / scale, s = std / scale, and h for the slope of -log f. The
gradient of the KL by mean / scale is E[h(w)] under N(u, s^2), that by the log std is E[h(w) (w - u)] - 1. With
r^2 = u^2 + s^2 the table holds

- A = E[h] r^2 / u and B = E[h (w - u)],

both bounded and even in u, over s / r from 0 to 1 and log r. At s / r = 0 they are the pull u h(u) and 0, so that arbitrarily
small stds are covered; beyond the ends of log r the nearest entry is used. Between entries interpolation is bilinear.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

__all__ = ["CELL", "LOWEST", "expected_pull", "kl_table", "pull_at"]

RATIOS = 200
"""Steps of s / r from 0 to 1."""

CELL = 1 / 20
"""Step of log r."""

LOWEST, HIGHEST = -36.0, 12.0
"""Ends of log r."""

FINEST = 0.06
"""Ratio s / r below which the integrand is narrow and the integration step is smaller."""


def kl_table(pull: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the table of A and B; takes about 0.05 s for the horseshoe.

    Both integrals over log |w| use the trapezoidal rule, whose error falls exponentially with the number of steps for such
    integrands (Trefethen & Weideman 2014, "The exponentially convergent trapezoidal rule").

    Args:
        pull: u h(u) as a function of log u, for u > 0 in float64; bounded.

    Returns:
        Table (2, RATIOS + 1, entries of log r), float64.

    >>> table = kl_table(lambda log_u: 2 - 2 / (1 + (2 * log_u).exp()))  # 2 u^2 / (1 + u^2): Cauchy
    >>> table.shape, round(table[1, -1, -1].item(), 3)
    (torch.Size([2, 201, 961]), 2.0)
    """
    ratios = torch.arange(1, RATIOS + 1, dtype=torch.float64, device="cpu") / RATIOS
    few = int((ratios < FINEST).sum())
    start = pull(torch.linspace(LOWEST, HIGHEST, _entries(), dtype=torch.float64, device="cpu"))
    limit = torch.stack([start, torch.zeros_like(start)]).unsqueeze(1)
    narrow = _integrals(pull, ratios[:few], math.ceil(CELL * RATIOS))
    return torch.cat([limit, narrow, _integrals(pull, ratios[few:], math.ceil(CELL / FINEST))], dim=1)


def _entries() -> int:
    return round((HIGHEST - LOWEST) / CELL) + 1


def _integrals(pull: Callable[[Tensor], Tensor], ratios: Tensor, steps: int) -> Tensor:
    """Return A and B at given s / r, with ``steps`` integration steps in a cell of log r; both signs of w in one sum."""
    step = CELL / steps
    first, last = -round(18 / step), math.ceil(math.log(10.5) / step)  # |w| / r: mass below e^-18 and above 10.5 is negligible
    offsets = step * torch.arange(first, last + 1, dtype=torch.float64, device="cpu")
    count = (_entries() - 1) * steps + len(offsets)
    pulls = pull(LOWEST + step * torch.arange(first, first + count, dtype=torch.float64, device="cpu"))
    ratios = ratios.unsqueeze(1)
    z = (1 - ratios.square()).sqrt().div(ratios).clamp_min(1e-9)  # u / s
    at = offsets.exp() / ratios  # |w| / s
    density = step / math.sqrt(2 * math.pi) * torch.exp(-0.5 * (at - z).square())
    other = torch.expm1(-2 * at * z)  # density at -w divided by that at w, minus 1, without cancellation for small u
    kernels = torch.cat([-density * other / (z * ratios.square()), density * (at - z + (at + z) * (1 + other))])
    return (kernels @ pulls.unfold(0, len(offsets), steps).T).view(2, len(ratios), _entries())


def expected_pull(table: Tensor, u: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    """Look up E[h] and E[h (w - u)] under N(u, s^2).

    Args:
        table: table of :func:`kl_table`, in the dtype of ``u``.
        u: (mean - mu) / scale.
        log_s: log(std / scale), the same shape.

    Returns:
        Two new tensors of that shape.

    >>> table = kl_table(lambda log_u: 2 - 2 / (1 + (2 * log_u).exp()))  # Cauchy: h = 2 u / (1 + u^2)
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> [round(part.item(), 3) for part in expected_pull(table, 3 * one, -9 * one)]  # almost no spread: h(3)
    [0.6, -0.0]
    """
    squared = (2 * log_s).clamp_min_(2.0 * LOWEST).exp_()
    s = squared.sqrt()
    squared.addcmul_(u, u)
    points = torch.stack([squared.log().mul_(0.5).flatten(), s.mul_(squared.rsqrt()).flatten()])
    a, b = _bilinear(table, points)
    return a.view(u.shape).mul_(u).div_(squared), b.view(u.shape)


def pull_at(table: Tensor, distance: Tensor) -> Tensor:
    """Look up the pull u h(u).

    Args:
        table: table of :func:`kl_table`, in the dtype of ``distance``.
        distance: u > 0, in scales.

    Returns:
        Tensor of the shape of ``distance``.

    >>> table = kl_table(lambda log_u: 2 - 2 / (1 + (2 * log_u).exp()))
    >>> round(pull_at(table, torch.tensor([3.0], dtype=torch.float64)).item(), 3)
    1.8
    """
    log = distance.log().flatten()
    return _bilinear(table[:1], torch.stack([log, torch.zeros_like(log)]))[0].view(distance.shape)


def _bilinear(table: Tensor, points: Tensor) -> Tensor:
    """Interpolate a table of k functions at points (log r, s / r), (2, n), which are overwritten; returns (k, n)."""
    points[0].sub_(0.5 * (LOWEST + HIGHEST)).mul_(2 / (HIGHEST - LOWEST))
    points[1].mul_(2).sub_(1)
    return grid_sample(table[None], points.T[None, None], padding_mode="border", align_corners=True)[0, :, 0]
