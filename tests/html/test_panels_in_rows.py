"""Panels in one row of the page, and many runs and layers in one chart."""

import pytest
from support.chromium import needs_chromium
from support.page_modules import load, make_app

pytestmark = [pytest.mark.slow, needs_chromium]


def test_a_map_stands_right_below_its_legend_and_its_rows_beside_the_bars(page):
    make_app(page)
    page.run("app.reload()")
    page.wait("document.querySelector('#bars canvas') && document.querySelector('#heatmap canvas')")
    place = "document.querySelector('#{} {}').getBoundingClientRect().{}"
    for panel in ("heatmap", "bars"):
        top = page.run(place.format(panel, "canvas", "top"))
        assert 0 <= top - page.run(place.format(panel, ".legend", "bottom")) <= 8, panel
    bottoms = [page.run(place.format(panel, "canvas", "bottom")) for panel in ("heatmap", "bars")]
    assert bottoms[0] == bottoms[1]


@pytest.mark.parametrize("number", [3, 148])
def test_the_name_of_the_first_bar_is_not_cut(page, number):
    code = f"""
        const fill = CanvasRenderingContext2D.prototype.fillText;
        const tops = [];
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {{
            const high = this.measureText(text).actualBoundingBoxAscent;
            tops.push(this.getTransform().f + y - high);
        }};
        const names = Array.from({{ length: {number} }}, (_, i) => `${{i}}.weight`);
        m.drawBars({{
            ...{{ names, values: names.map(() => 1), other: null, log: false, width: 400 }},
            ...{{ range: {{ low: 0, high: 1 }}, color: "#000000", caption: "c", label: "l" }},
        }});
        CanvasRenderingContext2D.prototype.fillText = fill;
        return Math.min(...tops);
    """
    assert load(page, "drawing/bars", code) >= 0


def test_areas_of_many_runs_are_paler_the_more_there_are(page):
    def alpha(number):
        curve = "{ steps: [1], values: [1] }"
        view = f'{{ runs: Array({number}).fill("r"), axis: {{ kind: "step" }} }}'
        code = f"return m.intervalOf({view}, {curve}, {curve}).fills[0][2];"
        return load(page, "panels/curves", code)

    assert alpha(1) == alpha(6) == 0.14
    assert alpha(20) == pytest.approx(0.14 * 6 / 20)


def test_a_long_name_of_a_layer_stays_within_its_box(page):
    make_app(page)
    name = "a_very_long_name_of_a_module." * 6 + "weight"
    page.run(f"""{{
        const answer = source.runs;
        source.runs = async () => {{
            const all = await answer();
            all.layouts[0].tensors[0] = "{name}";
            return all;
        }};
        app.reload();
    }}""")
    page.wait("document.querySelector('#heatmap canvas')")
    page.run("document.querySelector('#heatmap canvas').focus()")
    page.press("ArrowUp")
    said = page.wait("document.querySelector('#heatmap [aria-live]').textContent")
    assert said.startswith(f"{name}, step 3 ")
    tip = "document.querySelector('#heatmap .tip')"
    assert page.run(f"{tip}.scrollWidth <= {tip}.clientWidth")
