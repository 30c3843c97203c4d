// Holds what the panels of curves share: which curves are shown and on what axis, and their colours,
// labels and table rows.

import { dashOf, paletteColor } from "../drawing/color.js";
import { element, press, toggle } from "../drawing/dom.js";
import { finiteRange } from "../drawing/numbers.js";
import { isFlattened, linearWidth } from "../drawing/symlog.js";
import { MOST_RUNS } from "./panel.js";

const WIDE = 1e3; // positive values that span more are flat on a linear axis

// Boxes that choose among curves, and a button for the axis. `log` is how the axis is at first;
// null leaves it to the values.
export class CurveControls {
  constructor(state, panel, legend, log, changed) {
    Object.assign(this, { state, changed });
    this.keys = `${panel}.curves`;
    this.key = `${panel}.log`;
    this.log = log;
    this.chips = element("fieldset", { class: "chips" }, element("legend", {}, legend));
    this.scale = toggle("log axis", false, (is) => {
      state.set(this.key, String(is), log === null ? null : String(log));
      changed();
    });
    this.nodes = [this.chips, this.scale];
  }

  // Whether the axis of these values is logarithmic: as the reader has chosen, or else as at first.
  isLog(values) {
    const [low, high] = finiteRange(values);
    const isWide = (low > 0 && high > WIDE * low) || isFlattened(values);
    const is = this.state.is(this.key, this.log ?? isWide);
    press(this.scale, is);
    return is;
  }

  // The axis of values of which some may be negative, as a chart takes it.
  scaleOf(values) {
    const isLog = this.isLog(values);
    const linear = isLog && this.log === null ? linearWidth(values) : null;
    return { log: isLog && linear === null, linear };
  }

  // Offers [key, label] pairs and returns the keys that are chosen, at first those in `standard`.
  choose(offered, standard) {
    const wanted = this.state.getList(this.keys) ?? standard;
    const chosen = offered.map(([key]) => key).filter((key) => wanted.includes(key));
    const change = () => {
      const boxes = [...this.chips.querySelectorAll("input")];
      this.state.setList(
        this.keys,
        boxes.filter((box) => box.checked).map((box) => box.value),
      );
      this.changed();
    };
    const chip = ([value, label]) => {
      const checked = chosen.includes(value);
      const box = element("input", { type: "checkbox", checked, value, change });
      return element("label", { class: "chip" }, box, label);
    };
    const focused = this.chips.contains(document.activeElement)
      ? document.activeElement.value
      : null;
    this.chips.replaceChildren(this.chips.firstChild, ...offered.map(chip));
    if (focused) this.chips.querySelector(`[value="${CSS.escape(focused)}"]`)?.focus();
    this.chips.hidden = offered.length < 2;
    return chosen;
  }
}

// A line of a chart, on the page's axis; none where the axis is the time, which was not recorded.
export function lineOf(view, { steps, seconds, values }, width) {
  const x = view.axis.kind === "time" ? seconds : steps;
  return x ? [{ x, values, width }] : [];
}

// An interval between two curves, and a line inside of it, if there is one.
export function intervalOf(view, lower, upper, inside = null) {
  const lines = [...lineOf(view, lower, inside ? 0 : 1), ...lineOf(view, upper, 0)];
  if (lines.length < 2) return null;
  const alpha = 0.14 * Math.min(1, MOST_RUNS / view.runs.length); // areas of many lie on each other
  return {
    lines: [...lines, ...(inside ? lineOf(view, inside, 2.5) : [])],
    fills: [[1, 0, alpha]],
    bars: [[1, 0]],
  };
}

// One run: a colour for each curve. Several: a colour for each run, dashes for curves. Where curves
// may lie on each other (`mayCoincide`), those of one run have dashes, too.
export function styleOf(view, run, keys, key, mayCoincide = false) {
  const number = keys.indexOf(key);
  const isOne = view.runs.length === 1;
  const color = isOne ? paletteColor(number) : view.colorOf(run.name);
  return { run: run.name, color, dash: isOne && !mayCoincide ? [] : dashOf(number) };
}

// What tells a curve apart from the others that are shown.
export function labelOf(view, run, chosen, key, label) {
  if (view.runs.length === 1) return label(key);
  return chosen.length === 1 ? run.label : `${run.label} · ${label(key)}`;
}

// `mark(run, key, index)` is added to the labels of what is marked.
export function legendOf(view, keys, chosen, label, ink, mark = () => "", mayCoincide = false) {
  const styled = (key) => styleOf(view, view.runs[0], keys, key, mayCoincide);
  if (view.runs.length === 1) {
    return chosen.map((key) => ({
      label: label(key) + mark(view.runs[0], key, 0),
      color: styled(key).color,
      dash: styled(key).dash,
    }));
  }
  const ofRun = (run, index) =>
    chosen.some((key) => mark(run, key, index)) ? `${run.label} *` : run.label;
  return [
    ...view.runs.map((run, index) => ({
      run: run.name,
      label: ofRun(run, index),
      color: view.colorOf(run.name),
    })),
    ...(chosen.length < 2
      ? []
      : chosen.map((key) => ({ label: label(key), color: ink, dash: styled(key).dash }))),
  ];
}

// Makes rows of a table, [run, step, value of each curve], for the steps of any of the curves. A
// curve that was not measured is undefined.
export function rowsOf(run, curves) {
  const steps = new Set(curves.flatMap((curve) => curve?.steps ?? []));
  const lookups = curves.map(
    (curve) => new Map(curve?.steps.map((step, i) => [step, curve.values[i]])),
  );
  return [...steps]
    .sort((a, b) => a - b)
    .map((step) => [run, step, ...lookups.map((values) => values.get(step) ?? NaN)]);
}
