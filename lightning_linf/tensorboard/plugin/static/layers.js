// Panels 3 and 5: one quantity of every layer, over steps and at one step.

import { drawBars } from "./bars.js";
import { element, field, fillSelect, onWidth } from "./dom.js";
import {
  AXIS_HEIGHT, KEY_HEIGHT, drawCells, drawKey, drawNames, drawSteps, edges, gutterFor, makeCanvas,
  rowHeight,
} from "./heatmap.js";
import { optimizerOf } from "./names.js";
import { finiteRange, format, formatStep } from "./numbers.js";
import { Panel, thinned } from "./panel.js";

// What both panels show: run, quantity, filter, scale and step.
export class LayerChoice {
  constructor() {
    this.panels = [];
    this.log = false;
    this.step = null; // the last one, unless chosen
    this.run = element("select", { change: () => this.changed() });
    this.quantity = element("select", { change: () => this.changed() });
    this.filter = element("input", {
      type: "search", placeholder: "e.g. mlp weight", input: () => this.changed() });
    this.scale = element("button", { type: "button", "aria-pressed": "false" }, "log scale");
    this.scale.addEventListener("click", () => {
      this.log = !this.log;
      this.scale.setAttribute("aria-pressed", String(this.log));
      this.changed();
    });
    this.node = element("div", { class: "controls shared", role: "group", "aria-label": "Layers" },
      field("Run", this.run), field("Quantity", this.quantity), field("Filter layers", this.filter), this.scale);
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
    const name = fillSelect(this.run, runs.map((run) => [run.name, run.label]), this.run.value);
    const run = runs.find((one) => one.name === name);
    if (!run) return null;
    const offered = Object.entries(run.tables).flatMap(([tag, table]) => table.columns
      .filter(({ width }) => width === 1)
      .map((column) => ({ key: `${tag}\n${column.name}`, tag, table, column })));
    const text = ({ tag, column }) => [column.label, optimizerOf(tag)].filter(Boolean).join(" · ");
    const preferred = offered.find(({ column }) => column.name === "density");
    const options = offered.map((one) => [one.key, text(one)]);
    const wanted = this.quantity.value || preferred?.key;
    const key = fillSelect(this.quantity, options, wanted);
    const { tag, table, column } = offered.find((one) => one.key === key);
    const words = this.filter.value.toLowerCase().split(/\s+/);
    const rows = [...table.tensors.keys()].filter((row) =>
      words.every((word) => table.tensors[row].toLowerCase().includes(word)));
    const data = await view.source.layers(run.name, tag, column.name);
    return { run, tensors: table.tensors, names: rows.map((row) => table.tensors[row]), rows, column, data };
  }

  // The index of the chosen step among those that are shown.
  indexOf(steps) {
    if (this.step === null) return steps.length - 1;
    return steps.reduce((best, step, i) =>
      (Math.abs(step - this.step) < Math.abs(steps[best] - this.step) ? i : best), 0);
  }

  // A value's place between the least and the largest one.
  position(values) {
    const usable = this.log ? values.filter((value) => value > 0) : values;
    const [low, high] = finiteRange(usable);
    const map = this.log ? Math.log : (value) => value;
    const width = map(high) - map(low);
    const place = (value) => (width > 0 ? (map(value) - map(low)) / width : value === low ? 0.5 : NaN);
    return { low, high, place };
  }
}

class LayerPanel extends Panel {
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
    if (!chosen || !chosen.data.steps.length) return this.nothing("No run shown here has numbers for each layer.");
    if (!chosen.rows.length) return this.nothing(`No layer's name contains “${this.choice.filter.value}”.`);
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

export class HeatMap extends LayerPanel {
  constructor(choice) {
    super(choice, "heatmap", "Layers over steps",
      "One row for each layer, one column for each measured step. Choose a column to see it as bars.");
  }

  paint() {
    const { data, names, rows, column } = this.chosen;
    const height = rowHeight(rows.length);
    const width = Math.max(240, this.body.clientWidth);
    const [canvas, context] = makeCanvas(width, KEY_HEIGHT + rows.length * height + AXIS_HEIGHT,
      `${column.label}: ${rows.length} layers by ${data.steps.length} steps. Arrow keys read values.`);
    const gutter = gutterFor(context, names, width);
    const borders = edges(data.steps, gutter, width - 1);
    const { low, high, place } = this.choice.position(data.values.flatMap((values) => rows.map((row) => values[row])));
    drawKey(context, low, high, this.choice.log, gutter);
    context.translate(0, KEY_HEIGHT);
    drawNames(context, names, height, gutter);
    drawCells(context, data, rows, borders, height, place);
    drawSteps(context, data.steps, borders, rows.length * height);
    Object.assign(this, { borders, height, cell: [rows.length - 1, data.steps.length - 1] });
    this.tip = element("div", { class: "tip", hidden: true });
    this.live = element("div", { class: "visually-hidden", "aria-live": "polite" });
    this.cursor = element("i", { class: "column" });
    const frame = element("div", { class: "map" }, canvas, this.cursor, this.tip);
    this.body.replaceChildren(frame, this.live);
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    canvas.addEventListener("click", (event) => {
      this.point(event);
      this.choice.setStep(data.steps[this.cell[1]]);
    });
    canvas.addEventListener("keydown", (event) => this.move(event));
    this.showStep();
    return [canvas];
  }

  showStep() {
    if (!this.borders) return;
    const index = this.choice.indexOf(this.chosen.data.steps);
    this.cursor.style.left = `${this.borders[index]}px`;
    this.cursor.style.width = `${Math.max(2, this.borders[index + 1] - this.borders[index])}px`;
    this.cursor.style.top = `${KEY_HEIGHT}px`;
    this.cursor.style.height = `${this.chosen.rows.length * this.height}px`;
  }

  point(event) {
    const column = this.borders.findIndex((border) => event.offsetX < border) - 1;
    const row = Math.floor((event.offsetY - KEY_HEIGHT) / this.height);
    if (column < 0 || row < 0 || row >= this.chosen.rows.length) {
      this.tip.hidden = true;
      return;
    }
    this.cell = [row, column];
    this.showCell();
  }

  move(event) {
    const [row, column] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (event.key === "Enter") this.choice.setStep(this.chosen.data.steps[this.cell[1]]);
    if (row === undefined) return;
    event.preventDefault();
    const clamp = (value, most) => Math.min(most, Math.max(0, value));
    this.cell = [clamp(this.cell[0] + row, this.chosen.rows.length - 1),
      clamp(this.cell[1] + column, this.chosen.data.steps.length - 1)];
    this.showCell();
    this.live.textContent = this.tip.textContent;
  }

  showCell() {
    const [row, column] = this.cell;
    const { data, rows, names } = this.chosen;
    this.tip.replaceChildren(
      element("div", {}, `${names[row]}, step ${formatStep(data.steps[column])}`), " ",
      element("strong", {}, format(data.values[column][rows[row]])));
    this.tip.hidden = false;
    const isRight = this.borders[column] > this.body.clientWidth / 2;
    this.tip.style.left = isRight ? "auto" : `${this.borders[column + 1] + 10}px`;
    this.tip.style.right = isRight ? `${this.body.clientWidth - this.borders[column] + 10}px` : "auto";
    this.tip.style.top = `${KEY_HEIGHT + Math.max(0, row * this.height - 8)}px`;
  }

  rows() {
    const { data, names, rows } = this.chosen;
    return { columns: ["step", ...names],
      rows: data.steps.map((step, i) => [step, ...rows.map((row) => data.values[i][row])]) };
  }
}

export class Bars extends LayerPanel {
  constructor(choice) {
    super(choice, "bars", "Layers at one step", "The same quantity at the step of the slider.");
    this.slider = element("input", { type: "range", min: "0", step: "1" });
    this.output = element("output");
    const control = field("Step", this.slider);
    control.classList.add("grow");
    control.append(this.output);
    this.controls.append(control);
    this.slider.addEventListener("input", () =>
      choice.setStep(this.chosen.data.steps[Number(this.slider.value)]));
  }

  paint() {
    const { data, names, rows, column } = this.chosen;
    const index = this.choice.indexOf(data.steps);
    this.slider.max = String(data.steps.length - 1);
    this.slider.value = String(index);
    this.slider.setAttribute("aria-valuetext", `step ${formatStep(data.steps[index])}`);
    this.output.textContent = formatStep(data.steps[index]);
    const everything = data.values.flatMap((values) => rows.map((row) => values[row]));
    const canvas = drawBars({
      names, values: rows.map((row) => data.values[index][row]), log: this.choice.log,
      range: this.choice.position(everything), width: Math.max(240, this.body.clientWidth),
      color: this.view.colorOf(this.chosen.run.name),
      label: `${column.label} of ${rows.length} layers at step ${formatStep(data.steps[index])}`,
    });
    this.body.replaceChildren(canvas);
    return [canvas];
  }

  showStep() {
    if (!this.chosen || !this.drawn) return;
    this.drawn.canvases = this.paint();
    this.drawn.table = this.rows();
    this.fillTable();
  }

  rows() {
    const { data, names, rows } = this.chosen;
    const index = this.choice.indexOf(data.steps);
    return { columns: ["layer", `step ${formatStep(data.steps[index])}`],
      rows: names.map((name, i) => [name, data.values[index][rows[i]]]) };
  }
}
