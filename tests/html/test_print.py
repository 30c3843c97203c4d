"""A report on paper: no controls, and no figure that is cut."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from support.chromium import READY, chromium, needs_chromium
from support.short_run import IGNORED_WARNINGS, train_into

from lightning_linf.cli import main

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]
PAPER_WIDTH = 794  # A4 in CSS pixels
CONTROLS = "button, select, input, .picker, .controls"


@pytest.mark.slow
@needs_chromium
def test_print_has_no_controls_and_every_figure_whole_in_both_themes(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    train_into(tmp_path / "runs", "run")
    output = Path(tmp_path, "report.html")
    assert main(["report", str(tmp_path / "runs"), "-o", str(output)]) == 0
    with chromium(tmp_path) as page:
        for theme in ("light", "dark"):
            page.prefer(theme)
            page.size(1280)
            page.open(output.as_uri())
            page.wait(READY)
            shown = (
                f"[...document.querySelectorAll('{CONTROLS}')].filter((n) => n.checkVisibility())"
            )
            assert page.run(f"{shown}.length") > 5
            pdf = base64.b64decode(page.send("Page.printToPDF", printBackground=True)["data"])
            assert pdf.startswith(b"%PDF-")
            theme_of_media = [{"name": "prefers-color-scheme", "value": theme}]
            page.send("Emulation.setEmulatedMedia", media="print", features=theme_of_media)
            page.size(PAPER_WIDTH)
            assert page.run(f"{shown}.length") == 0
            said = page.run("document.body.innerText")
            assert said.count("in the coordinates of") == 1
            assert said.count("d = ") == 1
            widths = page.run(
                "[...document.querySelectorAll('canvas, table')].map("
                "(n) => n.getBoundingClientRect().right)"
            )
            assert len(widths) > 5
            assert max(widths) <= PAPER_WIDTH
            assert page.run("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
            page.send("Emulation.setEmulatedMedia", media="", features=[])
        assert page.complaints == []


@pytest.mark.slow
@needs_chromium
def test_a_dark_page_is_drawn_in_light_colours_and_as_wide_as_paper_while_it_prints(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    train_into(tmp_path / "runs", "run")
    output = Path(tmp_path, "report.html")
    assert main(["report", str(tmp_path / "runs"), "-o", str(output)]) == 0
    with chromium(tmp_path) as page:
        page.prefer("dark")
        page.size(1280)
        page.open(output.as_uri())
        page.wait(READY)
        look = """[
            document.documentElement.dataset.theme,
            document.querySelector('#verdict canvas').clientWidth,
            document.querySelector('#smoothness .body').plot.axes[0].stroke(),
        ]"""
        screen = page.run(look)
        # After the page's own listener, and before anything is printed.
        page.run(f"addEventListener('beforeprint', () => {{ window.printed = {look}; }}); 0")
        page.send("Page.printToPDF", printBackground=True)
        theme, width, ink = page.wait("window.printed")
        assert theme == "light"
        assert 500 < width <= 700 < screen[1]
        assert ink != screen[2]
        page.wait(f"JSON.stringify({look}) === JSON.stringify({json.dumps(screen)})")
        assert page.complaints == []


@pytest.mark.slow
@needs_chromium
def test_paper_holds_small_charts_side_by_side_and_no_words_twice(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    train_into(tmp_path / "runs", "run")
    shutil.copytree(tmp_path / "runs" / "run", tmp_path / "runs" / "other")
    output = Path(tmp_path, "report.html")
    assert main(["report", str(tmp_path / "runs"), "-o", str(output)]) == 0
    with chromium(tmp_path) as page:
        page.open(output.as_uri())
        page.wait(READY)
        landmarks = page.run("[...document.body.children].map((node) => node.localName)")
        assert landmarks == ["header", "section", "div", "noscript", "script", "script"]
        tops = """[...document.querySelectorAll("#loss canvas, #noise canvas")]
            .map((canvas) => Math.round(canvas.getBoundingClientRect().top))"""
        page.run(f"addEventListener('beforeprint', () => {{ window.tops = {tops}; }}); 0")
        page.send("Page.printToPDF")
        loss, noise = page.wait("window.tops")
        assert loss == noise
        text = "document.body.innerText"
        legend, verdict = "the largest curvature that one step can meet.", "This is no forecast"
        screen = page.run(text)
        page.send("Emulation.setEmulatedMedia", media="print")
        paper = page.run(text)
        assert (screen.count(legend), paper.count(legend)) == (2, 1)
        assert (screen.count(verdict), paper.count(verdict)) == (4, 2)
        assert page.complaints == []
