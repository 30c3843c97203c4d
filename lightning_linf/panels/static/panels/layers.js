// Holds what panels 3 and 5 share: the choice of a run, a quantity, rows, a step, and what stands
// beside it.

import { element, field, fillSelect, onWidth, toggle } from "../drawing/dom.js";
import { finiteRange, formatStep } from "../drawing/numbers.js";
import { ORDERS, arrange, rowValues, sharedPrefix } from "./layer_rows.js";
import { tableSuffix } from "./names.js";
import { Panel, thinned } from "./panel.js";

export class LayerChoice {
  constructor(state) {
    this.state = state;
    this.panels = [];
    this.log = state.is("layers.log", false);
    this.grouped = state.is("layers.grouped", false);
    this.run = this.select("layers.run");
    this.quantity = this.select("layers.quantity");
    this.order = this.select("layers.order");
    this.filter = element("input", {
      type: "search",
      placeholder: "e.g. mlp weight",
      value: state.get("layers.filter", ""),
      input: () => this.set("layers.filter", this.filter.value, ""),
    });
    const button = (text, name) =>
      toggle(text, this[name], (is) => {
        this[name] = is;
        state.setIs(`layers.${name}`, is, false);
        this.changed();
      });
    const scale = button("log scale", "log");
    const group = button("by block", "grouped");
    this.node = element(
      "div",
      { class: "controls shared", role: "group", "aria-label": "Layers" },
      field("Run", this.run),
      field("Quantity", this.quantity),
      field("Filter layers", this.filter),
      field("Sort by", this.order),
      group,
      scale,
    );
  }

  select(key) {
    return element("select", { change: ({ target }) => this.set(key, target.value) });
  }

  set(key, word, otherwise = null) {
    this.state.set(key, word, otherwise);
    return this.changed();
  }

  changed() {
    return Promise.all(this.panels.map((panel) => panel.redraw()));
  }

  setStep(step) {
    this.state.set("layers.step", String(step));
    if (this.order.value === "value") return this.changed(); // rows change places
    for (const panel of this.panels) panel.showStep();
  }

  // Shows a layer over the runs, or folds or unfolds a block.
  choose(row) {
    if (row.block === null) {
      this.state.set("layer", row.name);
      for (const panel of this.panels) panel.showLayer();
      return;
    }
    const unfolded = this.state.getList("layers.unfolded") ?? [];
    const others = unfolded.filter((block) => block !== row.block);
    const isOpen = others.length < unfolded.length;
    this.state.setList("layers.unfolded", isOpen ? others : [...unfolded, row.block]);
    this.changed();
  }

  // The table and the column that are chosen, or null if no run has any.
  table(view) {
    const runs = view.runs.filter((run) => Object.keys(run.tables).length > 0);
    const options = runs.map((run) => [run.name, run.label]);
    const name = fillSelect(this.run, options, this.state.get("layers.run"));
    const run = runs.find((one) => one.name === name);
    if (!run) return null;
    const offered = Object.entries(run.tables).flatMap(([tag, table]) =>
      table.columns
        .filter(({ width }) => width === 1)
        .map((column) => ({
          key: [column.name, tableSuffix(tag)].filter(Boolean).join(" · "),
          text: [column.label, tableSuffix(tag)].filter(Boolean).join(" · "),
          ...{ tag, table, column },
        })),
    );
    const wanted = this.state.get("layers.quantity", "density");
    const keys = offered.map(({ key, text }) => [key, text]);
    const key = fillSelect(this.quantity, keys, wanted);
    fillSelect(this.order, ORDERS, this.state.get("layers.order", "depth"));
    return { run, ...offered.find((one) => one.key === key) };
  }

  // The chosen data, arranged in rows, or null if there are none. `values` are by step and row.
  async read(view) {
    const found = this.table(view);
    if (!found) return null;
    const { run, tag, table, column } = found;
    const data = await view.source.layers(run.name, tag, column.name);
    const last = data.values.findLastIndex((each) => each.some(Number.isFinite));
    this.lastStep = data.steps[last] ?? null;
    const now = data.values[this.indexOf(data.steps)] ?? [];
    const rows = arrange(table.tensors, {
      words: this.filter.value.toLowerCase().split(/\s+/),
      order: this.order.value,
      grouped: this.grouped,
      unfolded: this.state.getList("layers.unfolded") ?? [],
      valueOf: (layer) => now[layer],
    });
    const values = data.values.map((each) => rowValues(rows, each));
    return {
      run,
      tag,
      column,
      rows,
      data,
      steps: data.steps,
      values,
      names: rows.map((row) => row.name),
      labels: rows.map((row) => row.label),
      prefix: sharedPrefix(table.tensors),
    };
  }

  // The index of the chosen step, or of the last one with a value, among those that are shown.
  indexOf(steps) {
    const wanted = this.state.get("layers.step") ?? this.lastStep;
    return wanted === null ? steps.length - 1 : closest(steps, Number(wanted));
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

export function closest(steps, wanted) {
  return steps.reduce(
    (best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best),
    0,
  );
}

// Where a run goes on after its last value.
function lastNote({ steps }, last) {
  if (last === null) return "No value is a finite number. ";
  return last < steps.at(-1) ? `No value is a finite number after step ${formatStep(last)}. ` : "";
}

export class LayerPanel extends Panel {
  constructor(choice, ...texts) {
    super(choice.state, ...texts);
    this.choice = choice;
    choice.panels.push(this);
    onWidth(this.body, () => this.repaint());
  }

  async draw(view) {
    const chosen = await this.choice.read(view);
    if (view.isOld()) return null;
    if (!chosen || !chosen.steps.length)
      return this.nothing("No run shown here has numbers for each layer.");
    if (!chosen.rows.length)
      return this.nothing(`No layer's name contains “${this.choice.filter.value}”.`);
    await this.prepare(view, chosen);
    if (view.isOld()) return null;
    this.chosen = chosen;
    const canvases = this.paint();
    const { data, run, column } = chosen;
    return {
      table: this.rows(),
      legend: this.legendOf(chosen) ?? [
        { label: `${run.label} · ${column.label}`, color: view.colorOf(run.name) },
      ],
      canvases,
      quantities: view.isKnown(column.name) ? [column.name] : [],
      note: [
        chosen.prefix ? `All names begin with “${chosen.prefix}”, which is left out. ` : "",
        this.choice.grouped ? "A folded block shows the median of its layers. " : "",
        lastNote(chosen, this.choice.lastStep),
        thinned([data]),
        data.note ?? "",
      ].join(""),
    };
  }

  // Panels override these: to read more, to explain it, and to show the layer that was chosen.
  async prepare() {}

  legendOf() {
    return null;
  }

  showLayer() {}

  repaint() {
    if (this.drawn?.canvases.length) this.drawn.canvases = this.paint();
  }
}
