"""The page's files as they are: what is not ours, colours, and no address of another origin."""

import hashlib
import json
import re

import numpy as np
import pytest

from lightning_linf.panels.files import STATIC


def test_vendored_files_are_those_of_the_manifest():
    folder = STATIC / "vendor"
    manifest = json.loads((folder / "manifest.json").read_text())
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "manifest.json"
    }
    assert hashes == manifest["sha256"]
    assert f"v{manifest['version']}" in (folder / "uPlot.esm.js").read_text()
    assert "MIT License" in (folder / "LICENSE.txt").read_text()


def luminance(color):
    """Of a colour #rrggbb, as WCAG 2 defines it."""
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        *((ink, paper) for ink in ("text", "muted") for paper in ("page", "card", "soft")),
        ("accent", "accent-soft"),
        ("warn", "warn-soft"),
    ],
)
def test_text_can_be_told_from_its_background(theme, ink, paper):
    rule = re.findall(r":root[^{]*\{([^}]*)\}", (STATIC / "style.css").read_text())[theme]
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", rule))
    dark, bright = sorted((luminance(colors[ink]), luminance(colors[paper])))
    assert (bright + 0.05) / (dark + 0.05) >= 4.5  # level AA


def test_page_refers_to_no_other_origin():
    for file in (*STATIC.glob("panels/*.js"), *STATIC.glob("drawing/*.js"), *STATIC.glob("*.css")):
        assert not re.search(r"(https?:)?//[\w.]+\.\w+", file.read_text()), file.name
