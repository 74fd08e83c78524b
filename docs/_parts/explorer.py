"""The report of a run of the default configuration, trained when the site is built, for the front page: sliders and all."""

import tempfile
from pathlib import Path

from made import Made

import bitsback


def make(made: Made) -> None:
    """Train the digits, in a few seconds, and keep the page of the run beside the site's pages."""
    with tempfile.TemporaryDirectory() as directory:
        trained = bitsback.train("digits", out=Path(directory) / "digits", progress=False)
        if trained.report is None:
            raise RuntimeError("the report of the front page was not written; its error stands above")
        made.write("explorer/digits.html", trained.report.read_bytes())
