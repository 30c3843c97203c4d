"""A browser that runs the page's modules by themselves."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.chromium import chromium

from lightning_linf.panels.files import STATIC


class Quiet(SimpleHTTPRequestHandler):
    """Serve files and say nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A page of the static folder's origin, whose modules it can import."""
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=STATIC)) as server,
        chromium(tmp_path_factory.mktemp("downloads")) as page,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.address = f"http://127.0.0.1:{server.server_port}/"
        yield page
        server.shutdown()


@pytest.fixture
def page(browser):
    browser.leave()
    browser.size(1280)
    browser.open(browser.address + "vendor/manifest.json")
    browser.wait("document.readyState === 'complete' && location.pathname.length > 1")
    styles = [browser.address + name for name in ("vendor/uPlot.min.css", "style.css")]
    browser.run(f"""document.body.replaceChildren();
        document.documentElement.dataset.theme = "light";
        Promise.all({styles}.map((href) => new Promise((onload) => {{
            const link = document.createElement("link");
            document.head.append(Object.assign(link, {{ rel: "stylesheet", href, onload }}));
        }})))""")
    yield browser
    assert browser.complaints == []
