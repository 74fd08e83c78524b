"""Functions that draw figures: each takes its data and optional Axes, and returns the Axes.

>>> from bitsback.report import plots
>>> plots.codes({"uniform": 4773.6, "variational": 250.9}).get_xlabel()
'bits'
"""

from bitsback.report.plots._bits import codes, grid, ledger, priors, runs, training, width
from bitsback.report.plots._export import check_suffix, save, svg
from bitsback.report.plots._pictures import calibration, examples, filters
from bitsback.report.plots._weights import bells, bits_and_prior, bits_per_weight, means, prior_density, signal_to_noise
from bitsback.report.plots.style import COLOURS, off_screen, styled

__all__ = [
    "COLOURS",
    "bells",
    "bits_and_prior",
    "bits_per_weight",
    "calibration",
    "check_suffix",
    "codes",
    "examples",
    "filters",
    "grid",
    "ledger",
    "means",
    "off_screen",
    "prior_density",
    "priors",
    "runs",
    "save",
    "signal_to_noise",
    "styled",
    "svg",
    "training",
    "width",
]
