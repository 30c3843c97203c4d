// Holds what the panels of curves share: controls for partitions, log axis and smoothing, and the
// colours, labels and table rows of curves.

import { dashOf, paletteColor } from "../drawing/color.js";
import { element, field, toggle } from "../drawing/dom.js";
import { notConverged, partitionLabel, tagOf } from "./names.js";
import { smooth } from "../drawing/numbers.js";

export class CurveControls {
  constructor(changed) {
    this.log = true;
    this.weight = 0;
    this.chosen = null; // partitions; null as long as the user has not chosen
    this.chips = element("fieldset", { class: "chips" }, element("legend", {}, "Geometry"));
    this.changed = changed;
    const scale = toggle("log axis", this.log, (is) => {
      this.log = is;
      changed();
    });
    const output = element("output", {}, "off");
    const slider = element("input", {
      type: "range",
      min: "0",
      max: "0.99",
      step: "0.01",
      value: "0",
    });
    slider.addEventListener("input", () => {
      this.weight = Number(slider.value);
      output.textContent = this.weight ? this.weight.toFixed(2) : "off";
      changed();
    });
    const smoothing = field("Smoothing", slider);
    smoothing.append(output);
    this.nodes = [this.chips, scale, smoothing];
  }

  // Offers partitions and returns those that are chosen, at first the ones in `standard`.
  choose(partitions, standard) {
    const chosen = partitions.filter((name) => (this.chosen ?? standard).includes(name));
    const boxes = partitions.map((name) => {
      const box = element("input", {
        type: "checkbox",
        checked: chosen.includes(name),
        value: name,
      });
      box.addEventListener("change", () => {
        const now = new Set(chosen);
        if (box.checked) now.add(name);
        else now.delete(name);
        this.chosen = [...now];
        this.changed();
      });
      return element("label", { class: "chip" }, box, partitionLabel(name));
    });
    const focused = this.chips.contains(document.activeElement)
      ? document.activeElement.value
      : null;
    this.chips.replaceChildren(this.chips.firstChild, ...boxes);
    if (focused) this.chips.querySelector(`[value="${CSS.escape(focused)}"]`)?.focus();
    this.chips.hidden = partitions.length < 2;
    return chosen;
  }

  line(curve, width) {
    return { steps: curve.steps, values: smooth(curve.values, this.weight), width };
  }
}

// One run: a colour for each partition. Several: a colour for each run, dashes for partitions.
export function styleOf(view, run, partitions, partition) {
  const number = partitions.indexOf(partition);
  if (view.runs.length === 1) return { color: paletteColor(number), dash: [] };
  return { color: view.colorOf(run.name), dash: dashOf(number) };
}

// What tells a curve apart from the others that are shown.
export function labelOf(view, run, chosen, partition) {
  if (view.runs.length === 1) return partitionLabel(partition);
  return chosen.length === 1 ? run.label : `${run.label} · ${partitionLabel(partition)}`;
}

// A mark beside a bracket that has not converged when it was last measured, as in the report; or
// beside a ratio of it to others, if one of these has not.
export function markOf(all, others = []) {
  const isOpen = (index, name) => all[index].get(tagOf("converged", name))?.values.at(-1) === 0;
  return (run, name, index) => ([name, ...others].some((one) => isOpen(index, one)) ? " *" : "");
}

// What the mark means, if any bracket has it.
export function noteOfMarks(view, partitions, mark) {
  const has = (run, index) => partitions.some((name) => mark(run, name, index));
  return view.runs.some(has) ? notConverged() : "";
}

export function legendOf(view, partitions, chosen, ink, mark = () => "") {
  const styled = (partition) => styleOf(view, view.runs[0], partitions, partition);
  if (view.runs.length === 1) {
    return chosen.map((name) => ({
      label: partitionLabel(name) + mark(view.runs[0], name, 0),
      color: styled(name).color,
    }));
  }
  const ofRun = (run, index) =>
    chosen.some((name) => mark(run, name, index)) ? `${run.label} *` : run.label;
  return [
    ...view.runs.map((run, index) => ({ label: ofRun(run, index), color: view.colorOf(run.name) })),
    ...(chosen.length < 2
      ? []
      : chosen.map((name) => ({
          label: partitionLabel(name),
          color: ink,
          dash: styled(name).dash,
        }))),
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
