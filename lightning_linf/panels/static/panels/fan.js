// Panel 4 shows how the sizes of the gradient's entries are spread, as quantiles over steps.

import { drawChart } from "../drawing/chart.js";
import { element, field, fillSelect } from "../drawing/dom.js";
import { monitorOf, tableSuffix } from "./names.js";
import { format } from "../drawing/numbers.js";
import { Panel, thinned } from "./panel.js";

export class Fan extends Panel {
  constructor() {
    super(
      "fan",
      "Spread of the gradient: quantiles of log₁₀|g|",
      "Half of the non-zero entries of the gradient lie in the dark band, 98 % in the light one. " +
        "A wide fan is a gradient whose coordinates differ by orders of magnitude.",
    );
    this.run = element("select", { change: () => this.redraw() });
    this.row = element("select", { change: () => this.redraw() });
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
      `${run.name}\n${tag}`,
      [run.label, tableSuffix(tag)].filter(Boolean).join(" · "),
    ]);
    const key = fillSelect(this.run, keys, this.run.value);
    const chosen = tables[keys.findIndex(([value]) => value === key)];
    if (!chosen)
      return this.nothing(
        `No run shown here has quantiles. ${monitorOf("log10_quantiles")} measures them.`,
      );
    const { run, tag, table, column } = chosen;
    const names = [...table.tensors, ...(table.whole ? ["all parameters"] : [])];
    const order = table.whole ? [names.length - 1, ...table.tensors.keys()] : [...names.keys()];
    const row = Number(
      fillSelect(
        this.row,
        order.map((i) => [String(i), names[i]]),
        this.row.value,
      ),
    );
    const fan = await view.source.fan(run.name, tag, column.name, row);
    if (view.isOld()) return null;
    const color = view.colorOf(run.name);
    const plot = drawChart(this.body, {
      curves: [this.curve(fan, column.levels, names[row], color)],
      log: false,
      label: `Quantiles of log10 of the gradient of ${names[row]} by step`,
      unit: "log₁₀|g|",
    });
    return {
      table: {
        columns: ["step", ...column.levels.map((level) => `${100 * level} %`)],
        rows: fan.steps.map((step, i) => [step, ...fan.values[i]]),
      },
      legend: [
        { label: `${run.label} · ${names[row]}: median and bands of 50 %, 90 %, 98 %`, color },
      ],
      canvases: [plot.ctx.canvas],
      note: [thinned([fan]), fan.note ?? ""].join(""),
    };
  }

  curve(fan, levels, label, color) {
    const middle = levels.indexOf(0.5);
    return {
      label,
      color,
      dash: [],
      lines: levels.map((_, level) => ({
        steps: fan.steps,
        values: fan.values.map((row) => row[level]),
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
}
