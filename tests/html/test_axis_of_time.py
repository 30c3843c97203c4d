"""Curves without times, where the axis is the time."""

import pytest
from support.chromium import needs_chromium
from support.page_modules import make_app

pytestmark = [pytest.mark.slow, needs_chromium]
RUNS = """{
    source.hasTimes = true;
    const answer = source.runs;
    const runs = [%s].map((name) => ({ ...source.run, name, own: { loss: ["train_loss"] } }));
    source.runs = async () => ({ ...(await answer()), runs });
    const read = source.scalars;
    const curve = { steps: [1, 2, 3], values: [3, 2, 1], num_steps: 3 };
    source.scalars = async (run) => {
        const loss = run === "timed" ? { ...curve, seconds: [0, 1, 2] } : curve;
        return new Map([...(await read(run)), ["train_loss", loss]]);
    };
    app.toolbar.kind = "time";
    app.reload();
}"""


def test_a_panel_says_how_many_curves_have_no_place_on_the_axis(page):
    make_app(page)
    page.run(RUNS % "'timed', 'other'")
    page.wait("document.querySelector('#loss canvas')")
    notes = "document.querySelector('#{} > .footnote').textContent"
    assert page.run(notes.format("loss")) == "1 curve comes without times and is not shown. "
    assert page.run(notes.format("verdict")) == "2 curves come without times and are not shown. "
    page.run("app.toolbar.kind = 'step'; app.update()")
    page.wait(f"{notes.format('loss')} === ''")


def test_a_run_without_times_has_no_map_and_no_fan(page):
    make_app(page)
    page.run(RUNS % "'other'")
    said = page.wait("document.querySelector('#heatmap .nothing')?.textContent")
    assert said == "The records of this run come without times."
    note = page.wait("document.querySelector('#layer > .footnote').textContent")
    assert note == "1 curve comes without times and is not shown. "
