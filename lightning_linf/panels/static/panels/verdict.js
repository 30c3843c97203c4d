// Panel 1 shows each run's verdict, in the words of its report, and over time what it rests on.

import { drawChart } from "../drawing/chart.js";
import {
  CurveControls,
  labelOf,
  legendOf,
  markOf,
  noteOfMarks,
  rowsOf,
  styleOf,
} from "./curves.js";
import { cssColor, element, swatch } from "../drawing/dom.js";
import { monitorOf, partitionLabel, partitionsIn, shortLabel, tagOf, unitOf } from "./names.js";
import { format, formatRange, formatStep } from "../drawing/numbers.js";
import { Panel, thinned } from "./panel.js";
import { reportText } from "./report_text.js";

export class Verdict extends Panel {
  constructor() {
    super(
      "verdict",
      "Verdict: one step of Adam's geometry and of others against SGD's",
      "How many times as far as SGD's best step the best step of each geometry lowers the loss, to " +
        "second order. Dots and thick lines: if each meets the curvature along itself. Bars and " +
        "areas: if each meets the largest that it can, between two ends. Above 1, the thin line, " +
        "one step is ahead of SGD's.",
    );
    this.curveControls = new CurveControls(() => this.redraw());
    this.controls.append(...this.curveControls.nodes);
  }

  async draw(view) {
    const partitions = partitionsIn(view.runs, ["advantage_lower"]);
    const standard = view.runs.length === 1 ? partitions : ["coordinate"];
    const chosen = this.curveControls.choose(partitions, standard);
    const all = await Promise.all(view.runs.map((run) => view.scalars(run)));
    const reports = await Promise.all(view.runs.map((run) => view.report(run)));
    if (view.isOld()) return null;
    if (!partitions.length) {
      return this.nothing(
        `No run shown here has a verdict. ${monitorOf("advantage_lower")} measures it.`,
      );
    }
    const curves = view.runs.flatMap((run, index) =>
      chosen.flatMap((name) => this.bracket(view, run, all[index], partitions, chosen, name)),
    );
    this.lead.replaceChildren(summary(view, partitions, all, reports));
    const plot = drawChart(this.body, {
      curves,
      log: this.curveControls.log,
      reference: 1,
      label: "Advantage over SGD's geometry by step",
      unit: unitOf("advantage_lower"),
    });
    const mark = markOf(all, ["global"]);
    return {
      table: this.rows(view, chosen, all),
      legend: legendOf(view, partitions, chosen, cssColor("--text"), mark),
      canvases: [plot.ctx.canvas],
      note:
        thinned(
          all.map((scalars) => scalars.get(tagOf("advantage_lower", "coordinate"))),
          "points read",
        ) + noteOfMarks(view, partitions, mark),
    };
  }

  bracket(view, run, scalars, partitions, chosen, name) {
    const [along, , lower, upper] = curvesOf(scalars, name);
    if (!lower || !upper) return [];
    const line = (curve, width) => this.curveControls.line(curve, width);
    return [
      {
        label: labelOf(view, run, chosen, name),
        ...styleOf(view, run, partitions, name),
        lines: [line(lower, 1), line(upper, 1), ...(along ? [line(along, 2.5)] : [])],
        fills: [[1, 0, 0.22]],
        describe: ([low, high, own = NaN]) =>
          `${format(own)} (${formatRange(low, high)} at worst)`,
      },
    ];
  }

  rows(view, chosen, all) {
    const ends = ["along g", "relative error", "lower", "upper"];
    const columns = chosen.flatMap((name) => ends.map((end) => `${name} ${end}`));
    const rows = view.runs.flatMap((run, index) =>
      rowsOf(
        run.name,
        chosen.flatMap((name) => curvesOf(all[index], name)),
      ),
    );
    return { columns: ["run", "step", ...columns], rows };
  }
}

const QUANTITIES = [
  "step_advantage",
  "step_advantage_relative_error",
  "advantage_lower",
  "advantage_upper",
];

const curvesOf = (scalars, name) =>
  QUANTITIES.map((quantity) => scalars.get(tagOf(quantity, name)));

function last(scalars, name) {
  const [along, , lower, upper] = curvesOf(scalars, name);
  if (!lower || !upper) return null;
  const uppers = new Map(upper.steps.map((step, i) => [step, upper.values[i]]));
  const at = lower.steps.findLastIndex((step) => uppers.has(step)); // one end is written first
  if (at < 0) return null;
  const step = lower.steps[at];
  const own = along?.values[along.steps.lastIndexOf(step)] ?? NaN;
  return { step, along: own, lower: lower.values[at], upper: uppers.get(step) };
}

// For each run its verdict, the steps of each geometry on one axis, and its last report.
function summary(view, partitions, all, reports) {
  const found = all.map((scalars) => partitions.map((name) => last(scalars, name)));
  const numbers = found.flat().flatMap((end) => (end ? [end.along, end.lower, end.upper] : []));
  const shown = numbers.filter((value) => Number.isFinite(value) && value > 0);
  const [low, high] = [Math.min(0.8, ...shown) / 1.1, Math.max(1.25, ...shown) * 1.1];
  const mark = markOf(all, ["global"]);
  const place = (value) => {
    if (!(value > 0)) return 0;
    const at = Math.log(value / low) / Math.log(high / low);
    return 100 * Math.min(1, at);
  };
  return element(
    "div",
    { class: "verdicts" },
    ...view.runs.map((run, index) => {
      const adam = last(all[index], "coordinate");
      if (!adam) return null;
      const report = reports[index] ?? { error: "Its records hold no report." };
      const name = element("span", { title: run.name }, run.label);
      return element(
        "article",
        { class: "verdict" },
        element("h3", {}, swatch(view.colorOf(run.name)), name),
        report.error
          ? null
          : element("p", { class: "figure" }, element("b", {}, report.verdict_status)),
        element("p", { class: "muted" }, `at step ${formatStep(adam.step)}`),
        element(
          "dl",
          { class: "brackets" },
          ...partitions.flatMap((name, number) =>
            bracketRow(
              name,
              mark(run, name, index),
              found[index][number],
              place,
              styleOf(view, run, partitions, name).color,
            ),
          ),
        ),
        ...reportText(report),
      );
    }),
  );
}

function bracketRow(name, mark, end, place, color) {
  if (!end) return [];
  const bar = element("i", { class: "bar" });
  const [from, to] = [place(end.lower), place(end.upper)];
  bar.style.left = `${from}%`;
  bar.style.width = `max(4px, ${to - from}%)`;
  bar.style.background = color;
  const one = element("i", { class: "one", title: "1: as SGD" });
  one.style.left = `${place(1)}%`;
  const dot = element("i", { class: "dot", hidden: Number.isNaN(end.along) });
  dot.style.left = `${place(end.along)}%`;
  dot.style.background = color;
  return [
    element("dt", { title: partitionLabel(name) }, shortLabel(name) + mark),
    element(
      "dd",
      {},
      element("span", { class: "track" }, one, bar, dot),
      element("b", { class: "along" }, format(end.along)),
      element("span", { class: "range" }, formatRange(end.lower, end.upper)),
    ),
  ];
}
