// Panel 6 shows one layer over steps: the same quantity of it in all runs.

import { drawChart } from "../drawing/chart.js";
import { element, field, fillSelect } from "../drawing/dom.js";
import { linearWidth } from "../drawing/symlog.js";
import { rowsOf } from "./curves.js";
import { LayerPanel } from "./layers.js";
import { thinned, untimed, withoutPlace } from "./panel.js";
import { placeSteps } from "./times.js";

export class LayerCurves extends LayerPanel {
  constructor(choice) {
    super(
      choice,
      "layer",
      "One layer over steps, in all runs",
      "The quantity that is chosen above, of one layer; a click on a row of the map chooses it.",
    );
    this.layer = element("select", { change: ({ target }) => this.setLayer(target.value) });
    this.controls.append(field("Layer", this.layer));
  }

  setLayer(name) {
    this.state.set("layer", name);
    this.showLayer();
  }

  showLayer() {
    this.redraw();
  }

  async draw(view) {
    const found = this.choice.table(view);
    if (!found) return this.nothing("No run shown here has numbers for each layer.");
    const { tag, table, column } = found;
    const names = table.tensors.map((name) => [name, name]);
    const layer = fillSelect(this.layer, names, this.state.get("layer"));
    const runs = view.runs.filter((run) => run.tables[tag]?.tensors.includes(layer));
    const read = await Promise.all(runs.map((run) => this.curve(view, run, tag, column, layer)));
    if (view.isOld()) return null;
    const all = read.flatMap(({ values }) => values);
    const linear = this.choice.log ? linearWidth(all) : null; // where some are negative
    const log = this.choice.log && linear === null;
    const curves = read.map(({ x, values, run }) => ({
      run: run.name,
      label: run.label,
      color: view.colorOf(run.name),
      dash: [],
      lines: [{ x, values, width: 2 }],
    }));
    const plot = drawChart(this.body, {
      curves,
      axis: view.axis,
      log,
      linear,
      label: `${column.label} of ${layer} by step`,
      unit: column.name,
    });
    return {
      table: {
        columns: ["run", "step", column.name],
        rows: read.flatMap(({ run, curve }) => rowsOf(run.name, [curve])),
      },
      legend: runs.map(({ name, label }) => ({ run: name, label, color: view.colorOf(name) })),
      canvases: [plot.ctx.canvas],
      quantities: view.isKnown(column.name) ? [column.name] : [],
      note:
        thinned(read.map(({ curve }) => curve)) +
        withoutPlace(curves, log) +
        untimed(
          view,
          read.map(({ x }) => ({ seconds: x.length > 0 })),
        ),
    };
  }

  async curve(view, run, tag, column, layer) {
    const row = run.tables[tag].tensors.indexOf(layer);
    const data = await view.source.fan(run.name, tag, column.name, row);
    const curve = { ...data, values: data.values.map(([value]) => value) };
    const [indices, x] = await placeSteps(view, run, curve.steps);
    return { run, curve, x, values: indices.map((i) => curve.values[i]) };
  }

  // It shows all steps.
  showStep() {}

  repaint() {}
}
