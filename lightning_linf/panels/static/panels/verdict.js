// Panel 1 shows each run's verdict, in the words of its report, and over time what it rests on.

import { drawChart } from "../drawing/chart.js";
import { cssColor } from "../drawing/dom.js";
import { format, formatRange } from "../drawing/numbers.js";
import { markOf, noteOfMarks } from "./brackets.js";
import { CurveControls, intervalOf, labelOf, legendOf, rowsOf, styleOf } from "./curves.js";
import { monitorOf, partitionLabel, partitionsIn, tagOf, unitOf } from "./names.js";
import { MOST_RUNS, Panel, clockSetBack, thinned, untimed, withoutPlace } from "./panel.js";
import { failureOf, lastOf } from "./last.js";
import { coordinatesOf } from "./report_text.js";
import { Cards } from "./verdict_cards.js";
import { verdictTable } from "./verdict_table.js";

const QUANTITIES = [
  "step_advantage",
  "step_advantage_relative_error",
  "advantage_lower",
  "advantage_upper",
];

export class Verdict extends Panel {
  constructor(state) {
    super(
      state,
      "verdict",
      "Verdict: one step of Adam's geometry and of others against SGD's",
      "How many times as far as SGD's best step the best step of each geometry lowers the loss, to " +
        "second order. Dots and thick lines: if each meets the curvature along itself. Bars: if " +
        "each meets the largest that it can, between two ends. Above 1, the thin line, one step is " +
        "ahead of SGD's.",
    );
    this.curveControls = new CurveControls(state, "verdict", "Geometry", true, () => this.redraw());
    this.controls.append(...this.curveControls.nodes);
    this.cards = new Cards();
  }

  async draw(view) {
    const partitions = partitionsIn(view.runs, ["advantage_lower"]);
    const standard = view.runs.length === 1 ? partitions : ["coordinate"];
    const offered = partitions.map((name) => [name, partitionLabel(name)]);
    const chosen = this.curveControls.choose(offered, standard);
    const all = await Promise.all(view.runs.map((run) => view.scalars(run)));
    const reports = await Promise.all(view.runs.map((run) => view.report(run)));
    if (view.isOld()) return null;
    const mark = markOf(all, ["global"]);
    const runs = view.runs.map((run, index) => ({
      run,
      report: reports[index] ?? { error: "Its records hold no report." },
      failure: failureOf(run, all[index]),
      ends: new Map(partitions.map((name) => [name, lastOf(all[index], name)])),
      mark: (name) => mark(run, name, index),
    }));
    const told = runs.filter(({ ends, failure }) => ends.get("coordinate") || failure);
    if (!told.length) {
      return this.nothing(
        `No run shown here has a verdict. ${monitorOf("advantage_lower")} measures it.`,
      );
    }
    const lead = told.length > MOST_RUNS ? verdictTable(view, told) : this.cards.draw(view, told);
    this.lead.replaceChildren(lead);
    const curves = view.runs.flatMap((run, index) =>
      chosen.flatMap((name) => {
        const drawn = bracket(view, all[index], name);
        const label = labelOf(view, run, chosen, name, partitionLabel);
        const style = styleOf(view, run, partitions, name);
        return drawn ? [{ ...drawn, ...style, label: label + coordinatesOf(reports[index]) }] : [];
      }),
    );
    const ofAdam = all.map((scalars) => scalars.get(tagOf("advantage_lower", "coordinate")));
    const log = this.curveControls.isLog([]);
    const plot = drawChart(this.body, {
      curves,
      axis: view.axis,
      log,
      reference: 1,
      label: "Advantage over SGD's geometry by step",
      unit: unitOf("advantage_lower"),
    });
    return {
      table: this.rows(view, chosen, all),
      legend: legendOf(view, partitions, chosen, partitionLabel, cssColor("--text"), mark),
      canvases: [plot.ctx.canvas],
      quantities: QUANTITIES,
      note: [
        thinned(ofAdam, "points read"),
        untimed(view, ofAdam),
        clockSetBack(ofAdam),
        withoutPlace(curves, log),
        noteOfMarks(view, partitions, mark),
      ].join(""),
    };
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

function bracket(view, scalars, name) {
  const [along, , lower, upper] = curvesOf(scalars, name);
  const drawn = lower && upper && intervalOf(view, lower, upper, along);
  const describe = ([low, high, own = NaN]) =>
    `${format(own)} (${formatRange(low, high)} at worst)`;
  return drawn ? { ...drawn, describe } : null;
}

const curvesOf = (scalars, name) =>
  QUANTITIES.map((quantity) => scalars.get(tagOf(quantity, name)));
