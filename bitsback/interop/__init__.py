"""Other libraries: Pyro programs both ways, and the bits of posteriors that were trained elsewhere."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.interop._guests import from_bayesian_torch as from_bayesian_torch
    from bitsback.interop._guests import from_blitz as from_blitz
    from bitsback.interop._guests import from_ivon as from_ivon
    from bitsback.interop._guests import from_laplace as from_laplace
    from bitsback.interop._guests import from_moments as from_moments
    from bitsback.interop._guests import from_torchbnn as from_torchbnn
    from bitsback.interop._guests import from_tyxe as from_tyxe

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_guests": [
            "from_bayesian_torch", "from_blitz", "from_ivon", "from_laplace", "from_moments", "from_torchbnn", "from_tyxe",
        ],
    },
)  # fmt: skip
