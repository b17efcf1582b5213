"""A JupyterLab of its own on a folder, and a page in a real browser that looks at it: for the tests in browser/."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream"]  # a microphone that beeps
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight exist, too
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # no question about news in the way
}


@contextlib.contextmanager
def chromium():
    """A browser: the machine's own Chromium if there is one, else Playwright's. A skip, which CI makes a failure, if there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -c constraints.txt -e '.[test]'")
    with playwright.sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, CHROMIUMS)), driver.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("no Chromium: install Debian's package chromium, or run `playwright install chromium`")
        browser = driver.chromium.launch(executable_path=path, args=SWITCHES)
        yield browser
        browser.close()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(command, folder, ready="/api"):
    """Run a Jupyter program (words without the port) in `folder` until the block ends; yields its address.

    Nothing of the reader's own settings is used or changed.
    """
    port = free_port()
    home = Path(folder) / ".jupyter"
    for name, value in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "IPYTHONDIR": "ipython"}
    environment = os.environ | {key: str(home / place) for key, place in places.items()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with (home / "log.txt").open("w", encoding="utf-8") as log:
        options = dict(cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        process = subprocess.Popen([sys.executable, "-m", *command, f"--port={port}"], **options)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(address + ready, timeout=10).close()
                break
            except urllib.error.HTTPError:  # an answer, too
                break
            except OSError:
                pass
            assert process.poll() is None and time.monotonic() < end, (home / "log.txt").read_text(encoding="utf-8")[-3000:]
            time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def jupyterlab(folder):
    """`server` for JupyterLab, without a token, on this machine only, with its commands in reach of the page."""
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    return server(["jupyterlab", *options, f"--ServerApp.root_dir={folder}"], folder)


class Page:
    """One tab. It notes errors on the console and requests that leave this machine; `check` wants none of either."""

    def __init__(self, browser, address):
        self.context = browser.new_context(viewport={"width": 1200, "height": 1400})
        self.tab, self.address = self.context.new_page(), address
        self.tab.set_default_timeout(60_000)
        self.errors, self.outside = [], []
        self.tab.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("response", lambda answer: self.errors.append(answer.url) if answer.status >= 400 else None)
        self.tab.on("request", lambda request: self._note(request.url))
        self.tab.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url):
        local = url.startswith((self.address, self.address.replace("http", "ws"), "blob:", "data:"))
        self.outside += [] if local else [url]

    def open(self, name):
        """Open a notebook of the folder and wait for its kernel."""
        self.tab.goto(f"{self.address}/lab/tree/{name}?reset")  # without the tabs of earlier pages
        idle = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        self.tab.wait_for_function(idle, timeout=120_000)

    def run_all(self):
        """Run every cell and wait for the last one. An error of a cell is an error here."""
        self.tab.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        errors = self.tab.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg")
        assert not errors.count(), errors.all_inner_texts()

    def save(self):
        """Save the notebook."""
        self.tab.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def end_kernels(self):
        """Shut every kernel down, so that the next page starts cold."""
        self.tab.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")

    def close(self, name):
        """Take a screenshot under this name and close the tab."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
        self.context.close()

    def check(self):
        """No error on the console, no request to anywhere else."""
        assert not self.errors, self.errors
        assert not self.outside, self.outside


# What a panel shows: a digest of the bytes of its picture, its numbers, and of the bytes of its sound.
SHOWN = """async panel => {
    const digest = async element => {
        if (!element || !element.src) return '';
        const bytes = await (await fetch(element.src)).arrayBuffer();
        return Array.from(new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))).join();
    };
    const image = panel.querySelector('img.widget-image');
    while (!(await image.decode().then(() => true, () => false)));  // fails where the picture changes meanwhile
    return [await digest(image), panel.querySelector('.widget-html-content').innerText, await digest(panel.querySelector('audio'))];
}"""
# Milliseconds from the next key to the picture that it brings, decoded.
WATCH = """panel => {
    const image = panel.querySelector('img.widget-image');
    window.took = new Promise(resolve => {
        let down;
        document.addEventListener('keydown', () => { down = performance.now(); }, {capture: true, once: true});
        const observer = new MutationObserver(async () => {
            observer.disconnect();
            while (!(await image.decode().then(() => true, () => false)));
            resolve(performance.now() - down);
        });
        observer.observe(image, {attributes: true, attributeFilter: ['src']});
        setTimeout(() => resolve(null), 20000);
    });
}"""


PANELS = ".vox-explorer"


class Panel:
    """An Explorer on a page, by its place among them."""

    def __init__(self, page, number=0):
        self.page = page
        self.root = page.tab.locator(PANELS).nth(number)
        self.root.scroll_into_view_if_needed()

    def shown(self) -> tuple[str, str, str]:
        """(digest of the picture, text of the numbers, digest of the sound or "")."""
        return tuple(self.root.evaluate(SHOWN))

    def press(self, key, slider=0) -> float:
        """Press a key on a slider's handle; the milliseconds until the new picture is there. An AssertionError if there is none."""
        handle = self.root.locator(".noUi-handle").nth(slider)
        handle.focus()
        self.root.evaluate(WATCH)
        handle.press(key)
        took = self.page.tab.evaluate("() => window.took")
        assert took is not None, f"{key} brought no new picture"
        return took

    def speak(self, text):
        """Make a `speak_panel` say a text, and wait for the new picture, its numbers and its sound."""
        self.root.locator("textarea").fill(text)
        self.root.locator("textarea").blur()
        self.root.get_by_role("button", name="Speak").click()
        image = self.root.locator("img").element_handle()
        self.page.tab.wait_for_function("([image, text]) => image.title.includes(`text = ${text},`)", arg=[image, text])
        self.root.get_by_role("button", name="Speak").wait_for()  # it says "Computing …" until all that is shown has been sent
