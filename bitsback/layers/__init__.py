"""Facts about layers: which weights get a posterior, what feeds them, and noise on outputs in place of weights."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.layers.estimator import Estimator as Estimator
    from bitsback.layers.estimator import Estimators as Estimators
    from bitsback.layers.fans import fan_in as fan_in
    from bitsback.layers.select import Choice as Choice
    from bitsback.layers.select import ParameterRef as ParameterRef
    from bitsback.layers.select import choose as choose
    from bitsback.layers.select import matches as matches
    from bitsback.layers.smooth import SmoothConv2d as SmoothConv2d

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "estimator": ["Estimator", "Estimators"],
        "fans": ["fan_in"],
        "select": ["Choice", "ParameterRef", "choose", "matches"],
        "smooth": ["SmoothConv2d"],
    },
)
