// Panel 1 shows which geometry each run's landscape favours, at the last step and over time.

import { drawChart } from "../drawing/chart.js";
import { CurveControls, labelOf, legendOf, rowsOf, styleOf } from "./curves.js";
import { cssColor, element, swatch } from "../drawing/dom.js";
import { monitorOf, partitionLabel, partitionsIn, shortLabel, tagOf, unitOf } from "./names.js";
import { formatRange, formatStep } from "../drawing/numbers.js";
import { Panel, thinned } from "./panel.js";
import { reportText } from "./report_text.js";

export class Verdict extends Panel {
  constructor() {
    super(
      "verdict",
      "Verdict: which optimizer the landscape favours",
      "How many times the loss decrease of SGD's geometry one step of each geometry promises. " +
        "Above 1, the thin line, it is ahead of SGD. Areas and bars lie between its two ends.",
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
    return {
      table: this.rows(view, chosen, all),
      legend: legendOf(view, partitions, chosen, cssColor("--text")),
      canvases: [plot.ctx.canvas],
      note: thinned(
        all.map((scalars) => scalars.get(tagOf("advantage_lower", "coordinate"))),
        "points read",
      ),
    };
  }

  bracket(view, run, scalars, partitions, chosen, name) {
    const [lower, upper] = ends(scalars, name);
    if (!lower || !upper) return [];
    const line = (curve) => this.curveControls.line(curve, 1);
    return [
      {
        label: labelOf(view, run, chosen, name),
        ...styleOf(view, run, partitions, name),
        lines: [line(lower), line(upper)],
        fills: [[1, 0, 0.22]],
      },
    ];
  }

  rows(view, chosen, all) {
    const columns = chosen.flatMap((name) => [`${name} lower`, `${name} upper`, `${name} along g`]);
    const rows = view.runs.flatMap((run, index) =>
      rowsOf(
        run.name,
        chosen.flatMap((name) => [
          ...ends(all[index], name),
          all[index].get(tagOf("step_advantage", name)),
        ]),
      ),
    );
    return { columns: ["run", "step", ...columns], rows };
  }
}

const ends = (scalars, name) =>
  ["advantage_lower", "advantage_upper"].map((quantity) => scalars.get(tagOf(quantity, name)));

function last(scalars, name) {
  const [lower, upper] = ends(scalars, name);
  if (!lower || !upper) return null;
  const uppers = new Map(upper.steps.map((step, i) => [step, upper.values[i]]));
  const at = lower.steps.findLastIndex((step) => uppers.has(step)); // one end is written first
  if (at < 0) return null;
  const step = lower.steps[at];
  return { step, lower: lower.values[at], upper: uppers.get(step) };
}

// For each run the bracket of each geometry on one axis, and its last report.
function summary(view, partitions, all, reports) {
  const found = all.map((scalars) => partitions.map((name) => last(scalars, name)));
  const numbers = found.flat().flatMap((end) => (end ? [end.lower, end.upper] : []));
  const shown = numbers.filter((value) => Number.isFinite(value) && value > 0);
  const [low, high] = [Math.min(0.8, ...shown) / 1.1, Math.max(1.25, ...shown) * 1.1];
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
        element(
          "p",
          { class: "figure" },
          element("b", {}, formatRange(adam.lower, adam.upper)),
          " × SGD",
        ),
        element("p", { class: "muted" }, `at step ${formatStep(adam.step)}`),
        element(
          "dl",
          { class: "brackets" },
          ...partitions.flatMap((name, number) =>
            bracketRow(
              name,
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

function bracketRow(name, end, place, color) {
  if (!end) return [];
  const bar = element("i", { class: "bar" });
  const [from, to] = [place(end.lower), place(end.upper)];
  bar.style.left = `${from}%`;
  bar.style.width = `max(4px, ${to - from}%)`;
  bar.style.background = color;
  const one = element("i", { class: "one", title: "1: as SGD" });
  one.style.left = `${place(1)}%`;
  return [
    element("dt", { title: partitionLabel(name) }, shortLabel(name)),
    element(
      "dd",
      {},
      element("span", { class: "track" }, one, bar),
      element("span", { class: "range" }, formatRange(end.lower, end.upper)),
    ),
  ];
}
