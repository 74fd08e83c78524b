"""A run as pictures: figures, and one page that holds them all."""

from bitsback.report.comparison import write_comparison
from bitsback.report.figures import FIGURES, figure
from bitsback.report.observe import Observation, observe
from bitsback.report.page import write_report

__all__ = ["FIGURES", "Observation", "figure", "observe", "write_comparison", "write_report"]
