// Panel 2 compares the smoothness of runs along l-infinity, along l2 and under partitions between.

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
import { cssColor, element } from "../drawing/dom.js";
import { monitorOf, partitionsIn, tagOf, withoutPrefix } from "./names.js";
import { Panel, thinned } from "./panel.js";

const ABOUT = {
  H:
    "H(Φ)/d is the blockwise smoothness of each geometry, in loss per parameter squared. For Adam " +
    "it is the (1,1)-norm of the Hessian over d, for SGD λ_max; for the others a bound of it. " +
    "All but λ_max are estimates. Lower is smoother.",
  N:
    "N(Φ)/d is the largest curvature that one step can meet, in loss per parameter squared. The " +
    "area lies between two ends: a step was found that meets the lower one, and the upper one is " +
    "too low for at most 0.25 % of seeds. N(Φ) is at most H(Φ), but an estimate of H(Φ) may fall " +
    "below it; for SGD both are λ_max. Lower is smoother.",
};

export class Smoothness extends Panel {
  constructor() {
    super("smoothness", "Smoothness: l-infinity against l2", ABOUT.H);
    this.kind = "H";
    this.curveControls = new CurveControls(() => this.redraw());
    const kinds = element(
      "fieldset",
      { class: "chips" },
      element("legend", {}, "Measure"),
      ...Object.entries({ H: "H(Φ)/d", N: "N(Φ)/d" }).map(([kind, text]) =>
        element(
          "label",
          { class: "chip" },
          element("input", {
            type: "radio",
            name: "smoothness-kind",
            value: kind,
            checked: kind === this.kind,
            change: () => this.setKind(kind),
          }),
          text,
        ),
      ),
    );
    this.controls.append(kinds, ...this.curveControls.nodes);
  }

  setKind(kind) {
    this.kind = kind;
    this.node.querySelector(".about").textContent = ABOUT[kind];
    this.redraw();
  }

  async draw(view) {
    const measured = partitionsIn(view.runs, ["operator_norm_lower", "smoothness_upper"]);
    const hasGlobal = view.runs.some((run) => run.scalars.includes(tagOf("lambda_max")));
    const partitions = hasGlobal ? [...measured, "global"] : measured;
    const standard = view.runs.length === 1 ? partitions : ["coordinate", "global"];
    const chosen = this.curveControls.choose(partitions, standard);
    const all = await Promise.all(view.runs.map((run) => view.scalars(run)));
    if (view.isOld()) return null;
    if (!partitions.length) {
      return this.nothing(
        `No run shown here has its smoothness measured. ${monitorOf("lambda_max")} does.`,
      );
    }
    const curves = view.runs.flatMap((run, index) =>
      chosen.flatMap((name) => {
        const ends = this.ends(all[index], name);
        return ends.length === 0
          ? []
          : [
              {
                label: labelOf(view, run, chosen, name),
                ...styleOf(view, run, partitions, name),
                lines: ends.map((curve) => this.curveControls.line(curve, ends.length > 1 ? 1 : 2)),
                fills: ends.length > 1 ? [[1, 0, 0.22]] : [],
              },
            ];
      }),
    );
    const plot = drawChart(this.body, {
      curves,
      log: this.curveControls.log,
      label: "Smoothness by step",
      unit: `${this.kind}(Φ)/d`,
    });
    const mark = this.kind === "N" ? markOf(all) : () => "";
    return {
      table: this.rows(view, chosen, all),
      legend: legendOf(view, partitions, chosen, cssColor("--text"), mark),
      canvases: [plot.ctx.canvas],
      note:
        thinned(
          all.map((scalars) => scalars.get(tagOf("lambda_max"))),
          "points read",
        ) + noteOfMarks(view, partitions, mark),
    };
  }

  // The curve, or both ends; none if a run has not measured it.
  ends(scalars, name) {
    const tags = this.tags(name).map((tag) => scalars.get(tag));
    return tags.every(Boolean) ? tags : [];
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
