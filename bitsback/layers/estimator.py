"""Names of the gradient estimators of a layer: draw its weights, or its outputs (local reparameterisation)."""

from collections.abc import Mapping
from typing import Literal

__all__ = ["ESTIMATORS", "Estimator", "Estimators"]

Estimator = Literal["auto", "weight", "output"]
Estimators = Estimator | Mapping[str, Estimator]
ESTIMATORS = ("auto", "weight", "output")
