"""Facts about layers: which weights get a posterior, what feeds them, and noise on outputs in place of weights."""

from bitsback.layers.fans import fan_in
from bitsback.layers.outputs import Estimator, Estimators
from bitsback.layers.select import Choice, ParameterRef, choose, matches
from bitsback.layers.smooth import SmoothConv2d

__all__ = ["Choice", "Estimator", "Estimators", "ParameterRef", "SmoothConv2d", "choose", "fan_in", "matches"]
