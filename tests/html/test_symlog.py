"""Values of both signs on a symmetric logarithmic axis."""

import itertools
import json

import pytest
from support.chromium import needs_chromium
from support.page_modules import CHART, load, make_app

pytestmark = [pytest.mark.slow, needs_chromium]
EARLY = [-5, 0.3, -0.02, 0.01, -0.01, 0.02, -0.03, 0.01, 0.02, -0.01]  # large at first
GAIN = """{
    source.run.scalars = [...source.run.scalars, "geometry/step_gain"];
    const read = source.scalars;
    const values = %s;
    const steps = values.map((_, i) => i + 1);
    source.scalars = async (run) => new Map([
        ...(await read(run)), ["geometry/step_gain", { steps, values, num_steps: steps.length }],
    ]);
    app.reload();
}"""
PLOT = "document.querySelector('#gain .body').plot"


@pytest.mark.parametrize(
    ("values", "distr", "unit"),
    [
        (EARLY, 4, "loss, symlog ±0.01"),
        ([-2, 1, 2, -1, 0.5], 1, "loss"),
        ([-9, -0.1, -0.1, -0.1], 4, "loss, symlog ±0.1"),
        ([9000, 0.1, 0.1, 0.1], 3, "loss, log scale"),
        ([0, 0, 0], 1, "loss"),
    ],
)
def test_the_axis_of_the_change_of_the_loss_is_chosen_by_its_values(page, values, distr, unit):
    make_app(page)
    page.run(GAIN % json.dumps(values))
    page.wait("document.querySelector('#gain canvas')")
    assert page.run(f"[{PLOT}.scales.y.distr, {PLOT}.axes[1].label]") == [distr, unit]
    note = page.run("document.querySelector('#gain > .footnote').textContent")
    assert note.startswith("symlog: about linear within ±0.") == (distr == 4)


def test_the_button_turns_a_symmetric_axis_into_a_linear_one_and_back(page):
    make_app(page)
    page.run(GAIN % json.dumps(EARLY))
    page.wait("document.querySelector('#gain canvas')")
    button = "[...document.querySelectorAll('#gain button')].find((b) => b.innerText == 'log axis')"
    for distr in (1, 4):
        page.run(f"{button}.click()")
        page.wait(f"{PLOT}.scales.y.distr === {distr}")


def test_ticks_are_symmetric_powers_of_ten_where_their_values_are(page):
    options = "{ linear: 0.01, height: 210 }"
    values = [(i, value) for i, value in enumerate(EARLY)]
    x, y = ([one[k] for one in values] for k in (0, 1))
    load(page, "drawing/chart", CHART + f"draw([line('a', {x}, {y})], {options});")
    assert page.run("[plot.scales.y.min, plot.scales.y.max]") == [-5, 0.5]
    ticks = page.run("plot.axes[1]._values")
    assert ticks == ["−1", "−0.1", "0", "0.1"]
    splits = page.run("plot.axes[1]._splits")
    assert splits == [-1, -0.1, 0, 0.1]
    places = page.run("[-1, -0.1, 0, 0.1].map((v) => plot.valToPos(v, 'y'))")
    assert places == sorted(places, reverse=True)
    assert min(a - b for a, b in itertools.pairwise(places)) > 16  # pixels
    drawn = page.run("plot.data[1]")
    assert drawn == EARLY  # no value is left out


def test_the_linear_part_holds_a_tenth_of_the_values_and_four_decades_are_the_most(page):
    def width(values):
        return load(page, "drawing/symlog", f"return m.linearWidth({json.dumps(values)});")

    assert width(EARLY) == 0.01
    assert width([-1, *[1e-9] * 9]) == 1e-4
    assert width([1, 2, 3]) is None
    assert width([-300, 200, 0]) == 100
