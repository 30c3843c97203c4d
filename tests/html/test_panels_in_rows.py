"""Panels that stand in one row of the page."""

import pytest
from support.chromium import needs_chromium
from support.page_modules import make_app

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
