"""The static site in a browser: nothing fails, nothing comes from elsewhere, pictures show and players play."""

import contextlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from jupyter_page import Page, chromium

from vox import book
from vox.files import HOME

# Why a page is not whole: pictures that do not show, players without sound.
LACKS = """async () => {
    const images = [...document.images], players = [...document.querySelectorAll('audio')];
    await Promise.all(images.map(image => image.decode().catch(() => 0)));
    const play = player => player.play().then(() => player.duration > 0 ? '' : 'empty', error => `${error}`);
    const dead = await Promise.all(players.map(play));
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    const blank = images.filter(image => !image.naturalWidth).map(image => image.alt);
    return [...blank, ...dead.filter(Boolean), ...(wide > 0 ? [`${wide} too wide`] : [])];
}"""


@contextlib.contextmanager
def served(folder):
    """The address of a folder."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_every_page_of_the_course_shows_and_plays(tmp_path):
    site = book.Book(HOME, tmp_path)
    site.write()
    with served(tmp_path) as address, chromium() as browser:
        page = Page(browser, address)
        page.tab.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # browsers ask for one
        players = 0
        for name in ["index.html", "notebooks/index.html", *(f"notebooks/{path.stem}.html" for path in site.course)]:
            page.tab.goto(f"{address}/{name}")
            assert page.tab.evaluate(LACKS) == [], name
            players += page.tab.locator("audio").count()
        assert players > 5
        page.tab.goto(address)
        page.tab.get_by_role("link", name="06 locdit").click()
        assert page.tab.locator("math[display=block]").first.bounding_box()["height"] > 20
        page.close("book")
        page.check()
