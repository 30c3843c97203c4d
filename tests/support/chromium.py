"""A headless Chromium, driven over its DevTools protocol, for the tests that look at panels."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (  # no window, and nobody is asked for anything
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-sandbox",  # needed as root, which tests in a container are
    "--disable-quic",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
TIMEOUT_SECONDS = 120  # a busy machine takes tens of them to draw a page
# True of the page once all panels are drawn.
READY = (
    "document.querySelector('main:not([aria-busy])')"
    " && document.querySelectorAll('.panel canvas').length >= 6"
)


def find_browser():
    """Find a Chromium on the PATH."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    find_browser() is None, reason="needs Chromium (apt-get install chromium)"
)


class Page:
    """One tab: navigate, run JavaScript in it, and see what it asked for and complained of."""

    def __init__(self, address, downloads):
        websocket = pytest.importorskip("websocket", reason="needs lightning-linf[dev]")
        self._socket = websocket.create_connection(address, timeout=TIMEOUT_SECONDS)
        self._number = 0
        self.requests = []
        self.complaints = []
        self.downloads = downloads
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def send(self, method, **params):
        self._number += 1
        number = self._number
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(
                details.get("exception", details).get("description", str(details))
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            url = params["entry"].get("url", "")
            if not url.endswith("/favicon.ico"):  # which the browser asks for by itself
                self.complaints.append(f"{params['entry']['text']} {url}")

    def size(self, width, height=1000):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, theme):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def open(self, url):
        self.send("Page.navigate", url=url)

    def leave(self):
        """Close the page that is shown, and forget what it asked for and complained of."""
        self.open("about:blank")
        self.run("0")  # after it, nothing more comes of that page
        self.requests.clear()
        self.complaints.clear()

    def run(self, expression):
        """Evaluate JavaScript, a promise to its end, and give the value."""
        result = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression):
        """Give the value once it is true; an element is."""
        code = f"((value) => (value?.nodeType ? true : value))({expression})"
        end = time.monotonic() + TIMEOUT_SECONDS
        while not (value := self.run(code)):
            assert time.monotonic() < end, f"never true: {expression}\n{self.complaints}"
            time.sleep(0.05)
        return value

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def move(self, x, y, click=False):
        point = {"x": x, "y": y}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **point)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.send(
                    "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point
                )

    def screenshot(self, **options):
        return base64.b64decode(
            self.send("Page.captureScreenshot", format="png", **options)["data"]
        )


@contextmanager
def chromium(downloads):
    """Start a browser with an empty profile and give its page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [find_browser(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.DEVNULL,
        )
        try:
            address = _page_address(Path(profile, "DevToolsActivePort"))
            with Page(address, downloads) as page:
                yield page
        finally:
            process.terminate()
            process.wait()


def _page_address(port_file):
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        time.sleep(0.05)
        if port_file.is_file() and (lines := port_file.read_text().splitlines())[1:]:
            with urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
    raise AssertionError("Chromium did not start, or opened no page")
