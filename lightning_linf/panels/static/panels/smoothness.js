// Panel 2 compares the smoothness of runs along l-infinity, along l2 and under partitions between.

import { drawChart } from "../drawing/chart.js";
import { choice, cssColor } from "../drawing/dom.js";
import { markOf, noteOfMarks } from "./brackets.js";
import { CurveControls, intervalOf, labelOf, legendOf, lineOf, rowsOf, styleOf } from "./curves.js";
import { monitorOf, partitionLabel, partitionsIn, tagOf, withoutPrefix } from "./names.js";
import { Panel, clockSetBack, thinned, untimed, withoutPlace } from "./panel.js";
import { coordinatesOf } from "./report_text.js";

const ABOUT = {
  H:
    "H(Φ)/d is the blockwise smoothness of each geometry, in loss per parameter squared. For Adam " +
    "it is the (1,1)-norm of the Hessian over d, for SGD λ_max; for the others a bound of it. " +
    "All but λ_max are estimates. Lower is smoother.",
  N:
    "N(Φ)/d is the largest curvature that one step can meet, in loss per parameter squared. The " +
    "bar lies between two ends: a step was found that meets the lower one, and the upper one is " +
    "too low for at most 0.25 % of seeds. N(Φ) is at most H(Φ), but an estimate of H(Φ) may fall " +
    "below it; for SGD both are λ_max. Lower is smoother.",
};
const QUANTITIES = {
  H: ["one_one_norm_per_param", "smoothness_upper", "lambda_max"],
  N: ["operator_norm_lower", "operator_norm_upper", "lambda_max"],
};

export class Smoothness extends Panel {
  constructor(state) {
    const kind = state.get("smoothness.kind", "H") === "N" ? "N" : "H";
    super(state, "smoothness", "Smoothness: l-infinity against l2", ABOUT[kind]);
    this.kind = kind;
    this.curveControls = new CurveControls(state, "smoothness", "Geometry", true, () =>
      this.redraw(),
    );
    const kinds = [
      ["H", "H(Φ)/d"],
      ["N", "N(Φ)/d"],
    ];
    this.controls.append(
      choice("Measure", "smoothness-kind", kinds, kind, (chosen) => this.setKind(chosen)),
      ...this.curveControls.nodes,
    );
  }

  setKind(kind) {
    this.kind = kind;
    this.state.set("smoothness.kind", kind, "H");
    this.node.querySelector(".about").textContent = ABOUT[kind];
    this.redraw();
  }

  async draw(view) {
    const measured = partitionsIn(view.runs, ["operator_norm_lower", "smoothness_upper"]);
    const hasGlobal = view.runs.some((run) => run.scalars.includes(tagOf("lambda_max")));
    const partitions = hasGlobal ? [...measured, "global"] : measured;
    const standard = view.runs.length === 1 ? partitions : ["coordinate", "global"];
    const offered = partitions.map((name) => [name, partitionLabel(name)]);
    const chosen = this.curveControls.choose(offered, standard);
    const all = await Promise.all(view.runs.map((run) => view.scalars(run)));
    const reports = await Promise.all(view.runs.map((run) => view.report(run)));
    if (view.isOld()) return null;
    if (!partitions.length) {
      return this.nothing(
        `No run shown here has its smoothness measured. ${monitorOf("lambda_max")} does.`,
      );
    }
    const curves = view.runs.flatMap((run, index) =>
      chosen.flatMap((name) => {
        const drawn = this.shape(view, all[index], name);
        const label = labelOf(view, run, chosen, name, partitionLabel);
        const style = styleOf(view, run, partitions, name);
        return drawn ? [{ ...drawn, ...style, label: label + coordinatesOf(reports[index]) }] : [];
      }),
    );
    const ofSgd = all.map((scalars) => scalars.get(tagOf("lambda_max")));
    const log = this.curveControls.isLog([]);
    const plot = drawChart(this.body, {
      curves,
      axis: view.axis,
      log,
      label: "Smoothness by step",
      unit: `${this.kind}(Φ)/d`,
    });
    const mark = this.kind === "N" ? markOf(all) : () => "";
    return {
      table: this.rows(view, chosen, all),
      legend: legendOf(view, partitions, chosen, partitionLabel, cssColor("--text"), mark),
      canvases: [plot.ctx.canvas],
      quantities: QUANTITIES[this.kind],
      note: [
        thinned(ofSgd, "points read"),
        untimed(view, ofSgd),
        clockSetBack(ofSgd),
        withoutPlace(curves, log),
        noteOfMarks(view, partitions, mark),
      ].join(""),
    };
  }

  // One curve, or the interval between two ends; null if a run has not measured it.
  shape(view, scalars, name) {
    const curves = this.tags(name).map((tag) => scalars.get(tag));
    if (!curves.every(Boolean)) return null;
    if (curves.length > 1) return intervalOf(view, ...curves);
    const lines = lineOf(view, curves[0], 2);
    return lines.length ? { lines } : null;
  }

  tags(name) {
    if (name === "global") return [tagOf("lambda_max")];
    if (this.kind === "N")
      return [tagOf("operator_norm_lower", name), tagOf("operator_norm_upper", name)];
    if (name === "coordinate") return [tagOf("one_one_norm_per_param")];
    return [tagOf("smoothness_upper", name)];
  }

  rows(view, chosen, all) {
    const tags = chosen.flatMap((name) => this.tags(name));
    const columns = tags.map(withoutPrefix);
    const rows = view.runs.flatMap((run, index) =>
      rowsOf(
        run.name,
        tags.map((tag) => all[index].get(tag)),
      ),
    );
    return { columns: ["run", "step", ...columns], rows };
  }
}
