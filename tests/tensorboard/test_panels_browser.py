"""The tab "Geometry" in a real browser, served by a real TensorBoard from a real training."""

import csv
import json
import struct
import time

import numpy as np
import pytest
from support.chromium import READY, TIMEOUT_SECONDS, chromium, needs_chromium
from support.short_run import IGNORED_WARNINGS, train_into
from support.tensorboard_process import tensorboard

pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
from support.geometry_tab import TAG, entry, other_parameters, write_event
from torch.utils.tensorboard import SummaryWriter

from lightning_linf.panels.table import lay_out
from lightning_linf.report.text import describe
from lightning_linf.tensorboard.writer import write_record

pytestmark = [
    pytest.mark.slow,
    needs_chromium,
    *(pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS),
]
PANELS = ["verdict", "loss", "noise", "smoothness", "heatmap", "bars", "layer", "fan"]
RUNS = ["shared/first", "shared/second"]  # shown without the folder


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """A folder of event files, by run the histories of its monitors, and the last report."""
    folder = tmp_path_factory.mktemp("runs")
    result, reports = {}, {}
    for seed, name in enumerate(RUNS):
        _, monitors = train_into(folder, name, seed=seed, max_steps=12)
        result[name] = [monitor.history for monitor in monitors]
        reports[name] = describe(monitors[2].last_report)
    return folder, result, reports


@pytest.fixture(scope="module", params=["true", "false"])
def board(request, histories, tmp_path_factory):
    """TensorBoard with its fast reader, and with the other."""
    log = tmp_path_factory.mktemp("log") / "tensorboard.txt"
    with tensorboard(histories[0], log, load_fast=request.param) as process:
        process.wait_until_read(histories[0])
        yield process


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("downloads")) as page:
        yield page


@pytest.fixture
def page(board, browser):
    """The plugin's page with all panels drawn, 1280 pixels wide, in light colours."""
    browser.leave()
    browser.size(1280)
    browser.prefer("light")
    browser.open(board.entry)
    browser.wait(READY)
    yield browser
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith((board.address, "blob:"))] == []


def coverage(page, panel):
    """Give the share of a panel's canvas in strong colours: text, grid and background are grey."""
    return page.run(f"""(() => {{
        const canvas = document.querySelector("#{panel} canvas");
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let at = 0; at < pixels.length; at += 4) {{
            const [red, green, blue, alpha] = pixels.subarray(at, at + 4);
            const spread = Math.max(red, green, blue) - Math.min(red, green, blue);
            if (alpha > 200 && spread > 100) count++;
        }}
        return count / (pixels.length / 4);
    }})()""")


def click(page, panel, text):
    page.run(f"""[...document.querySelectorAll("#{panel} button")]
        .find((button) => button.textContent === "{text}").click()""")


def table(page, panel):
    """Show a panel's table and give its cells."""
    click(page, panel, "Table")
    return page.wait(f"""[...document.querySelectorAll("#{panel} > .table tr")]
        .map((row) => [...row.children].map((cell) => cell.textContent))""")


def download(page, panel, text):
    """Press a button that saves a file, and give the file."""
    file = page.downloads / f"{panel}.{text.lower()}"
    file.unlink(missing_ok=True)
    click(page, panel, text)
    end = time.monotonic() + TIMEOUT_SECONDS
    while not file.is_file() or file.stat().st_size == 0:
        assert time.monotonic() < end, f"{file.name} did not come"
        time.sleep(0.05)
    return file


def numbers(page, panel):
    """Give a panel's CSV: heading and rows, numbers as numbers."""
    with open(download(page, panel, "CSV"), encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    return heading, [[cell if cell in RUNS else float(cell) for cell in row] for row in rows]


def test_each_panel_draws(page):
    for panel in PANELS:
        # Curves are two pixels wide; the key of the map is 2 % of its canvas.
        least = {"heatmap": 0.1, "bars": 0.05}.get(panel, 0.001)
        assert coverage(page, panel) > least, panel
    assert page.run("document.querySelectorAll('.panel:not([hidden]) .nothing').length") == 0
    assert page.run("document.querySelector('.notes').hidden")


def test_verdict_is_that_of_the_events(page, histories):
    heading, rows = numbers(page, "verdict")
    assert heading == [
        "run",
        "step",
        *(f"coordinate {end}" for end in ("along g", "relative error", "lower", "upper")),
    ]
    expected = [
        [
            run,
            one["step"] + 1,
            *(
                one[f"{name}/coordinate"]
                for name in (
                    "step_advantage",
                    "step_advantage_relative_error",
                    "advantage_lower",
                    "advantage_upper",
                )
            ),
        ]
        for run in RUNS
        for one in histories[1][run][2]
    ]
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    np.testing.assert_allclose(
        [row[2:] for row in rows], [row[2:] for row in expected], rtol=1e-5, equal_nan=True
    )
    cards = page.run("[...document.querySelectorAll('article.verdict')].map((c) => c.innerText)")
    for run, card in zip(RUNS, cards, strict=True):
        last = histories[1][run][2][-1]
        assert card.startswith(run.removeprefix("shared/"))
        assert f"at step {last['step'] + 1}" in card
        assert f"{last['advantage_lower/coordinate']:.3g}".rstrip("0").rstrip(".") in card
        assert f"\n{histories[2][run].verdict_status.upper()}\n" in card  # as a badge
        assert histories[2][run].verdict in card
        is_open = {name: last[f"converged/{name}"] == 0 for name in ("coordinate", "row", "global")}
        for label, name in (("Adam", "coordinate"), ("row", "row")):
            mark = " *" if is_open[name] or is_open["global"] else ""
            assert f"\n{label}{mark}\n" in card
        assert histories[2][run].shares in card


def test_each_card_unfolds_to_the_report_of_the_last_measurement(page, histories):
    page.run("document.querySelectorAll('article.verdict details').forEach((d) => (d.open = true))")
    cards = page.run("""[...document.querySelectorAll("article.verdict details")].map((details) =>
        [...details.querySelectorAll("summary, p, th, td")].map((node) => node.textContent))""")
    for run, shown in zip(RUNS, cards, strict=True):
        text = histories[2][run]
        cells = (cell for row in text.rows for cell in row)
        step = histories[1][run][2][-1]["step"] + 1
        header = [line for line in text.header if line != text.settings]  # above, on the card
        expected = [*header, *text.headings, *cells, *text.legend]
        assert shown == [f"Report at step {step}", *expected]


def test_smoothness_is_that_of_the_events(page, histories):
    heading, rows = numbers(page, "smoothness")
    assert heading == ["run", "step", "one_one_norm_per_param", "lambda_max"]
    expected = [
        [one["one_one_norm_per_param"], one["lambda_max"]]
        for run in RUNS
        for one in histories[1][run][2]
    ]
    np.testing.assert_allclose([row[2:] for row in rows], expected, rtol=1e-5)
    page.run("document.querySelector('[name=smoothness-kind][value=N]').click()")
    page.wait("document.querySelector('#smoothness .about').textContent.includes('N(Φ)')")
    page.wait(READY)
    heading, rows = numbers(page, "smoothness")
    assert heading[2:] == [
        "operator_norm_lower/coordinate",
        "operator_norm_upper/coordinate",
        "lambda_max",
    ]
    assert all(row[2] <= row[3] for row in rows)


def test_layers_are_those_of_the_events(page, histories):
    heterogeneity = histories[1][RUNS[0]][0]
    heading, rows = numbers(page, "heatmap")
    assert heading == ["step", *heterogeneity[0]["tensor_names"]]
    expected = [[one["step"] + 1, *one["per_tensor"]["density"].tolist()] for one in heterogeneity]
    np.testing.assert_allclose(rows, expected, rtol=1e-5)
    cells = table(page, "bars")
    assert cells[0] == ["layer", f"step {heterogeneity[-1]['step'] + 1}"]
    shown = [float(value) for _, value in cells[1:]]
    np.testing.assert_allclose(shown, heterogeneity[-1]["per_tensor"]["density"], rtol=6e-3)


def test_fan_is_that_of_the_events(page, histories):
    heading, rows = numbers(page, "fan")
    assert heading == ["step", "1 %", "5 %", "25 %", "50 %", "75 %", "95 %", "99 %"]
    medians = [[one["step"] + 1, one["median_log10_grad"]] for one in histories[1][RUNS[0]][0]]
    np.testing.assert_allclose([[row[0], row[4]] for row in rows], medians, rtol=1e-5)


def test_runs_can_be_searched_and_hidden(page):
    assert page.run("document.querySelectorAll('article.verdict').length") == 2
    page.run("document.querySelector('.runs input').click()")
    page.wait("document.querySelectorAll('article.verdict').length === 1")
    assert page.run("document.querySelector('.count').textContent") == "1 of 2 shown"
    # One run alone shows all partitions, each in its colour.
    page.wait("document.querySelectorAll('#verdict .legend li').length === 3")
    page.run("""(() => {
        const search = document.querySelector(".picker input[type=search]");
        search.value = "SEC";
        search.dispatchEvent(new Event("input"));
    })()""")
    assert page.run("[...document.querySelectorAll('.runs .cut')].map((s) => s.textContent)") == [
        "second"
    ]
    page.run("document.querySelectorAll('.picker button')[1].click()")  # None
    page.wait("document.querySelectorAll('.panel:not([hidden]) .nothing').length === 6")


def test_slider_and_map_choose_the_step_of_the_bars(page, histories):
    history = histories[1][RUNS[0]][0]
    page.run("""(() => {
        const slider = document.querySelector("#bars input[type=range]");
        slider.value = "1";
        slider.dispatchEvent(new Event("input"));
    })()""")
    assert page.run("document.querySelector('#bars output').textContent") == str(
        history[1]["step"] + 1
    )
    cells = table(page, "bars")
    shown = [float(value) for _, value in cells[1:]]
    np.testing.assert_allclose(shown, history[1]["per_tensor"]["density"], rtol=6e-3)
    page.run("document.querySelector('#heatmap').scrollIntoView()")
    box = page.run("document.querySelector('#heatmap canvas').getBoundingClientRect().toJSON()")
    page.move(box["x"] + box["width"] - 5, box["y"] + 50, click=True)
    assert page.run("document.querySelector('#bars output').textContent") == str(
        history[-1]["step"] + 1
    )
    tip = page.run("document.querySelector('#heatmap .tip').textContent")
    name = history[0]["tensor_names"][1]  # the second row: 30 pixels of key, rows of 14
    assert tip.startswith(f"{name}, step {history[-1]['step'] + 1}")
    value = history[-1]["per_tensor"]["density"][1].item()
    assert float(tip.split()[-1]) == pytest.approx(value, rel=6e-3)


def test_filter_keeps_the_layers_it_names(page):
    def search(text):
        page.run(f"""(() => {{
            const field = document.querySelector(".shared input[type=search]");
            field.value = "{text}";
            field.dispatchEvent(new Event("input"));
        }})()""")

    search("BODY weight")
    label = "document.querySelector('#heatmap canvas').getAttribute('aria-label')"
    page.wait(f"{label}.includes(': 2 layers')")
    page.wait(READY)
    assert numbers(page, "heatmap")[0] == ["step", "body.0.weight", "body.1.weight"]
    search("nothing like it")
    page.wait("document.querySelectorAll('.layers .nothing').length === 2")
    search("")
    page.wait(READY)


def test_scales_and_smoothing_change_the_picture(page):
    picture = "document.querySelector('#smoothness canvas').toDataURL()"
    log = page.run(picture)
    click(page, "smoothness", "log axis")
    page.wait(f"{picture} !== {json.dumps(log)}")
    # Bounds and estimates are not smoothed, a training's own loss is.
    assert page.run("document.querySelectorAll('input[type=range]').length") == 2
    picture = "document.querySelector('#loss canvas').toDataURL()"
    raw = page.run(picture)
    assert page.run("document.querySelector('#loss output').textContent") == "off"
    page.run("""(() => {
        const slider = document.querySelector("#loss input[type=range]");
        slider.value = "0.9";
        slider.dispatchEvent(new Event("input"));
    })()""")
    page.wait(f"{picture} !== {json.dumps(raw)}")


def test_table_stands_in_for_the_chart_which_keeps_its_width(page):
    width = "document.querySelector('#verdict canvas').clientWidth"
    visible = (
        "document.querySelector('#verdict canvas').checkVisibility({visibilityProperty: true})"
    )
    before = page.run(width)
    cells = table(page, "verdict")
    assert len(cells) == 1 + 2 * 3
    assert not page.run(visible)
    click(page, "verdict", "log axis")  # drawn anew behind the table
    page.wait(READY)
    content = download(page, "verdict", "PNG").read_bytes()
    assert struct.unpack(">I", content[16:20])[0] > before
    click(page, "verdict", "Table")
    assert page.run(visible)
    assert page.run(width) == before > 500


def test_keyboard_reads_values_aloud(page, histories):
    history = histories[1][RUNS[0]][2]
    page.run("document.querySelector('#verdict .chart').focus()")
    page.press("ArrowRight")
    said = page.wait("document.querySelector('#verdict [aria-live]').textContent")
    assert said.startswith(f"step {history[0]['step'] + 1}")
    assert "first" in said
    page.run("document.querySelector('#heatmap canvas').focus()")
    page.press("ArrowUp")
    said = page.wait("document.querySelector('#heatmap [aria-live]').textContent")
    assert histories[1][RUNS[0]][0][0]["tensor_names"][-2] in said


def test_everything_has_a_name_for_screen_readers(page):
    kinds = "button, select, input, canvas, [tabindex]"
    nameless = page.run(f"""[...document.querySelectorAll("{kinds}")]
        .filter((node) => !node.closest(".u-wrap"))
        .filter((node) => !(node.getAttribute("aria-label") || node.getAttribute("aria-labelledby")
            || node.closest("label") || node.textContent.trim()))
        .map((node) => node.outerHTML)""")
    assert nameless == []


@pytest.mark.parametrize("panel", PANELS)
def test_pictures_are_saved(page, panel):
    content = download(page, panel, "PNG").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 300
    assert height > 150


@pytest.mark.parametrize("width", [1280, 600])
def test_page_is_as_wide_as_its_window(page, width):
    page.size(width)
    page.wait(f"document.documentElement.clientWidth === {width}")
    time.sleep(0.3)  # charts follow the width
    page.wait(f"document.documentElement.scrollWidth === {width}")
    for panel in PANELS:
        assert page.run(f"document.querySelector('#{panel} canvas').clientWidth") <= width


def test_theme_follows_the_system_where_no_host_is(page):
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.run(background)
    page.prefer("dark")
    page.wait("document.documentElement.dataset.theme === 'dark'")
    assert page.run(background) != light


def test_tab_follows_tensorboards_theme_and_reload(browser, tmp_path):
    writer = SummaryWriter(str(tmp_path / "runs" / "a"))
    write_record(writer, entry(10, [1.0, 2.0]))
    writer.flush()
    frame = "document.querySelector('iframe').contentDocument"
    step = f"{frame}.querySelector('#bars output').textContent"
    with tensorboard(tmp_path / "runs", tmp_path / "log.txt", load_fast="auto") as board:
        board.wait_until_read(tmp_path / "runs")
        browser.size(1280)
        browser.prefer("light")
        browser.open(f"{board.address}#geometry")
        browser.wait(f"document.querySelector('iframe') && {frame}.querySelector('#bars canvas')")
        assert browser.run(step) == "11"  # counted from 1
        assert browser.run(f"{frame}.documentElement.dataset.theme") == "light"
        browser.run("document.body.classList.add('dark-mode')")
        browser.wait(f"{frame}.documentElement.dataset.theme === 'dark'")
        write_record(writer, entry(2000, [3.0, 4.0]))
        writer.close()
        end = time.monotonic() + TIMEOUT_SECONDS
        while browser.run(step) != "2,001":  # TensorBoard's reader needs a moment, too
            assert time.monotonic() < end
            browser.run("document.querySelector('app-header-reload button').click()")
            time.sleep(0.5)


@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_corrupt_data_are_noted_and_the_rest_is_shown(browser, tmp_path, load_fast):
    runs = tmp_path / "runs"
    writer = SummaryWriter(str(runs / "good"))
    write_record(writer, entry(10, [1.0, 2.0]))
    writer.close()
    metadata = lay_out(entry(0, [1.0, 2.0]))[1]
    good = json.dumps({"schema": 1, **metadata.to_json()})
    write_event(runs / "later", good.replace('"schema": 1', '"schema": 3').encode(), [[1.0]])
    write_event(runs / "torn", b"{", [[1.0]])
    series = metadata.tag_of_series(TAG)
    write_event(runs / "good", good.encode(), np.ones((7, 3)), tag=series, step=11)
    for file in (runs / "later").iterdir():
        file.write_bytes(file.read_bytes() + b"\x00garbage" * 9)
    (runs / "noise").mkdir()
    (runs / "noise" / "events.out.tfevents.1.x.1").write_bytes(b"\xff" * 500)
    with tensorboard(runs, tmp_path / "log.txt", load_fast=load_fast) as board:
        board.wait_until_read(runs)
        browser.leave()
        browser.size(1280)
        browser.open(board.entry)
        browser.wait("document.querySelectorAll('.notes li').length === 2")
        notes = browser.run("document.querySelector('.notes ul').textContent")
        assert "later: geometry/heterogeneity_per_tensor left out: schema 3 is newer" in notes
        assert "torn: geometry/heterogeneity_per_tensor left out: broken metadata" in notes
        assert browser.run(
            "[...document.querySelectorAll('.runs .cut')].map((s) => s.textContent)"
        ) == ["good"]
        browser.wait("document.querySelector('#heatmap canvas')")
        assert "1 broken record left out" in browser.run(
            "document.querySelector('#heatmap > .footnote').textContent"
        )
        assert browser.complaints == []


@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_either_reader_keeps_series_of_other_parameters_apart(tmp_path, load_fast):
    other_parameters(tmp_path / "runs" / "a")
    with tensorboard(tmp_path / "runs", tmp_path / "log.txt", load_fast=load_fast) as board:
        end = time.monotonic() + TIMEOUT_SECONDS
        while len((listed := board.get("runs")[1])["notes"]) < 2:  # it answers while it reads
            assert time.monotonic() < end, listed
            time.sleep(0.1)
        assert listed["layouts"][listed["runs"][0]["tables"][TAG]]["tensors"] == ["c", "d", "e"]
        _, layers = board.get("layers", run="a", tag=TAG, column="density")
        assert (layers["steps"], layers["values"]) == ([4], [[5, 6, 7]])


def test_empty_folder_says_how_to_get_data(browser, tmp_path):
    (tmp_path / "runs").mkdir()
    with tensorboard(tmp_path / "runs", tmp_path / "log.txt", load_fast="false") as board:
        browser.open(board.entry)
        text = browser.wait("document.querySelector('.empty')?.innerText")
        assert "No geometry data yet" in text
        assert "LinfSmoothnessMonitor(every_n_steps=500" in text
        assert browser.run("document.querySelector('.layout').hidden")
