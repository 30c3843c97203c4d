// Holds what panels 3 and 5 share: the choice of a run, a quantity, layers and a step.

import { element, field, fillSelect, onWidth, toggle } from "../drawing/dom.js";
import { tableSuffix } from "./names.js";
import { finiteRange } from "../drawing/numbers.js";
import { Panel, thinned } from "./panel.js";

export class LayerChoice {
  constructor() {
    this.panels = [];
    this.log = false;
    this.step = null; // the last one, unless chosen
    this.run = element("select", { change: () => this.changed() });
    this.quantity = element("select", { change: () => this.changed() });
    this.filter = element("input", {
      type: "search",
      placeholder: "e.g. mlp weight",
      input: () => this.changed(),
    });
    const scale = toggle("log scale", this.log, (is) => {
      this.log = is;
      this.changed();
    });
    this.node = element(
      "div",
      { class: "controls shared", role: "group", "aria-label": "Layers" },
      field("Run", this.run),
      field("Quantity", this.quantity),
      field("Filter layers", this.filter),
      scale,
    );
  }

  changed() {
    return Promise.all(this.panels.map((panel) => panel.redraw()));
  }

  setStep(step) {
    this.step = step;
    for (const panel of this.panels) panel.showStep();
  }

  // The chosen data, or null if there are none.
  async read(view) {
    const runs = view.runs.filter((run) => Object.keys(run.tables).length > 0);
    const name = fillSelect(
      this.run,
      runs.map((run) => [run.name, run.label]),
      this.run.value,
    );
    const run = runs.find((one) => one.name === name);
    if (!run) return null;
    const offered = Object.entries(run.tables).flatMap(([tag, table]) =>
      table.columns
        .filter(({ width }) => width === 1)
        .map((column) => ({ key: `${tag}\n${column.name}`, tag, table, column })),
    );
    const text = ({ tag, column }) => [column.label, tableSuffix(tag)].filter(Boolean).join(" · ");
    const preferred = offered.find(({ column }) => column.name === "density");
    const options = offered.map((one) => [one.key, text(one)]);
    const wanted = this.quantity.value || preferred?.key;
    const key = fillSelect(this.quantity, options, wanted);
    const { tag, table, column } = offered.find((one) => one.key === key);
    const words = this.filter.value.toLowerCase().split(/\s+/);
    const rows = [...table.tensors.keys()].filter((row) =>
      words.every((word) => table.tensors[row].toLowerCase().includes(word)),
    );
    const data = await view.source.layers(run.name, tag, column.name);
    return { run, names: rows.map((row) => table.tensors[row]), rows, column, data };
  }

  // The index of the chosen step among those that are shown.
  indexOf(steps) {
    if (this.step === null) return steps.length - 1;
    return steps.reduce(
      (best, step, i) =>
        Math.abs(step - this.step) < Math.abs(steps[best] - this.step) ? i : best,
      0,
    );
  }

  // A value's place between the least and the largest one.
  position(values) {
    const usable = this.log ? values.filter((value) => value > 0) : values;
    const [low, high] = finiteRange(usable);
    const map = this.log ? Math.log : (value) => value;
    const width = map(high) - map(low);
    const place = (value) => {
      if (this.log && !(value > 0)) return NaN; // a logarithm has no place for it
      return width > 0 ? (map(value) - map(low)) / width : value === low ? 0.5 : NaN;
    };
    return { low, high, place };
  }
}

export class LayerPanel extends Panel {
  constructor(choice, ...texts) {
    super(...texts);
    this.choice = choice;
    choice.panels.push(this);
    onWidth(this.body, () => {
      if (this.drawn?.canvases.length) this.drawn.canvases = this.paint();
    });
  }

  async draw(view) {
    const chosen = await this.choice.read(view);
    if (view.isOld()) return null;
    if (!chosen || !chosen.data.steps.length)
      return this.nothing("No run shown here has numbers for each layer.");
    if (!chosen.rows.length)
      return this.nothing(`No layer's name contains “${this.choice.filter.value}”.`);
    this.chosen = chosen;
    const canvases = this.paint();
    const { data, run, column } = chosen;
    return {
      table: this.rows(),
      legend: [{ label: `${run.label} · ${column.label}`, color: view.colorOf(run.name) }],
      canvases,
      note: [thinned([data]), data.note ?? ""].join(""),
    };
  }
}
