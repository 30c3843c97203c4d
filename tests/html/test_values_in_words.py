"""What the cursor says of open intervals and of smoothed curves."""

import pytest
from support.chromium import needs_chromium
from support.page_modules import CHART, TIP, hover, load, make_app

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.mark.parametrize(
    ("lower", "upper", "text"),
    [
        ("1", "2", "1 to 2"),
        ("1", "1.0001", "1"),
        ("400", "Infinity", "at least 400"),
        ("0", "Infinity", "not known"),
        ("0.5", "NaN", "at least 0.5"),
        ("NaN", "3", "at most 3"),
        ("-Infinity", "3", "at most 3"),
        ("-Infinity", "Infinity", "not known"),
        ("NaN", "Infinity", "not known"),
        ("NaN", "NaN", "–"),
        ("Infinity", "Infinity", "∞"),
    ],
)
def test_an_open_end_is_told_in_words(page, lower, upper, text):
    assert load(page, "drawing/numbers", f"return m.formatRange({lower}, {upper});") == text


def test_the_cursor_does_not_take_the_finite_end_for_the_value(page):
    code = "draw([interval([7], [400], [Infinity]), line('b', [7], [Infinity])]);"
    load(page, "drawing/chart", CHART + code)
    hover(page, 7)
    assert page.run(TIP) == ["aat least 400", "b∞"]


def test_a_smoothed_value_stands_beside_the_measured_one_and_is_no_interval(page):
    make_app(page)
    page.run("""{
        source.run.own = { loss: ["train_loss"] };
        const read = source.scalars;
        const loss = { steps: [1, 2], values: [4, 1], num_steps: 2 };
        source.scalars = async (run) => new Map([...(await read(run)), ["train_loss", loss]]);
        app.reload();
    }""")
    page.wait("document.querySelector('#loss canvas')")
    page.run("""{
        const slider = document.querySelector("#loss input[type=range]");
        slider.value = "0.5";
        slider.dispatchEvent(new Event("input"));
    }""")
    page.wait("document.querySelector('#loss .body').plot.series.length === 3")
    page.run("document.querySelector('#loss .chart').focus()")
    page.press("End")
    said = page.wait("document.querySelector('#loss [aria-live]').textContent")
    assert said.endswith("train_loss 2 (measured 1)")  # (0.5 * 4 * 0.5 + 0.5 * 1) / 0.75


@pytest.mark.parametrize("width", [700, 1200])
def test_a_label_beside_the_cursor_has_the_room_of_its_side_of_the_chart(page, width):
    label = "adam-rotated-seed-0 in the optimizer's coordinates"
    load(
        page,
        "drawing/chart",
        CHART.replace("900px", f"{width}px") + f'draw([line("{label}", [0, 4, 10], [1, 2, 3])]);',
    )
    hover(page, 4)
    part = "document.querySelector('.tip .cut > :first-child')"
    assert page.run(f"{part}.scrollWidth <= {part}.clientWidth") == (width == 1200)
    edges = (
        "[document.querySelector('.tip'), plot.over].map((n) => n.getBoundingClientRect().right)"
    )
    tip, chart = page.run(edges)
    assert tip <= chart
