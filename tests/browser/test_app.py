"""The app: the panel that makes the shipped model speak, as a page without code."""

import shutil

import pytest
from jupyter_page import PANELS, ROOT, Page, Panel, chromium, server

FONTS = "https://cdn.jsdelivr.net/npm/@fortawesome/"  # where Voila's own page looks for icons; it works without


@pytest.fixture
def page(tmp_path):
    shutil.copy(ROOT / "notebooks" / "app.ipynb", tmp_path)
    with chromium() as browser, server(["voila", "app.ipynb", "--no-browser", "--Voila.ip=127.0.0.1"], tmp_path) as address:
        page = Page(browser, address)
        page.tab.route(lambda url: url.startswith(FONTS), lambda route: route.fulfill(status=200, content_type="text/css", body=""))
        yield page
        page.close("app")


def test_the_app_says_what_is_typed(page):
    page.tab.goto(page.address)
    page.tab.locator(f"{PANELS} img").wait_for(timeout=180_000)
    panel = Panel(page)
    assert not page.tab.locator("pre:has-text('import vox')").count()  # no code
    assert panel.root.get_by_role("button", name="Record").is_enabled()
    before = panel.shown()
    assert "four hundred and twelve" in before[1]
    panel.speak("seven")
    after = panel.shown()
    assert after[1].startswith("seven") and all(a != b for a, b in zip(after, before, strict=True))
    assert page.tab.locator("img").locator("visible=true").count() == 1  # the picture for pages without a kernel hides
    assert not page.errors and all(url.startswith(FONTS) for url in page.outside), (page.errors, page.outside)
