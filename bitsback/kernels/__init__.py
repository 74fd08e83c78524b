"""Kernels for GPUs: one pass over all weights of a step, and the noise that it makes, written in Triton.

The optimisers of :mod:`bitsback.optim` choose them by device. On a CPU they run only in Triton's interpreter, in tests.
"""

from bitsback.kernels._batches import ALIGNED, Batch, Clock, Numbers, Row, fill_normals, has_triton, is_capturing, upload
from bitsback.kernels._captures import Captured, Captures, captures_on
from bitsback.kernels._layout import (
    ADAM,
    DRAW,
    DRAWN,
    FILL,
    FILLED,
    IVON,
    LOCATION_EACH,
    LOOK,
    LOOKS,
    REWRITE,
    STEP,
    SUMS,
    WAS_DRAWN,
    Word,
)
from bitsback.kernels._philox_torch import counter_normals

__all__ = [
    "ADAM",
    "ALIGNED",
    "DRAW",
    "DRAWN",
    "FILL",
    "FILLED",
    "IVON",
    "LOCATION_EACH",
    "LOOK",
    "LOOKS",
    "REWRITE",
    "STEP",
    "SUMS",
    "WAS_DRAWN",
    "Batch",
    "Captured",
    "Captures",
    "Clock",
    "Numbers",
    "Row",
    "Word",
    "captures_on",
    "counter_normals",
    "fill_normals",
    "has_triton",
    "is_capturing",
    "upload",
]
