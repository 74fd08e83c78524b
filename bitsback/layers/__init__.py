"""Layer utilities: choice of weights that get a posterior, fan-in, local reparameterisation, smooth convolutions."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.layers._fans import fan_in as fan_in
    from bitsback.layers._select import Choice as Choice
    from bitsback.layers._select import ParameterRef as ParameterRef
    from bitsback.layers._select import choose as choose
    from bitsback.layers._select import matches as matches
    from bitsback.layers._smooth import SmoothConv2d as SmoothConv2d
    from bitsback.layers.estimator import Estimator as Estimator
    from bitsback.layers.estimator import Estimators as Estimators

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "estimator": ["Estimator", "Estimators"],
        "_fans": ["fan_in"],
        "_select": ["Choice", "ParameterRef", "choose", "matches"],
        "_smooth": ["SmoothConv2d"],
    },
)
