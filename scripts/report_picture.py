"""The picture of a report that the README shows: the width explorer, at twice the trained width.

    python scripts/report_picture.py runs/digits -o docs/_static/report.png

Needs Chromium and the extra `browser`.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from bitsback.report.widths import FACTORS


def picture(page_file: Path, out: Path, width: int = 1000) -> None:
    """Photograph the width explorer of a report."""
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(page_file.resolve().as_uri())
        page.locator("#width-slider").fill(str(FACTORS.index(2.0)))
        page.evaluate("document.activeElement.blur()")
        page.locator(".explorer").first.screenshot(path=out)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run with a report.html")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    picture(options.run / "report.html", options.out)
    print(options.out)


if __name__ == "__main__":
    main()
