"""KL(q||p) with its standard error: closed form, quadrature, Monte Carlo."""

from bitsback.kl.kl import KL, Method, has_closed_form, kl, kl_each
from bitsback.kl.quadrature import Panels, mass

__all__ = ["KL", "Method", "Panels", "has_closed_form", "kl", "kl_each", "mass"]
