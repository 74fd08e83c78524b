"""A run as pictures: figures, and one page that holds them all."""

from typing import TYPE_CHECKING

from bitsback.extras import require
from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.report._comparison import write_comparison as write_comparison
    from bitsback.report._figures import FIGURES as FIGURES
    from bitsback.report._figures import figure as figure
    from bitsback.report._observation import Observation as Observation
    from bitsback.report._observation import observe as observe
    from bitsback.report._page import write_report as write_report

require("report", "a page or a figure")

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_comparison": ["write_comparison"],
        "_figures": ["FIGURES", "figure"],
        "_observation": ["Observation", "observe"],
        "_page": ["write_report"],
    },
    submodules=["plots"],
)
