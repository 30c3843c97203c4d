"""What stands beside the geometry, of real trainings: in TensorBoard and a real browser."""

import csv
import json
import re
import time
from importlib import resources
from urllib.parse import quote

import numpy as np
import pytest
from support.chromium import READY, TIMEOUT_SECONDS, chromium, needs_chromium
from support.short_run import IGNORED_WARNINGS
from support.tensorboard_process import tensorboard
from support.watched_runs import LONG, watch, watch_all

pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
from support.geometry_tab import write_event
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = [
    pytest.mark.slow,
    needs_chromium,
    *(pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),  # of a loss that is not finite
]
PANELS = ["loss", "learning-rate", "edge", "best-step", "gain", "noise"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, watch_all(folder)


@pytest.fixture(scope="module")
def board(trained, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "tensorboard.txt"
    with tensorboard(trained[0], log, load_fast="false") as process:
        process.wait_until_read(trained[0])
        yield process


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("downloads")) as page:
        yield page


@pytest.fixture
def page(browser):
    browser.leave()
    browser.size(1280)
    browser.prefer("light")
    yield browser
    assert browser.complaints == []


def show(page, board, **state):
    """Open the page at an address that says what is chosen."""
    words = "&".join(f"{name.replace('_', '.')}={word}" for name, word in state.items())
    page.open("about:blank")
    page.open(f"{board.entry}#{words}")
    page.wait(READY)


def csv_of(page, panel):
    """Give heading and rows of a panel's CSV file."""
    file = page.downloads / f"{panel}.csv"
    file.unlink(missing_ok=True)
    page.run(f"""[...document.querySelectorAll("#{panel} button")]
        .find((button) => button.textContent === "CSV").click()""")
    end = time.monotonic() + TIMEOUT_SECONDS
    while not file.is_file() or file.stat().st_size == 0:
        assert time.monotonic() < end
        time.sleep(0.05)
    with open(file, encoding="utf-8") as lines:
        heading, *rows = csv.reader(lines)
    return heading, rows


def column(page, panel, name):
    """Give steps and values of one column of a panel's CSV, where there are any."""
    heading, rows = csv_of(page, panel)
    at = heading.index(name)
    return [(int(row[1]), float(row[at])) for row in rows if row[at] != "NaN"]


def test_own_curves_are_those_that_the_training_logged(page, board, trained):
    show(page, board, runs="long")
    read = EventAccumulator(str(trained[0] / "long"))
    read.Reload()
    for panel, tag in (
        ("loss", "train_loss"),
        ("loss", "val_loss"),
        ("learning-rate", "lr-AdamW"),
    ):
        # The learning rate of the first step is logged twice.
        logged = [*{event.step + 1: event.value for event in read.Scalars(tag)}.items()]
        assert len(logged) >= 4
        np.testing.assert_allclose(column(page, panel, tag), logged, rtol=1e-5)


def test_edge_and_best_step_are_those_of_the_monitor_with_a_line_at_one(page, board, trained):
    show(page, board, runs="long")
    history = trained[1]["long"][2].history
    for panel, name, key in (
        ("edge", "edge lower", "edge"),
        ("learning-rate", "largest stable one", "largest_stable_lr"),
        ("best-step", "best multiple", "best_step_multiple"),
        ("gain", "change", "step_gain"),
    ):
        expected = [(one["step"] + 1, one[key]) for one in history]
        np.testing.assert_allclose(column(page, panel, name), expected, rtol=1e-5)
    for panel in ("edge", "best-step"):
        scale = f"document.querySelector('#{panel} .body').plot.scales.y"
        assert page.run(f"{scale}.min <= 1 && {scale}.max >= 1")
    upper = dict(column(page, "edge", "edge upper"))
    for one in history:
        expected = one["edge"] * (1 + one["edge_relative_error"])
        assert upper[one["step"] + 1] == pytest.approx(expected, rel=1e-4)


def test_each_card_says_what_was_measured(page, board, trained):
    show(page, board, runs="long,rotated")
    settings = "[...document.querySelectorAll('.settings')].map((p) => p.textContent)"
    long, rotated = page.run(settings)
    report = trained[1]["long"][1].last_report
    version = report.settings["version"]
    assert long == (
        f"Measured in the coordinates of the parameters: d = {report.num_params}, eval mode, "
        "2 batches a device of 8 samples in all, 4 probes, float32, matrix products highest, "
        f"seed 0, lightning_linf {version}."
    )
    assert rotated.startswith("Measured in the coordinates of the optimizer, Rotation(")
    page.run("document.querySelector('#smoothness .chart').focus()")
    page.press("ArrowRight")
    said = page.wait("document.querySelector('#smoothness [aria-live]').textContent")
    assert "rotated · Adam (coordinate) in the optimizer's coordinates" in said


def test_a_failed_run_says_since_when_and_a_run_that_ended_has_no_value(page, board):
    show(page, board, runs="failed,long,short")
    cards = page.run("[...document.querySelectorAll('article.verdict')].map((c) => c.innerText)")
    assert "NOT FINITE SINCE STEP 10" in cards[0]
    assert "train_loss is not a finite number since step 10" in cards[0]
    assert "This is no forecast" not in cards[0]
    assert "This is no forecast" in cards[1]
    page.run("document.querySelector('#verdict .chart').focus()")
    page.press("End")
    said = page.wait("document.querySelector('#verdict [aria-live]').textContent")
    assert said.startswith("step 16")
    assert "short –" in said


def test_many_runs_are_a_table_and_the_pointer_makes_one_stand_out(page, board):
    show(page, board)
    assert page.run("document.querySelectorAll('article.verdict').length") == 6
    page.run("document.querySelector('.picker button').click()")  # All
    page.wait("document.querySelectorAll('.many tbody tr').length === 9")
    page.wait(READY)
    assert page.run("document.querySelectorAll('article.verdict').length") == 0
    cells = page.run("""[...document.querySelectorAll(".many tbody tr")]
        .map((row) => [...row.children].map((cell) => cell.textContent))""")
    assert cells[0][:2] == ["failed", "not finite since step 10"]
    colors = page.run("""[...document.querySelectorAll(".many tbody i")]
        .map((mark) => mark.style.background)""")
    assert len(set(colors)) == 9
    alphas = "document.querySelector('#loss .body').plot.series.slice(1).map(({ alpha }) => alpha)"
    assert set(page.run(alphas)) == {1}
    box = page.run("document.querySelector('.many tbody tr').getBoundingClientRect().toJSON()")
    page.move(box["x"] + 20, box["y"] + 5)
    page.wait(f"{alphas}.filter((alpha) => alpha < 1).length > 8")
    assert 1 in page.run(alphas)
    page.move(5, 5)
    page.wait(f"{alphas}.every((alpha) => alpha === 1)")


def test_zoom_is_kept_over_every_change_and_has_a_way_back(page, board):
    show(page, board, runs="long")
    ends = """[...document.querySelectorAll(".chart")].filter((chart) => chart.checkVisibility())
        .map((chart) => chart.parentElement.plot.scales.x).map(({ min, max }) => [min, max])"""
    reset = "document.querySelector('.toolbar button')"
    assert page.run(f"{reset}.hidden")
    page.run("document.querySelector('#loss').scrollIntoView()")
    box = page.run("document.querySelector('#loss .u-over').getBoundingClientRect().toJSON()")
    button = {"button": "left", "clickCount": 1, "y": box["y"] + 30}
    page.move(box["x"] + 0.2 * box["width"], box["y"] + 30)
    page.send(
        "Input.dispatchMouseEvent", type="mousePressed", x=box["x"] + 0.2 * box["width"], **button
    )
    for share in (0.4, 0.6):
        page.move(box["x"] + share * box["width"], box["y"] + 30)
    page.send(
        "Input.dispatchMouseEvent", type="mouseReleased", x=box["x"] + 0.6 * box["width"], **button
    )
    page.wait(f"!{reset}.hidden")
    zoomed = page.run(ends)
    assert len(zoomed) >= 8
    assert len(set(map(tuple, zoomed))) == 1
    low, high = zoomed[0]
    assert (low, high) == (4, 10)
    page.run("""[...document.querySelectorAll("#loss button")]
        .find((each) => each.textContent === "log axis").click()""")
    page.run("document.querySelectorAll('.runs input')[2].click()")  # another run is shown
    page.wait(READY)
    assert set(map(tuple, page.run(ends))) == {(low, high)}
    label = "document.querySelector('#heatmap canvas').getAttribute('aria-label')"
    assert "by 4 steps" in page.run(label)  # 4, 6, 8 and 10
    page.run(f"{reset}.click()")
    page.wait(f"{label}.includes('by 8 steps')")
    assert page.run(f"{ends}.every(([, high]) => high === 16)")
    assert page.run(f"{reset}.hidden")


def test_a_link_shows_the_same_view(page, board):
    show(page, board)

    def select(selector, value):
        page.run(f"""(() => {{
            const control = document.querySelector("{selector}");
            control.value = "{value}";
            control.dispatchEvent(new Event("change"));
        }})()""")
        page.wait(READY)

    page.run("document.querySelector('[name=x-axis][value=time]').click()")
    page.run("document.querySelectorAll('.runs input')[0].click()")
    page.run("document.querySelector('[name=smoothness-kind][value=N]').click()")
    page.run("""[...document.querySelectorAll(".shared button")][0].click()""")  # by block
    select("#layer select", "head.weight")
    select("#fan select:nth-of-type(1)", "long")
    select(".shared select", "long")
    look = """JSON.stringify([
        [...document.querySelectorAll("input")].map((box) => box.checked),
        [...document.querySelectorAll("select")].map((each) => each.value),
        [...document.querySelectorAll(".legend")].map((each) => each.textContent),
        document.querySelector(".map canvas").getAttribute("aria-label"),
        document.querySelector("#smoothness canvas").toDataURL(),
    ])"""
    page.wait(READY)
    page.move(5, 5)
    address, before = page.run("location.href"), page.run(look)
    page.open("about:blank")
    page.open(address)
    page.wait(READY)
    assert json.loads(page.run(look)) == json.loads(before)


def test_tensorboards_own_address_keeps_the_view(page, board):
    frame = "document.querySelector('iframe').contentDocument"
    page.open("about:blank")
    page.open(f"{board.address}#geometry&p.geometry.runs=long&p.geometry.x=time")
    page.wait(f"document.querySelector('iframe') && {frame}.querySelector('#fan canvas')")
    assert page.run(f"{frame}.querySelector('.count').textContent") == "1 of 9 shown"
    assert page.run(f"{frame}.querySelector('[value=time]').checked")
    page.run(f"{frame}.querySelector('[name=smoothness-kind][value=N]').click()")
    assert "p.geometry.smoothness.kind=N" in page.wait("location.hash")
    assert page.run("location.hash").startswith("#geometry")


def test_the_axis_of_time_is_that_of_the_events(page, board, trained):
    show(page, board, runs="long", x="time")
    read = EventAccumulator(str(trained[0] / "long"))
    read.Reload()
    events = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    shown = [tag for tag in events if tag.startswith(("geometry/", "train", "val", "lr"))]
    start = min(event.wall_time for tag in shown for event in events[tag])
    expected = [event.wall_time - start for event in events["train_loss"]]
    data = page.run("document.querySelector('#loss .body').plot.data[0]")
    assert set(np.round(expected, 1)) <= set(np.round(data, 1))
    assert page.run("document.querySelector('#fan .body').plot.data[0].length") >= 7
    assert page.run("document.querySelector('#layer .body').plot.data[0].length") >= 7


def test_the_heat_map_and_the_bars_follow_the_axis_of_time(page, board, trained):
    read = EventAccumulator(str(trained[0] / "long"))
    read.Reload()
    begin = min(event.wall_time for tag in read.Tags()["scalars"] for event in read.Scalars(tag))
    times = [event.wall_time - begin for event in read.Scalars("geometry/density")]
    show(page, board, runs="long", x="time")
    label = "document.querySelector('#heatmap canvas').getAttribute('aria-label')"
    assert f"by {len(times)} steps" in page.run(label)
    page.run("document.querySelector('#heatmap canvas').focus()")
    page.press("ArrowLeft")
    said = page.wait("document.querySelector('#heatmap [aria-live]').textContent")
    layer, step, time_of_step = re.match(r"(.+), step (\d+) \(([\d.]+) s\)", said).groups()
    assert (layer, step) == ("head.bias", "14")
    assert float(time_of_step) == pytest.approx(times[-2], rel=0.1, abs=0.11)
    assert re.fullmatch(
        r"16 \([\d.]+ s\)", page.run("document.querySelector('#bars output').value")
    )
    placed = page.run("document.querySelector('#fan .body').plot.data[0]")
    low, high = placed[1] - 0.05, placed[4] + 0.05
    show(page, board, runs="long", x="time", zoom=f"{low:.2f}to{high:.2f}")
    inside = sum(low <= time <= high for time in placed)
    assert f"by {inside} steps" in page.run(label)


def test_a_run_has_its_colour_of_the_tab_scalars_and_no_two_have_the_same(page, board):
    frame = "document.querySelector('iframe').contentDocument"
    page.open("about:blank")
    page.open(f"{board.address}#geometry")
    page.wait(f"document.querySelector('iframe') && {frame}.querySelector('#fan canvas')")
    page.wait(
        "(() => { try { return theirs('long'); } catch { return null; } })()".replace(
            "theirs", "document.createElement('tf-color-scale').runsColorScale"
        )
    )
    page.wait(f"!{frame}.querySelector('main[aria-busy]')")
    runs = page.run(f"""[...{frame}.querySelectorAll(".runs li")].map((item) => {{
        const probe = document.createElement("i");
        const run = item.querySelector("input").value;
        probe.style.color = document.createElement("tf-color-scale").runsColorScale(run);
        return [run, item.querySelector("i").style.background, probe.style.color];
    }})""")
    assert len(runs) == 9
    assert len({ours for _, ours, _ in runs}) == 9
    assert sum(ours == theirs for _, ours, theirs in runs) == 7  # TensorBoard has no more


def test_notes_are_one_line_that_unfolds_and_stay_away_until_there_is_a_new_one(page, tmp_path):
    watch(tmp_path / "runs", "whole", max_steps=4)
    write_event(tmp_path / "runs" / "torn", b"{", np.zeros(2))
    notes = "document.querySelector('.notes')"
    with tensorboard(tmp_path / "runs", tmp_path / "log.txt", load_fast="false") as board:
        board.wait_until_read(tmp_path / "runs")
        page.open("about:blank")
        page.open(board.entry)
        page.wait(f"{notes} && !{notes}.hidden")
        folded = page.run(f"{notes}.clientHeight")
        assert folded < 60
        page.run(f"{notes}.querySelector('summary').click()")
        page.wait(f"{notes}.clientHeight > {folded}")
        assert "torn: geometry/" in page.run(f"{notes}.querySelector('li').textContent")
        page.run(f"{notes}.querySelector('[aria-label=\"Dismiss the notes\"]').click()")
        assert page.run(f"{notes}.hidden")
        asked = "performance.getEntriesByType('resource').filter((r) => r.name.endsWith('/runs'))"
        before = page.run(f"{asked}.length")
        page.wait(f"{asked}.length > {before}")  # it has read its runs anew
        assert page.run(f"{notes}.hidden")
        write_event(tmp_path / "runs" / "other", b"{", np.zeros(2))
        page.wait(f"!{notes}.hidden")
        assert page.run(f"{notes}.querySelector('.first').textContent").startswith("2 notes. ")


def test_layers_are_compared_over_runs_and_steps(page, board, trained):
    show(page, board, runs="long,rotated", layer="head.weight")
    heading, rows = csv_of(page, "layer")
    assert heading == ["run", "step", "density"]
    for run in ("long", "rotated"):
        history = trained[1][run][0].history
        place = history[0]["tensor_names"].index("head.weight")
        expected = [one["per_tensor"]["density"][place].item() for one in history]
        shown = [float(value) for name, _, value in rows if name == run]
        np.testing.assert_allclose(shown, expected, rtol=1e-5)
    long = trained[1]["long"][0].history
    show(page, board, runs="long,rotated", layers_step="8", layers_beside="step%3A4")
    heading, rows = csv_of(page, "bars")
    assert heading == ["layer", "step 8", "step 4"]
    by_step = {one["step"] + 1: one["per_tensor"]["density"].tolist() for one in long}
    both = np.array([[float(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_allclose(both.T, [by_step[8], by_step[4]], rtol=1e-5)
    show(page, board, runs="long,rotated", layers_step="8", layers_beside="run%3Arotated")
    heading, rows = csv_of(page, "bars")
    assert heading == ["layer", "step 8", "rotated, step 8"]
    other = next(one for one in trained[1]["rotated"][0].history if one["step"] == 7)
    np.testing.assert_allclose(
        [float(row[2]) for row in rows], other["per_tensor"]["density"], rtol=1e-5
    )


def test_each_quantity_has_the_sentence_of_the_registry(page, board):
    from lightning_linf import quantities

    show(page, board, runs="long")
    page.run("document.querySelectorAll('.help').forEach((help) => { help.open = true; })")
    terms = ".panel:not([hidden]) .help dt"
    said = page.run(f"""Object.fromEntries([...document.querySelectorAll("{terms}")]
        .map((term) => [term.firstChild.textContent, term.nextSibling.textContent]))""")
    meanings = {quantity.name: quantity.meaning for quantity in quantities.ALL}
    assert {"edge", "step_advantage", "density", "noise_scale", "lambda_max"} <= set(said)
    assert said == {name: meanings[name] for name in said}


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_long_names_never_push_the_page_sideways(page, board, width):
    page.size(width)
    names = (quote(quote(f"{LONG}{i}", safe="")) for i in range(3))
    show(page, board, runs=",".join(names))
    assert page.run("document.querySelectorAll('article.verdict').length") == 3
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    time.sleep(0.3)
    page.wait(f"document.documentElement.scrollWidth === {width}")
    # The end, which tells runs apart, is in sight.
    box = "document.querySelector('article.verdict .cut :nth-child(2)').getBoundingClientRect()"
    assert page.run(f"{box}.width > 40 && {box}.right <= {width}")
    page.run("document.querySelector('.picker button').click()")
    page.wait("document.querySelector('.many')")
    assert page.run("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 400)])
def test_axe_finds_nothing(page, board, theme, width):
    pytest.importorskip("axe_core_python", reason="needs lightning-linf[dev]")
    script = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.size(width)
    page.prefer(theme)
    show(page, board, runs="failed,long,rotated")
    page.run(script + "; 0")
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = page.run("""axe.run().then(({ violations }) => violations.map(
        ({ id, nodes }) => [id, ...nodes.slice(0, 3).map(({ html }) => html)]))""")
    assert found == []
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = false; })")
    page.run("document.querySelector('.picker button').click()")
    page.wait("document.querySelector('.many')")
    page.wait(READY)
    page.run("""[...document.querySelectorAll("button")]
        .filter((button) => button.textContent === "Table").forEach((button) => button.click())""")
    assert page.run("axe.run().then(({ violations }) => violations.map(({ id }) => id))") == []


def test_an_empty_tab_fills_itself_and_grows_while_training_goes_on(page, tmp_path):
    from lightning.pytorch import Callback

    (tmp_path / "runs").mkdir()
    seen = []

    class Looking(Callback):
        """Waits, in the midst of the training, until the page shows what was just measured."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step in (4, 8):
                step = f"at step {trainer.global_step}"
                card = "document.querySelector('article.verdict')?.innerText"
                page.wait(f"{card}?.includes('{step}')")
                page.wait("document.querySelector('#loss canvas')")
                seen.append(step)

    with tensorboard(tmp_path / "runs", tmp_path / "log.txt", load_fast="false") as board:
        page.open("about:blank")
        page.open(board.entry)
        page.wait("document.querySelector('.empty:not([hidden])')")
        watch(tmp_path / "runs", "grows", max_steps=10, callbacks=[Looking()])
    assert seen == ["at step 4", "at step 8"]
