"""A real browser for tests: headless Chromium, cut off from any network."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def opened(path, *, width=1200, dark=False):
    """A page opened from a file; afterwards nothing may have been said on its console, and nothing fetched.

    Skips the test, with the reason, where no browser is installed.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'bitsback[browser]'")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    said, fetched = [], []
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True
        )
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.resolve().as_uri())
        try:
            yield page
            assert said == []
            assert [url for url in fetched if not url.startswith("data:")] == [path.resolve().as_uri()]
        finally:
            browser.close()
