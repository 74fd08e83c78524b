"""Deterministic quadrature of one-dimensional integrals under a Gaussian, accurate at kinks and poles of the prior too.

The integral E_q[f] is cut into panels at fixed distances from q's mean (in units of its std) and at the prior's breakpoints,
and each panel is integrated by Gauss-Legendre. Kinks and poles then lie on panel edges, where the rule has no nodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["MAX_NODES_AT_ONCE", "Panels", "gaussian_expectation", "mass", "nodes_between"]

MAX_NODES_AT_ONCE = 4_000_000
"""Quadrature nodes evaluated at once; bounds the memory."""


@dataclass(frozen=True)
class Panels:
    """Panels of the quadrature under a Gaussian q.

    Attributes:
        edges: panel edges relative to q's mean, in units of q's std, ascending.
        order: Gauss-Legendre nodes per panel.
        fine: whether to use all of the prior's breakpoints, or only its coarse ones.
    """

    edges: tuple[float, ...]
    order: int
    fine: bool = True

    @classmethod
    def exact(cls) -> "Panels":
        """Return the panels of the ledger, with a relative error below 1e-6 (tests require 1e-7 on every prior)."""
        return cls((-9.5, -7.0, -5.0, -3.5, -2.0, -1.0, 0.0, 1.0, 2.0, 3.5, 5.0, 7.0, 9.5), 16)

    @classmethod
    def fast(cls) -> "Panels":
        """Return the panels of training, with a relative error of about 1e-3."""
        return cls((-5.0, -1.5, 1.5, 5.0), 6, fine=False)


@lru_cache
def _legendre(order: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(order)


def nodes_between(edges: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights of every panel between neighbouring edges.

    Args:
        edges: panel edges, ascending along the last axis, (..., e).
        order: nodes per panel.

    Returns:
        Nodes and weights, both (..., (e - 1) * order).
    """
    point, weight = (torch.as_tensor(x).to(edges) for x in _legendre(order))
    low, half = edges[..., :-1, None], (edges[..., 1:] - edges[..., :-1])[..., None] / 2
    return (low + half * (1 + point)).flatten(-2), (half * weight).flatten(-2)


def gaussian_expectation(
    function: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor, breakpoints: Tensor, panels: Panels
) -> Tensor:
    """Return E[function(w)] for w ~ N(mean, std^2), elementwise.

    Args:
        function: maps nodes of shape (n, k) to values of that shape; column-wise constants must broadcast as (n, 1).
        mean: means, (n,).
        std: standard deviations, (n,).
        breakpoints: points where ``function`` has a kink or a pole, (b,) or (n, b).
        panels: edges and order of the quadrature.

    Returns:
        Expectations, (n,); differentiable in mean and std.
    """
    # the nodes carry no gradient: for fixed nodes the derivative of the density gives the derivative of the integral
    with torch.no_grad():
        z = torch.tensor(panels.edges).to(mean)
        edges = mean[:, None] + std[:, None] * z  # (n, e)
        bends = breakpoints.to(mean).expand(len(mean), -1).clamp(edges[:, :1], edges[:, -1:])
        nodes, weights = nodes_between(torch.cat([edges, bends], dim=1).sort(dim=1).values, panels.order)
    standard = (nodes - mean[:, None]) / std[:, None]
    density = torch.exp(-0.5 * standard.square()) / (std[:, None] * math.sqrt(2 * math.pi))
    return (weights * density * function(nodes)).sum(dim=1)


def mass(distribution: Distribution, breakpoints: Tensor) -> Tensor:
    """Return the integral of a one-dimensional density over the reals; it is 1 for a proper prior.

    The range extends to 1e10 times the span of the breakpoints on either side, so that even a Cauchy's mass is complete within
    1e-9.

    Args:
        distribution: the density, with any batch shape.
        breakpoints: points where the density has a kink or a pole, or that mark its width, (..., b).

    Returns:
        Integrals, float64, one for each batch element.

    >>> from torch.distributions import Normal
    >>> round(mass(Normal(torch.zeros(()), torch.ones(())), torch.tensor([-1.0, 0.0, 1.0])).item(), 9)
    1.0
    """
    points = breakpoints.detach().double().sort(dim=-1).values
    reach = (points[..., -1:] - points[..., :1]).clamp_min(1e-30)
    decades = 10.0 ** torch.arange(-1, 10.5, 0.25, dtype=torch.float64)
    edges = torch.cat([points[..., :1] - reach * decades.flip(0), points, points[..., -1:] + reach * decades], dim=-1)
    nodes, weights = nodes_between(edges, 16)
    moved = nodes.movedim(-1, 0)  # nodes first, so that the distribution's batch shape broadcasts
    return (weights.movedim(-1, 0) * distribution.log_prob(moved).exp()).sum(0)
