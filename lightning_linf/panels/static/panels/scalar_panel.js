// A small panel of curves of one kind, which stands on the page where a run has such curves.

import { drawChart } from "../drawing/chart.js";
import { cssColor, element, field } from "../drawing/dom.js";
import { format, smooth } from "../drawing/numbers.js";
import { CurveControls, intervalOf, labelOf, legendOf, lineOf, rowsOf, styleOf } from "./curves.js";
import { Panel, clockSetBack, thinned, untimed, withoutPlace } from "./panel.js";

const HEIGHT = 210;

export class ScalarPanel extends Panel {
  // `about` is { name, title, text, unit, reference, log, canSmooth, mayCoincide, quantities, find,
  // standard }.
  // `find(run)` lists the curves that a run may have: { key, label, read(scalars) }, where `read`
  // gives one curve, or two that are the ends of an interval, or null. `standard(keys)` chooses
  // those that are shown at first.
  constructor(state, about) {
    super(state, about.name, about.title, about.text);
    this.about = about;
    this.curveControls = new CurveControls(state, about.name, "Curves", about.log, () =>
      this.redraw(),
    );
    this.controls.append(...this.curveControls.nodes);
    this.weight = about.canSmooth ? Number(state.get(`${about.name}.smooth`, "0")) : 0;
    if (about.canSmooth) this.controls.append(this.smoothing());
    this.node.hidden = true;
  }

  smoothing() {
    const text = () => (this.weight ? this.weight.toFixed(2) : "off");
    const output = element("output", {}, text());
    const input = ({ target }) => {
      this.weight = Number(target.value);
      this.state.set(`${this.name}.smooth`, target.value, "0");
      output.textContent = text();
      this.redraw();
    };
    const attributes = { type: "range", min: "0", max: "0.99", step: "0.01", value: this.weight };
    const control = field("Smoothing", element("input", { ...attributes, input }));
    control.append(output);
    return control;
  }

  async draw(view) {
    const all = await Promise.all(view.runs.map((run) => view.scalars(run)));
    if (view.isOld()) return null;
    const labels = new Map();
    const found = view.runs.map((run, index) => {
      const offered = this.about
        .find(run)
        .map((curve) => ({ ...curve, ends: curve.read(all[index]) }));
      const measured = offered.filter(({ ends }) => ends !== null);
      for (const { key, label } of measured) labels.set(key, label);
      return new Map(measured.map(({ key, ends }) => [key, ends]));
    });
    this.node.hidden = labels.size === 0;
    if (labels.size === 0) return this.nothing("No run shown here has such curves.");
    const keys = [...labels.keys()];
    const chosen = this.curveControls.choose([...labels], this.about.standard(keys));
    const label = (key) => labels.get(key);
    const { mayCoincide } = this.about;
    const curves = view.runs.flatMap((run, index) =>
      chosen.flatMap((key) => {
        const ends = found[index].get(key);
        const drawn = ends && this.shape(view, ends);
        if (!drawn) return [];
        return [
          {
            ...drawn,
            label: labelOf(view, run, chosen, key, label),
            ...styleOf(view, run, keys, key, mayCoincide),
          },
        ];
      }),
    );
    const shown = found.flatMap((each) => chosen.flatMap((key) => each.get(key) ?? []));
    const scale = this.curveControls.scaleOf(shown.flatMap(({ values }) => values));
    const plot = drawChart(this.body, {
      curves,
      axis: view.axis,
      ...scale,
      reference: this.about.reference ?? null,
      label: `${this.title} by step`,
      unit: this.about.unit,
      height: HEIGHT,
    });
    return {
      table: this.rows(view, chosen, found, label),
      legend: legendOf(view, keys, chosen, label, cssColor("--text"), undefined, mayCoincide),
      canvases: [plot.ctx.canvas],
      quantities: this.about.quantities,
      note: [
        thinned(shown, "points read"),
        untimed(view, shown),
        clockSetBack(shown),
        withoutPlace(curves, scale.log),
        linearNote(scale),
      ].join(""),
    };
  }

  // A smoothed curve has the measured one behind it, faint.
  shape(view, ends) {
    if (ends.length > 1) return intervalOf(view, ...ends);
    const [curve] = ends;
    const smoothed = { ...curve, values: smooth(curve.values, this.weight) };
    const lines = [...lineOf(view, smoothed, 2), ...(this.weight ? lineOf(view, curve, 0.5) : [])];
    const describe = ([value, measured]) => `${format(value)} (measured ${format(measured)})`;
    return lines.length ? { lines, ...(this.weight ? { describe } : {}) } : null;
  }

  rows(view, chosen, found, label) {
    const numEnds = (key) => Math.max(1, ...found.map((each) => each.get(key)?.length ?? 0));
    const columns = chosen.flatMap((key) =>
      numEnds(key) > 1 ? [`${label(key)} lower`, `${label(key)} upper`] : [label(key)],
    );
    const rows = view.runs.flatMap((run, index) => {
      const ends = (key) => found[index].get(key) ?? Array(numEnds(key)).fill(undefined);
      return rowsOf(run.name, chosen.flatMap(ends));
    });
    return { columns: ["run", "step", ...columns], rows };
  }
}

const linearNote = ({ linear }) =>
  linear === null
    ? ""
    : `symlog: about linear within ±${format(linear)}, logarithmic beyond on either side. `;
