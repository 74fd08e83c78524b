"""KL(q||p) with its standard error: closed form, quadrature, Monte Carlo."""

from bitsback.kl.kl import KL, Method, kl, kl_each
from bitsback.kl.quadrature import Panels, mass

__all__ = ["KL", "Method", "Panels", "kl", "kl_each", "mass"]
