// Panel 4 shows how the sizes of the gradient's entries are spread, as quantiles over steps.

import { drawChart } from "../drawing/chart.js";
import { element, field, fillSelect } from "../drawing/dom.js";
import { format } from "../drawing/numbers.js";
import { monitorOf, tableSuffix } from "./names.js";
import { Panel, thinned } from "./panel.js";
import { placeSteps } from "./times.js";

const WHOLE = ""; // stands for all parameters together; a layer goes by its name

export class Fan extends Panel {
  constructor(state) {
    super(
      state,
      "fan",
      "Spread of the gradient: quantiles of log₁₀|g|",
      "Half of the non-zero entries of the gradient lie in the dark band, 98 % in the light one. " +
        "A wide fan is a gradient whose coordinates differ by orders of magnitude.",
    );
    const select = (key) => {
      const change = ({ target }) => {
        state.set(key, target.value, WHOLE);
        this.redraw();
      };
      return element("select", { change });
    };
    [this.run, this.row] = [select("fan.run"), select("fan.row")];
    this.controls.append(field("Run", this.run), field("Parameters", this.row));
  }

  async draw(view) {
    const tables = view.runs.flatMap((run) =>
      Object.entries(run.tables).flatMap(([tag, table]) => {
        const column = table.columns.find(({ levels }) => levels.length > 0);
        return column ? [{ run, tag, table, column }] : [];
      }),
    );
    const keys = tables.map(({ run, tag }) => [
      [run.name, tableSuffix(tag)].filter(Boolean).join(" · "),
      [run.label, tableSuffix(tag)].filter(Boolean).join(" · "),
    ]);
    const key = fillSelect(this.run, keys, this.state.get("fan.run"));
    const chosen = tables[keys.findIndex(([value]) => value === key)];
    if (!chosen)
      return this.nothing(
        `No run shown here has quantiles. ${monitorOf("log10_quantiles")} measures them.`,
      );
    const { run, tag, table, column } = chosen;
    const whole = table.whole ? [[WHOLE, "all parameters"]] : [];
    const options = [...whole, ...table.tensors.map((name) => [name, name])];
    const layer = fillSelect(this.row, options, this.state.get("fan.row", WHOLE));
    const row = layer === WHOLE ? table.tensors.length : table.tensors.indexOf(layer);
    const name = layer || "all parameters";
    const fan = await view.source.fan(run.name, tag, column.name, row);
    const [indices, x] = await placeSteps(view, run, fan.steps);
    if (view.isOld()) return null;
    if (!indices.length) throw new Error("The records of this run come without times.");
    const color = view.colorOf(run.name);
    const rows = indices.map((i) => fan.values[i]);
    const plot = drawChart(this.body, {
      curves: [{ run: run.name, label: name, color, ...fanOf(x, rows, column.levels) }],
      axis: view.axis,
      log: false,
      label: `Quantiles of log10 of the gradient of ${name} by step`,
      unit: "log₁₀|g|",
    });
    return {
      table: {
        columns: ["step", ...column.levels.map((level) => `${100 * level} %`)],
        rows: fan.steps.map((step, i) => [step, ...fan.values[i]]),
      },
      legend: [{ label: `${run.label} · ${name}: median and bands of 50 %, 90 %, 98 %`, color }],
      canvases: [plot.ctx.canvas],
      quantities: ["log10_quantiles"],
      note: [thinned([fan]), fan.note ?? ""].join(""),
    };
  }
}

function fanOf(x, rows, levels) {
  const middle = levels.indexOf(0.5);
  return {
    dash: [],
    lines: levels.map((_, level) => ({
      x,
      values: rows.map((row) => row[level]),
      width: level === middle ? 2 : 0,
    })),
    fills: Array.from({ length: Math.floor(levels.length / 2) }, (_, i) => [
      levels.length - 1 - i,
      i,
      0.16,
    ]),
    describe: (values) =>
      `${format(values[middle])} (${format(values[0])} to ${format(values.at(-1))})`,
  };
}
