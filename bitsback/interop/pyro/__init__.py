"""Pyro both ways: a model of this package as a Pyro program, and the ledger of any Pyro program and its guide."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.interop.pyro._as_program import Guide as Guide
    from bitsback.interop.pyro._as_program import Program as Program
    from bitsback.interop.pyro._as_program import as_pyro as as_pyro
    from bitsback.interop.pyro._latents import Latent as Latent
    from bitsback.interop.pyro._latents import Unconditional as Unconditional
    from bitsback.interop.pyro._latents import gaussian_latents as gaussian_latents
    from bitsback.interop.pyro._latents import unconditional as unconditional
    from bitsback.interop.pyro._program_ledger import ledger_of as ledger_of
    from bitsback.interop.pyro._program_ledger import width_curve_of as width_curve_of

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_as_program": ["Guide", "Program", "as_pyro"],
        "_latents": ["Latent", "Unconditional", "gaussian_latents", "unconditional"],
        "_program_ledger": ["ledger_of", "width_curve_of"],
    },
)
