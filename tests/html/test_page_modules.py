"""The page's modules by themselves in a browser, on data made for what each must not get wrong."""

import csv
import io
import json

import pytest
from support.chromium import needs_chromium
from support.page_modules import STATE, load, make_app

from lightning_linf.report.text import NOT_CONVERGED

pytestmark = [pytest.mark.slow, needs_chromium]


def test_an_error_at_a_reload_keeps_what_is_drawn(page):
    make_app(page)
    assert page.run("document.querySelector('.notes').hidden")
    page.run("app.reload()")
    page.wait("document.querySelector('#heatmap canvas')")
    page.run("window.good = source.runs; source.runs = async () => { throw new Error('gone'); }")
    page.run("app.reload()")
    assert page.run("document.querySelector('.notes .first').textContent") == (
        "The data cannot be read: gone"
    )
    assert not page.run("document.querySelector('.layout').hidden")
    assert page.run("document.querySelector('.empty').hidden")
    page.run("source.runs = window.good; app.reload()")
    page.wait("document.querySelector('.notes').hidden")


def test_an_error_at_the_first_reading_is_not_called_an_empty_folder(page):
    make_app(page)
    page.run("source.runs = async () => { throw new Error('gone'); }; app.reload()")
    assert page.wait("document.querySelector('.notes li')?.textContent").endswith("gone")
    assert page.run("document.querySelector('.empty').hidden")


def test_a_verdict_is_of_a_step_with_both_ends(page):
    make_app(page)
    page.run("""{
        const [lower, upper] = source.run.scalars;
        const curve = (steps) => ({ steps, values: steps.map((s) => s + 0.25), num_steps: 3 });
        source.scalars = async () => new Map([[lower, curve([1, 2, 3])], [upper, curve([1, 2])]]);
        app.reload();
    }""")
    card = page.wait("document.querySelector('article.verdict')?.innerText")
    assert "at step 2" in card
    assert "2.25" in card


@pytest.mark.parametrize(
    ("open_one", "mark"), [("coordinate", " *"), ("global", " *"), ("row", "")]
)
def test_a_bracket_that_has_not_converged_has_the_mark_of_the_report(page, open_one, mark):
    make_app(page)
    page.run(f"""{{
        const curve = (value) => ({{ steps: [1], values: [value], num_steps: 1 }});
        const ends = source.run.scalars.map((tag, i) => [tag, curve(2 + i)]);
        source.scalars = async () => new Map([
            ...ends, ["geometry/converged/{open_one}", curve(0)],
            ["geometry/step_advantage/coordinate", curve(2.75)],
        ]);
        app.reload();
    }}""")
    page.wait("document.querySelector('#verdict canvas')")
    card = page.run("document.querySelector('article.verdict').innerText").splitlines()
    assert f"Adam{mark}" in card
    assert "2.75" in card
    legend = page.run("document.querySelector('#verdict .legend').innerText")
    assert legend == f"Adam (coordinate){mark}"
    note = page.run("document.querySelector('#verdict > .footnote').textContent")
    assert note == (NOT_CONVERGED if mark else "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("source.run.report = false", "Its records hold no report."),
        ("source.report = async () => { throw new Error('400: broken'); }", "400: broken"),
    ],
)
def test_a_verdict_without_a_report_says_why_and_costs_no_chart(page, answer, words):
    make_app(page)
    page.run(f"{{ source.run.report = true; {answer}; app.reload(); }}")
    card = page.wait("document.querySelector('article.verdict')?.innerText")
    assert words in card
    page.wait("document.querySelector('#verdict canvas')")


def test_a_logarithm_has_no_colour_for_zero_and_below(page):
    places = load(
        page,
        "panels/layers",
        f"""const choice = new m.LayerChoice({STATE});
        choice.log = true;
        const {{ place }} = choice.position([0, 1, 10, 100]);
        return [0, -1, 1, 10, 100].map((value) => String(place(value)));""",
    )
    assert places[:2] == ["NaN", "NaN"]
    assert [float(place) for place in places[2:]] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("value", [1, 2, 0.05])
def test_a_log_chart_of_equal_values_is_drawn(page, value):
    low, high = load(
        page,
        "drawing/chart",
        f"""const parent = document.body.appendChild(document.createElement("div"));
        const lines = [{{ x: [1, 2], values: [{value}, {value}] }}];
        const axis = {{ kind: "step", zoom: () => null, setZoom() {{}} }};
        const curves = [{{ label: "a", color: "#2563eb", lines }}];
        const plot = m.drawChart(parent, {{ curves, axis, log: true, label: "l", unit: "u" }});
        await new Promise(requestAnimationFrame);
        return [plot.scales.y.min, plot.scales.y.max];""",
    )
    assert low < value < high


TWO_CHARTS = """
    window.zoom = null;
    const setZoom = (range) => {
        window.zoom = range?.map(Math.round);
        for (const plot of [first, second]) plot.setData(plot.data);
    };
    const axis = { kind: "step", zoom: () => window.zoom, setZoom };
    const [first, second] = [[1, 2, 3, 4], [2, 4]].map((steps) => {
        const parent = document.body.appendChild(document.createElement("div"));
        const curves = [
            { label: "a", color: "#2563eb", lines: [{ x: steps, values: steps }] },
            { label: "b", color: "#e0570b", lines: [{ x: [1, 4], values: [10, 40] }] },
        ];
        return m.drawChart(parent, { curves, axis, log: false, label: "l", unit: "u" });
    });
    await new Promise(requestAnimationFrame);
"""


def test_charts_share_cursor_and_zoom(page):
    load(page, "drawing/chart", f"{TWO_CHARTS} window.plots = [first, second];")
    box = page.run("plots[0].over.getBoundingClientRect().toJSON()")
    y = box["y"] + 40
    page.move(box["x"] + 0.4 * box["width"], y)
    tips = "[...document.querySelectorAll('.tip')].map((tip) => tip.textContent)"
    # Each shows its own step next to the cursor, and of each curve the value measured closest to it
    # with its step, where that is another.
    assert page.run(tips) == ["step 2a2b10 (step 1)", "step 2a2b10 (step 1)"]
    page.move(box["x"] + 0.3 * box["width"], y)
    button = {"button": "left", "clickCount": 1, "y": y}
    page.send("Input.dispatchMouseEvent", type="mousePressed", x=box["x"] + 2, **button)
    for share in (0.2, 0.64):
        page.move(box["x"] + share * box["width"], y)
    end = box["x"] + 0.64 * box["width"]
    page.send("Input.dispatchMouseEvent", type="mouseReleased", x=end, **button)
    zoom = "plots.map(({ scales }) => [scales.x.min, scales.x.max])"
    assert page.run(zoom) == [[1, 3], [1, 3]]
    page.move(0, 0)
    assert page.run("[...document.querySelectorAll('.tip')].every((tip) => tip.hidden)")


def test_keys_move_the_cursor_of_every_chart(page):
    load(page, "drawing/chart", f"{TWO_CHARTS} first.root.parentElement.focus();")
    for _ in range(4):
        page.press("ArrowRight")
    assert (
        page.run("[...document.querySelectorAll('.tip')].map((tip) => tip.textContent)")
        == ["step 4a4b40"] * 2
    )


@pytest.mark.parametrize("selector", ["#verdict .chart", "#heatmap canvas"])
def test_focus_and_place_survive_a_reload(page, selector):
    make_app(page)
    page.run("app.reload()")
    page.wait("document.querySelector('#heatmap canvas')")
    page.run(f"document.querySelector('{selector}').focus({{ preventScroll: true }})")
    page.run("scrollTo(0, 40)")
    page.run("{ window.before = document.activeElement; }")
    page.run("source.run.changed = 2; app.reload()")
    assert page.run("!before.isConnected")  # it was drawn anew
    assert page.run(f"document.activeElement === document.querySelector('{selector}')")
    assert page.run("scrollY") == 40


def test_only_a_cell_of_the_map_chooses_a_step(page):
    make_app(page)
    page.run("app.reload()")
    page.wait("document.querySelector('#heatmap canvas')")
    page.run("document.querySelector('#heatmap').scrollIntoView()")
    box = page.run("document.querySelector('#heatmap canvas').getBoundingClientRect().toJSON()")
    step = "document.querySelector('#bars output').textContent"
    page.move(box["right"] - 5, box["y"] + 35, click=True)
    assert page.run(step) == "3"
    page.move(box["right"] - 1.5 * box["width"] / 4, box["y"] + 35)  # over the second column
    page.move(box["x"] + 3, box["y"] + 35, click=True)  # a name
    assert page.run(step) == "3"
    page.move(box["x"] + box["width"] / 2, box["y"] + 5, click=True)  # the key
    assert page.run(step) == "3"


def test_only_what_keys_move_is_a_tab_stop(page):
    make_app(page)
    page.run("app.reload()")
    page.wait("document.querySelector('#heatmap canvas')")
    assert page.run("document.querySelector('#bars canvas').tabIndex") == -1
    assert page.run("document.querySelector('#heatmap canvas').tabIndex") == 0


def test_a_long_legend_takes_several_lines_of_a_picture(page):
    heights, is_inked = load(
        page,
        "drawing/download",
        """const chart = document.createElement("canvas");
        Object.assign(chart, { width: 600, height: 50 });
        const entries = Array.from({ length: 12 }, (_, i) => (
            { label: `a run with a long name ${i}`, color: i === 11 ? "#ff0000" : "#0000ff" }));
        const images = [1, 12].map((n) => m.toImage("title", entries.slice(0, n), [chart]));
        const last = images[1];
        const { data } = last.getContext("2d").getImageData(0, 0, last.width, last.height);
        const pixels = new Uint32Array(data.buffer);
        return [images.map(({ height }) => height), pixels.includes(0xff0000ff)];""",
    )
    assert heights[1] > heights[0] + 60
    assert is_inked  # the last entry's colour


def test_a_csv_file_holds_no_formulas_and_negative_numbers_stay_numbers(page):
    names = [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1",  # full width
        'a"b',
        "a,b",
        "a-b",
        "",
        "1",
    ]
    numbers = [-1.5, -1e-7, 0, 2]
    text = load(
        page,
        "drawing/download",
        f"return m.toCsv({{ columns: ['=c', 'step'], rows: [{json.dumps(names)}, "
        f"[...{json.dumps(numbers)}, -Infinity, NaN]] }});",
    )
    heading, row, values = csv.reader(io.StringIO(text, newline=""))
    assert heading == ["'=c", "step"]
    assert row == ["'" + name for name in names[:8]] + names[8:]
    assert [float(value) for value in values[:4]] == numbers
    assert values[4:] == ["-Infinity", "NaN"]
