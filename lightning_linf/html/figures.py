"""PNG figures of a report, drawn by a Chromium that the user has."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lightning_linf.report import files
from lightning_linf.runs.load import RunError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET_FLAGS = (  # no window, and nobody is asked for anything
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_FLAGS = (
    *QUIET_FLAGS,
    "--window-size=1280,900",
    "--force-device-scale-factor=2",
    "--virtual-time-budget=20000",
    "--dump-dom",
)
_TIMEOUT_SECONDS = 120


def find_browser() -> str | None:
    """Find a Chromium on the PATH."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def save_figures(page: Path, folder: Path, *, sandbox: bool = True) -> list[Path]:
    """Draw each panel of a report into a PNG file, as the page's own PNG buttons do.

    Args:
        page: The report.
        folder: Where to put them; made if it does not exist.
        sandbox: Of Chromium. It refuses to start with one as root, as in a container.

    Returns:
        The files.

    Raises:
        RunError: If no Chromium is found, or it draws nothing in time.
        ValueError: If one of the files would replace anything but a file.
    """
    browser = find_browser()
    if browser is None:
        raise RunError(
            f"expected one of {', '.join(_BROWSERS)} for --png, got none. Install one, or open "
            "the report and use the PNG button of each panel."
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [*_FLAGS, f"--user-data-dir={profile}", *([] if sandbox else ["--no-sandbox"])]
        try:
            finished = subprocess.run(
                [browser, *flags, f"{page.resolve().as_uri()}#png"],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(
                f"expected {browser} to draw within {_TIMEOUT_SECONDS} seconds, got nothing. Open "
                "the report and use the PNG button of each panel."
            ) from error
    drawn = re.search(r'<script type="application/json" id="png">(.*?)</script>', finished.stdout)
    if drawn is None:
        raise RunError(f"expected {browser} to draw, got: {finished.stderr.strip()[-300:]}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, url in json.loads(drawn[1]).items():
        path = folder / f"{name}.png"
        picture = base64.b64decode(url.partition(",")[2])
        files.write_atomically(path, picture, "report: expected the figure")
        paths.append(path)
    return paths
