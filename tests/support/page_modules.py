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
