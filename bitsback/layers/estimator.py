"""What training draws of a layer: its weights, or its outputs."""

from collections.abc import Mapping
from typing import Literal

__all__ = ["ESTIMATORS", "Estimator", "Estimators"]

Estimator = Literal["auto", "weight", "output"]
Estimators = Estimator | Mapping[str, Estimator]
ESTIMATORS = ("auto", "weight", "output")
