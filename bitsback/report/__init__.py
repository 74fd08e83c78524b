"""A run as pictures: figures, and one page that holds them all."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.report.comparison import write_comparison as write_comparison
    from bitsback.report.figures import FIGURES as FIGURES
    from bitsback.report.figures import figure as figure
    from bitsback.report.observation import Observation as Observation
    from bitsback.report.observation import observe as observe
    from bitsback.report.page import write_report as write_report

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "comparison": ["write_comparison"],
        "figures": ["FIGURES", "figure"],
        "observation": ["Observation", "observe"],
        "page": ["write_report"],
    },
    submodules=["plots"],
)
