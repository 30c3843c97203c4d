// Panel 3 shows one quantity of every layer over steps, as colours.

import { element } from "../drawing/dom.js";
import {
  AXIS_HEIGHT,
  KEY_HEIGHT,
  drawCells,
  drawKey,
  drawNames,
  drawSteps,
  edges,
  gutterFor,
  makeCanvas,
  rowHeight,
} from "../drawing/heatmap.js";
import { format, formatStep } from "../drawing/numbers.js";
import { LayerPanel } from "./layers.js";

export class HeatMap extends LayerPanel {
  constructor(choice) {
    super(
      choice,
      "heatmap",
      "Layers over steps",
      "One row for each layer, one column for each measured step. Choose a column to see it as bars.",
    );
  }

  paint() {
    const { data, names, rows, column } = this.chosen;
    const height = rowHeight(rows.length);
    const width = Math.max(240, this.body.clientWidth);
    const [canvas, context] = makeCanvas(
      width,
      KEY_HEIGHT + rows.length * height + AXIS_HEIGHT,
      `${column.label}: ${rows.length} layers by ${data.steps.length} steps. Arrow keys read values.`,
    );
    const gutter = gutterFor(context, names, width);
    const borders = edges(data.steps, gutter, width - 1);
    const { low, high, place } = this.choice.position(
      data.values.flatMap((values) => rows.map((row) => values[row])),
    );
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
    const hadFocus = this.body.contains(document.activeElement);
    this.body.replaceChildren(frame, this.live);
    canvas.tabIndex = 0;
    if (hadFocus) canvas.focus({ preventScroll: true });
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => {
      this.tip.hidden = true;
    });
    canvas.addEventListener("click", (event) => {
      if (this.point(event)) this.choice.setStep(data.steps[this.cell[1]]);
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

  // Whether the event is at a cell, which then is the chosen one.
  point(event) {
    const column = this.borders.findIndex((border) => event.offsetX < border) - 1;
    const row = Math.floor((event.offsetY - KEY_HEIGHT) / this.height);
    if (column < 0 || row < 0 || row >= this.chosen.rows.length) {
      this.tip.hidden = true;
      return false;
    }
    this.cell = [row, column];
    this.showCell();
    return true;
  }

  move(event) {
    const [row, column] =
      { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ??
      [];
    if (event.key === "Enter") this.choice.setStep(this.chosen.data.steps[this.cell[1]]);
    if (row === undefined) return;
    event.preventDefault();
    const clamp = (value, most) => Math.min(most, Math.max(0, value));
    this.cell = [
      clamp(this.cell[0] + row, this.chosen.rows.length - 1),
      clamp(this.cell[1] + column, this.chosen.data.steps.length - 1),
    ];
    this.showCell();
    this.live.textContent = this.tip.textContent;
  }

  showCell() {
    const [row, column] = this.cell;
    const { data, rows, names } = this.chosen;
    this.tip.replaceChildren(
      element("div", {}, `${names[row]}, step ${formatStep(data.steps[column])}`),
      " ",
      element("strong", {}, format(data.values[column][rows[row]])),
    );
    this.tip.hidden = false;
    const isRight = this.borders[column] > this.body.clientWidth / 2;
    this.tip.style.left = isRight ? "auto" : `${this.borders[column + 1] + 10}px`;
    this.tip.style.right = isRight
      ? `${this.body.clientWidth - this.borders[column] + 10}px`
      : "auto";
    this.tip.style.top = `${KEY_HEIGHT + Math.max(0, row * this.height - 8)}px`;
  }

  rows() {
    const { data, names, rows } = this.chosen;
    return {
      columns: ["step", ...names],
      rows: data.steps.map((step, i) => [step, ...rows.map((row) => data.values[i][row])]),
    };
  }
}
