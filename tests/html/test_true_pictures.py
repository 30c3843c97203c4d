"""No chart, tooltip or card says what was not measured."""

import itertools
import json

import pytest
from support.chromium import needs_chromium
from support.page_modules import CHART, TIP, hover, load, make_app

pytestmark = [pytest.mark.slow, needs_chromium]


def coloured(page, x, low, high):
    """Whether there is ink of the curve at a step between two values, and in how many pixels."""
    return page.run(f"""(() => {{
        const at = (value) => Math.round(plot.valToPos(value, "y", true));
        const left = Math.round(plot.valToPos({x}, "x", true));
        const [top, bottom] = [at({high}), at({low})];
        const {{ data }} = plot.ctx.getImageData(left, top, 1, Math.max(1, bottom - top));
        let count = 0;
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 2] > 180 && data[i] < 120 && data[i + 3] > 150) count++;
        return count / (data.length / 4);
    }})()""")


def test_a_run_has_no_value_before_its_first_step_and_after_its_last(page):
    load(
        page,
        "drawing/chart",
        CHART + "draw([line('early', [1, 5], [1, 2]), line('all', [1, 5, 9, 13], [1, 2, 3, 4])]);",
    )
    hover(page, 13)
    assert page.run(TIP) == ["early–", "all4"]
    hover(page, 5)
    assert page.run(TIP) == ["early2", "all2"]


def test_a_value_that_is_not_finite_is_a_gap_and_called_so(page):
    values = "[1, NaN, 1, 1]"
    load(page, "drawing/chart", CHART + f"draw([line('a', [0, 10, 20, 30], {values})]);")
    hover(page, 10)
    assert page.run(TIP) == ["anot finite"]
    assert coloured(page, 5, 0.98, 1.02) == 0  # no line leads over it
    assert coloured(page, 25, 0.98, 1.02) > 0


def test_a_value_of_another_step_is_shown_with_its_step(page):
    load(
        page,
        "drawing/chart",
        CHART + "draw([line('a', [0, 8], [1, 2]), line('b', [0, 6, 8], [1, 2, 3])]);",
    )
    hover(page, 6)
    assert page.run(TIP) == ["a2 (step 8)", "b2"]


@pytest.mark.parametrize(("upper", "reaches_top"), [(3.0, False), (float("inf"), True)])
def test_an_interval_is_a_bar_at_what_was_measured(page, upper, reaches_top):
    upper = "Infinity" if reaches_top else upper
    load(
        page,
        "drawing/chart",
        CHART + f"""draw([interval([7], [1], [{upper}]), line("b", [7], [5])]);""",
    )
    assert coloured(page, 7, 1.2, 2.8) > 0.9  # one measurement is a bar
    assert (coloured(page, 7, 3.3, 4.5) > 0.9) == reaches_top
    assert page.run("[plot.scales.x.min, plot.scales.x.max]") == [6, 8]


def test_between_measurements_an_interval_is_pale_and_at_them_it_is_not(page):
    load(
        page,
        "drawing/chart",
        CHART + """draw([interval([1, 9], [1, 1], [3, 3]), line("b", [0, 10], [0, 4])]);""",
    )
    assert coloured(page, 9, 1.2, 2.8) > 0.9
    assert coloured(page, 6, 1.2, 2.3) == 0


def test_steps_have_whole_numbers(page):
    load(page, "drawing/chart", CHART + "draw([line('a', [1, 2, 3], [1, 2, 3])]);")
    ticks = page.run("plot.axes[0]._values")
    assert [tick for tick in ticks if tick] == ["1", "2", "3"]
    load(page, "drawing/chart", CHART + "draw([line('a', [30], [1])]);")
    assert [tick for tick in page.run("plot.axes[0]._values") if tick] == ["29", "30", "31"]


def test_seconds_read_as_clocks_do(page):
    seconds = [0, 4.53, 59, 60, 150, 3599.9, 3600, 90_000, 1_000_000]
    texts = load(page, "drawing/numbers", f"return {json.dumps(seconds)}.map(m.formatDuration);")
    expected = ["0 s", "4.5 s", "59 s", "1 min", "2 min 30 s", "1 h", "1 h", "1 d 1 h", "11 d 14 h"]
    assert texts == expected


def test_colours_of_many_runs_differ(page):
    for theme in ("light", "dark"):
        page.run(f"document.documentElement.dataset.theme = '{theme}'")
        colors = load(page, "drawing/color", "return [...Array(40).keys()].map(m.paletteColor);")
        parts = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors]
        distances = [
            sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
            for i, one in enumerate(parts)
            for other in parts[:i]
        ]
        assert min(distances) > 11  # of 441 between black and white


def test_the_fan_keeps_what_it_shows_by_name(page):
    make_app(page)
    page.run("""{
        const levels = [0.25, 0.5, 0.75];
        const quantiles = { name: "log10_quantiles", width: 3, label: "q", unit: "", levels };
        const layout = (tensors) => ({ tensors, whole: true, columns: [quantiles] });
        const layouts = [layout(["a", "b"]), layout(["a", "b", "c", "d"])];
        const run = (name, table) => ({ ...source.run, name, tables: { "geometry/a": table } });
        const answer = source.runs;
        const runs = [run("small", 0), run("large", 1)];
        source.runs = async () => ({ ...(await answer()), layouts, runs });
        window.asked = [];
        source.fan = async (name, tag, column, row) => {
            window.asked.push([name, row]);
            return { steps: [1, 2], values: [[1, 2, 3], [2, 3, 4]], num_steps: 2 };
        };
        app.reload();
    }""")
    page.wait("document.querySelector('#fan canvas')")
    page.run("""{
        const select = document.querySelector("#fan select");
        select.value = "large";
        select.dispatchEvent(new Event("change"));
    }""")
    page.wait(
        "asked.length > 1 && document.querySelector('#fan .legend').textContent.includes('large')"
    )
    assert page.run("asked") == [["small", 2], ["large", 4]]  # the last row is all parameters
    assert "large · all parameters" in page.run(
        "document.querySelector('#fan .legend').textContent"
    )


def test_a_loss_that_is_not_finite_takes_the_place_of_the_verdict(page):
    make_app(page)
    page.run("""{
        source.run.own = { loss: ["train_loss"] };
        source.run.report = true;
        source.report = async () => ({
            ...{ step: 3, verdict: "Favours", verdict_status: "favours adam", shares: "Of it" },
            ...{ settings: "Measured so", coordinates: "the parameters", header: [] },
            ...{ headings: [], rows: [], legend: [] },
        });
        const read = source.scalars;
        const values = [1, 2, NaN, NaN];
        const loss = { steps: [1, 2, 3, 4], values, num_steps: 4, not_finite_since: 3 };
        source.scalars = async (run) => new Map([...(await read(run)), ["train_loss", loss]]);
        app.reload();
    }""")
    card = page.wait("document.querySelector('article.verdict')?.innerText")
    assert "NOT FINITE SINCE STEP 3" in card
    assert "train_loss is not a finite number since step 3" in card
    assert "favours" not in card.lower()
    assert "Measured so" in card


ROWS = """
    const names = ["embed.w", "h.0.a", "h.0.b", "h.10.a", "h.2.a", "h.2.b", "head"];
    const values = [3, 1, 9, 2, 8, 4, NaN];
    const valueOf = (i) => values[i];
    const options = { words: [""], order: "depth", grouped: false, unfolded: [], valueOf };
    const rows = (changes) => m.arrange(names, { ...options, ...changes });
    const shown = (changes) => rows(changes).map(({ name }) => name);
"""


def test_layers_are_sorted_and_grouped(page):
    def shown(changes):
        return load(page, "panels/layer_rows", f"{ROWS} return shown({changes});")

    in_order = ["embed.w", "h.0.a", "h.0.b", "h.10.a", "h.2.a", "h.2.b", "head"]
    assert shown("{}") == in_order
    assert shown("{ order: 'name' }") == sorted(
        in_order,
        key=lambda n: (
            n[:2] != "em",
            "head" in n,
            [int(p) if p.isdigit() else 0 for p in n.split(".")],
            n,
        ),
    )
    assert shown("{ order: 'value' }") == [
        "h.0.b",
        "h.2.a",
        "h.2.b",
        "embed.w",
        "h.10.a",
        "h.0.a",
        "head",
    ]
    assert shown("{ words: ['h.', 'a'] }") == ["h.0.a", "h.10.a", "h.2.a"]
    folded = ["embed.w", "▸ h.0 (2)", "h.10.a", "▸ h.2 (2)", "head"]
    assert shown("{ grouped: true }") == folded
    assert shown("{ grouped: true, unfolded: ['h.2'], order: 'value' }") == [
        *("▾ h.2 (2)", "h.2.a", "h.2.b", "▸ h.0 (2)", "embed.w", "h.10.a", "head"),
    ]
    medians = load(
        page,
        "panels/layer_rows",
        f"{ROWS} return m.rowValues(rows({{ grouped: true }}), values).slice(0, 4);",
    )
    assert medians == [3, 5, 2, 6]


def test_what_all_names_begin_with_is_left_out_of_labels(page):
    names = ["net.embed", "net.h.0.a", "net.h.0.b", "net.h.1.a"]
    code = f"""
        const about = {{ words: [""], order: "depth", unfolded: ["net.h.0"], valueOf: () => 1 }};
        const rows = (grouped) => m.arrange({json.dumps(names)}, {{ ...about, grouped }});
        const shown = (grouped) => rows(grouped).map(({{ name, label }}) => [name, label]);
        return [shown(false), shown(true)];
    """
    plain, grouped = load(page, "panels/layer_rows", code)
    assert plain == [[name, name.removeprefix("net.")] for name in names]
    assert grouped == [
        ["net.embed", "embed"],
        ["▾ net.h.0 (2)", "▾ h.0 (2)"],
        ["net.h.0.a", "h.0.a"],
        ["net.h.0.b", "h.0.b"],
        ["net.h.1.a", "h.1.a"],
    ]


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a.b.weight", "a.b.bias"], "a.b."),
        (["a.b", "a.b.c"], "a."),  # each keeps a word
        (["ab.c", "abc.c"], ""),
        (["a.b"], "a."),
        ([], ""),
    ],
)
def test_what_names_share_ends_at_a_word(page, names, prefix):
    code = f"return m.sharedPrefix({json.dumps(names)});"
    assert load(page, "panels/layer_rows", code) == prefix


CANVAS = """
    const [canvas, context] = m.makeCanvas(%d, 60, "l");
    const written = [];
    context.fillText = (text, x) => written.push([text, x, context.measureText(text).width]);
"""


@pytest.mark.parametrize("width", [240, 400, 900])
def test_the_key_of_colours_is_written_in_full(page, width):
    code = f"m.drawKey(context, 0.0257, 0.787, false, {0.4 * width}, {width}); return written;"
    written = load(page, "drawing/heatmap", CANVAS % width + code)
    assert [text for text, _, _ in written] == ["0.0257", "0.787   linear scale"]
    assert written[0][1] >= 0
    assert all(x + size <= width for _, x, size in written)


def test_long_names_are_shortened_alike(page):
    names = ["blocks.0.attention.weight", "blocks.1.attention.weight", "blocks.1.up"]
    code = f"m.drawNames(context, {json.dumps(names)}, 14, 140); return written;"
    written = load(page, "drawing/heatmap", CANVAS % 400 + code)
    assert [text for text, _, _ in written] == [
        "blocks.0.a.weight",
        "blocks.1.a.weight",
        "blocks.1.up",
    ]


def test_bars_open_at_the_last_step_with_a_value(page):
    nan = float("nan")
    values = [[1, 2], [3, nan], [nan, nan]]
    make_app(page, values=[[1, 2], [3, 4], [5, 6]])
    page.run(f"""{{
        const values = {json.dumps(values)};
        source.layers = async () => ({{ steps: [10, 20, 30], values, num_steps: 3 }});
        app.reload();
        app.update();
    }}""")
    page.wait("document.querySelector('#bars output')?.textContent === '20'")
    note = page.run("document.querySelector('#bars .footnote').textContent")
    assert note == "No value is a finite number after step 20. "
    page.run("""{
        const slider = document.querySelector("#bars input[type=range]");
        slider.value = "2";
        slider.dispatchEvent(new Event("input"));
    }""")
    assert page.run("document.querySelector('#bars output').textContent") == "30"  # if one will


LOSS = """{
    source.run.own = { loss: ["train_loss"] };
    const read = source.scalars;
    source.scalars = async (run) => new Map([
        ...(await read(run)), ["train_loss", { steps: [1, 2, 3], values: %s, num_steps: 3 }],
    ]);
    app.reload();
}"""


@pytest.mark.parametrize(
    ("values", "chosen", "is_log"),
    [
        ("[2, 5, 2e5]", None, True),
        ("[2, 5, 200]", None, False),
        ("[2, 2e5, Infinity]", None, True),
        ("[2, 5, 2e5]", "false", False),
        ("[2, 5, 200]", "true", True),
    ],
)
def test_a_loss_of_several_orders_has_a_logarithmic_axis(page, values, chosen, is_log):
    make_app(page)
    if chosen:
        page.run(f"app.toolbar.state.set('loss.log', '{chosen}')")
    page.run(LOSS % values)
    page.wait("document.querySelector('#loss canvas')")
    assert page.run("document.querySelector('#loss .body').plot.scales.y.distr") == (
        3 if is_log else 1
    )
    button = "[...document.querySelectorAll('#loss button')].find((b) => b.innerText == 'log axis')"
    assert page.run(f"{button}.getAttribute('aria-pressed')") == str(is_log).lower()
    unit = page.run("document.querySelector('#loss .body').plot.axes[1].label")
    assert unit == ("loss, log scale" if is_log else "loss")
    page.run(f"{button}.click()")
    page.wait(f"document.querySelector('#loss .body').plot.scales.y.distr === {1 if is_log else 3}")
    assert page.run("app.toolbar.state.get('loss.log')") == str(not is_log).lower()


def test_rates_of_several_optimizers_have_their_own_dashes_in_chart_and_legend(page):
    make_app(page)
    page.run("""{
        const tags = ["lr-A/pg1", "lr-A/pg2", "lr-B/pg1", "lr-B/pg2", "lr-C"];
        source.run.own = { learning_rate: tags };
        const curve = { steps: [1, 2, 3], values: [1, 2, 3], num_steps: 3 };
        const read = source.scalars;
        source.scalars = async (run) => new Map([
            ...(await read(run)), ...tags.map((tag) => [tag, curve]),
        ]);
        app.reload();
    }""")
    marks = page.wait("""((marks) => marks.length === 5 && marks.map((path) =>
        path.getAttribute("stroke-dasharray")
    ))([...document.querySelectorAll("#learning-rate .legend path")])""")
    assert len(set(marks)) == 5
    dashes = page.run(
        "document.querySelector('#learning-rate .body').plot.series.slice(1)"
        ".map(({ dash }) => dash.join())"
    )
    assert len(set(dashes)) == 5
    assert dashes == marks


def test_the_numbers_of_an_axis_have_room_beside_its_unit(page):
    load(
        page,
        "drawing/chart",
        CHART + "draw([line('a', [1, 2], [10000, 10000.1])], { unit: 'samples' });",
    )
    wide = page.run("plot.bbox.left / devicePixelRatio")
    load(page, "drawing/chart", CHART + "draw([line('a', [1, 2], [1, 2])]);")
    assert wide > page.run("plot.bbox.left / devicePixelRatio")


def test_a_reference_below_a_logarithmic_axis_is_left_out(page):
    load(
        page,
        "drawing/chart",
        CHART + "draw([line('a', [1, 2], [1, 9])], { log: true, reference: 0 });",
    )
    assert page.run("[plot.scales.y.min, plot.scales.y.max]") == [1, 10]


@pytest.mark.parametrize("values", [[3e-40, 2e-7], [1e-300, 1e300], [2.5e-3, 4e-3], [1e33, 3e38]])
def test_a_logarithmic_axis_has_numbers_however_small_or_large_its_values_are(page, values):
    options = "{ log: true, height: 210 }"
    load(page, "drawing/chart", CHART + f"draw([line('a', [1, 2], {values})], {options});")
    ticks = [tick for tick in page.run("plot.axes[1]._values") if tick]
    assert 2 <= len(ticks) == len(set(ticks)) < 10


@pytest.mark.parametrize(
    ("kind", "x"), [("step", [1, 3_000_000]), ("time", [30, 150]), ("time", [0, 100_000])]
)
def test_numbers_of_the_x_axis_neither_touch_nor_leave_the_chart(page, kind, x):
    chart = CHART.replace('kind: "step"', f'kind: "{kind}"').replace("900px", "500px")
    load(page, "drawing/chart", f"{chart} draw([line('a', {x}, [1, 2])]);")
    ends = page.run("""(() => {
        const [axis] = plot.axes;
        plot.ctx.font = axis.font[0];
        return axis._splits.map((at, i) => {
            const half = plot.ctx.measureText(axis._values[i]).width / 2;
            const x = plot.valToPos(at, "x", true);
            return [x - half, x + half];
        });
    })()""")
    assert len(ends) >= 2
    assert all(left > right for (_, right), (left, _) in itertools.pairwise(ends))
    assert ends[-1][1] <= page.run("plot.ctx.canvas.width")


def test_values_that_a_logarithmic_axis_leaves_out_are_counted(page):
    make_app(page)
    page.run("""{
        source.run.own = { learning_rate: ["lr"] };
        const curve = { steps: [1, 2, 3], values: [0, 0.1, -1], num_steps: 3 };
        const read = source.scalars;
        source.scalars = async (run) => new Map([...(await read(run)), ["lr", curve]]);
        app.reload();
    }""")
    note = "document.querySelector('#learning-rate > .footnote').textContent"
    page.wait("document.querySelector('#learning-rate canvas')")
    assert page.run(note) == "2 values of at most 0 have no place on a logarithmic axis. "
    page.run("document.querySelector('#learning-rate .controls > button').click()")
    page.wait(f"{note} === ''")


def test_a_clock_that_was_set_back_is_said(page):
    curves = "[{ steps: [4, 8, 12], seconds: [10, 20, %s] }, undefined, { steps: [1] }]"
    said = "A clock was set back after step 8: what follows has times before it. "
    for last, expected in ((30, ""), (19.5, ""), (5, said)):
        assert load(page, "panels/panel", f"return m.clockSetBack({curves % last});") == expected


def test_a_curve_of_zeros_stands_in_the_middle(page):
    load(page, "drawing/chart", CHART + "draw([line('a', [1, 2], [0, 0])]);")
    assert page.run("[plot.scales.y.min, plot.scales.y.max]") == [-1, 1]


def test_numbers_of_a_card_do_not_lie_on_each_other(page):
    page.size(360)
    make_app(page)
    page.run("""{
        source.scalars = async () => new Map([
            ["step_advantage/coordinate", 1.54e-9],
            ["advantage_lower/coordinate", 0.000123],
            ["advantage_upper/coordinate", 16500],
        ].map(([name, value]) => [`geometry/${name}`, { steps: [1], values: [value] }]));
        app.reload();
    }""")
    boxes = page.wait("""((nodes) => nodes.length && nodes.map((node) => {
        const range = document.createRange();
        range.selectNodeContents(node);
        return range.getBoundingClientRect().toJSON();
    }))([...document.querySelectorAll(".brackets .along, .brackets .range")])""")
    along, between = boxes
    assert along["right"] < between["left"]
    track = page.run("document.querySelector('.track').getBoundingClientRect().toJSON()")
    assert track["right"] < along["left"]
    assert track["width"] >= 40
    assert between["right"] <= page.run(
        "document.querySelector('.verdict').getBoundingClientRect().right"
    )
