"""The page's modules in a browser, on data made for what each must not get wrong."""

import json

from lightning_linf.panels.payload import vocabulary


def load(page, module, code):
    """Run code with the exports of a module as `m`, and those of the page's state as `S`."""
    modules = f'const [m, S] = [await import("/{module}.js"), await import("/panels/state.js")];'
    return page.run(f"(async () => {{ {modules} {code} }})()")


STATE = """new S.State({
    read: () => window.state ?? new Map(),
    write: (words) => { window.state = words; },
})"""


def make_app(page, steps=(1, 2, 3), values=((1, 2), (3, 4), (5, 6))):
    """Show the app on a source that a test can change, as `app` and `source`."""
    data = {"steps": steps, "values": values, "num_steps": len(steps)}
    column = {"name": "density", "width": 1, "label": "density", "unit": "", "levels": []}
    table = {"tensors": ["body.weight", "head"], "whole": False, "columns": [column]}
    scalars = ["geometry/advantage_lower/coordinate", "geometry/advantage_upper/coordinate"]
    run = {"name": "run", "scalars": scalars, "own": {}, "tables": {"geometry/a": 0}, "changed": 1}
    load(
        page,
        "panels/app",
        f"""
        const curve = {{ steps: {json.dumps(steps)}, values: [1, 2, 3], num_steps: 3 }};
        window.source = {{
            run: {json.dumps(run)},
            runs: async () => ({{
                runs: [window.source.run],
                layouts: [{json.dumps(table)}],
                notes: [],
                vocabulary: {json.dumps(vocabulary())},
            }}),
            scalars: async (run) => new Map({json.dumps(scalars)}.map((tag) => [tag, curve])),
            layers: async () => ({json.dumps(data)}),
            fan: async () => ({json.dumps({**data, "values": [row[:1] for row in values]})}),
        }};
        window.state = new Map();
        window.app = new m.App(document.body, window.source, {STATE});
        """,
    )


# Draws charts by themselves, with the exports of drawing/chart as `m`.
CHART = """
    const parent = document.body.appendChild(document.createElement("div"));
    parent.style.width = "900px";
    window.zoom = null;
    const axis = { kind: "step", zoom: () => window.zoom, setZoom() {} };
    const draw = (curves, options = {}) => {
        const all = { curves, axis, log: false, label: "l", unit: "u", ...options };
        window.plot = m.drawChart(parent, all);
    };
    const line = (label, x, values) =>
        ({ run: label, label, color: "#2563eb", dash: [], lines: [{ x, values, width: 2 }] });
    const interval = (x, lower, upper) => ({
        ...{ run: "a", label: "a", color: "#2563eb", dash: [] },
        lines: [{ x, values: lower, width: 0 }, { x, values: upper, width: 0 }],
        fills: [[1, 0, 0.14]],
        bars: [[1, 0]],
    });
"""
TIP = "[...document.querySelectorAll('.tip > div')].map((line) => line.textContent)"


def hover(page, x):
    """Move the pointer to a step of the chart."""
    box = page.run("plot.over.getBoundingClientRect().toJSON()")
    page.move(box["x"] + page.run(f"plot.valToPos({x}, 'x')") - 1, box["y"] + 40)
