// Panel 3 shows one quantity of every layer over steps, as colours.

import { cutName, element } from "../drawing/dom.js";
import {
  AXIS_HEIGHT,
  KEY_HEIGHT,
  drawCells,
  drawKey,
  drawNames,
  drawPlaces,
  edges,
  gutterFor,
  makeCanvas,
  rowHeight,
} from "../drawing/heatmap.js";
import { format, formatStep } from "../drawing/numbers.js";
import { xText } from "../drawing/ranges.js";
import { LayerPanel } from "./layers.js";
import { placeSteps } from "./times.js";

export class HeatMap extends LayerPanel {
  constructor(choice) {
    super(
      choice,
      "heatmap",
      "Layers over steps",
      "One row for each layer, one column for each measured step. A click chooses the step of the bars and the layer of the curves; on the name of a block it unfolds it.",
    );
  }

  // Finds the places of the columns on the page's axis, in order.
  async prepare(view, chosen) {
    const [indices, x] = await placeSteps(view, chosen.run, chosen.steps);
    if (!indices.length) throw new Error("The records of this run come without times.");
    chosen.columns = indices.map((index, i) => ({ index, at: x[i] })).sort((a, b) => a.at - b.at);
  }

  // Columns outside of the page's zoom are left out.
  paint() {
    const { kind, zoom } = this.view.axis;
    const all = this.chosen;
    const ends = zoom() ?? [-Infinity, Infinity];
    const inside = all.columns.filter(({ at }) => at >= ends[0] && at <= ends[1]);
    const shown = inside.length ? inside : all.columns;
    this.steps = shown.map(({ index }) => all.steps[index]);
    this.values = shown.map(({ index }) => all.values[index]);
    this.places = shown.map(({ at }) => at);
    const { labels, rows, column } = all;
    const height = rowHeight(rows.length);
    const width = Math.max(240, this.body.clientWidth);
    const [canvas, context] = makeCanvas(
      width,
      KEY_HEIGHT + rows.length * height + AXIS_HEIGHT,
      `${column.label}: ${rows.length} layers by ${this.steps.length} steps. Arrow keys read values.`,
    );
    const gutter = gutterFor(context, labels, width);
    const borders = edges(this.places, gutter, width - 1);
    const { low, high, place } = this.choice.position(this.values.flat());
    drawKey(context, low, high, this.choice.log, gutter, width);
    context.translate(0, KEY_HEIGHT);
    drawNames(context, labels, height, gutter);
    drawCells(context, this.values, borders, height, place);
    drawPlaces(context, kind, this.places, borders, rows.length * height);
    Object.assign(this, { borders, height, cell: [rows.length - 1, this.steps.length - 1] });
    this.tip = element("div", { class: "tip", hidden: true });
    this.live = element("div", { class: "visually-hidden", "aria-live": "polite" });
    this.cursor = element("i", { class: "column" });
    const frame = element("div", { class: "map" }, canvas, this.cursor, this.tip);
    const hadFocus = this.body.contains(document.activeElement);
    this.body.replaceChildren(frame, this.live);
    canvas.tabIndex = 0;
    if (hadFocus) canvas.focus({ preventScroll: true });
    this.listen(canvas);
    this.showStep();
    return [canvas];
  }

  listen(canvas) {
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => {
      this.tip.hidden = true;
    });
    canvas.addEventListener("click", (event) => {
      const row = this.rowAt(event);
      if (this.point(event)) this.choice.setStep(this.steps[this.cell[1]]);
      if (row) this.choice.choose(row);
    });
    canvas.addEventListener("keydown", (event) => this.move(event));
  }

  showZoom() {
    this.repaint();
  }

  rowAt({ offsetY }) {
    return this.chosen.rows[Math.floor((offsetY - KEY_HEIGHT) / this.height)];
  }

  showStep() {
    if (!this.borders) return;
    const index = this.choice.indexOf(this.steps);
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
    if (event.key === "Enter") {
      this.choice.setStep(this.steps[this.cell[1]]);
      this.choice.choose(this.chosen.rows[this.cell[0]]);
    }
    if (row === undefined) return;
    event.preventDefault();
    const clamp = (value, most) => Math.min(most, Math.max(0, value));
    this.cell = [
      clamp(this.cell[0] + row, this.chosen.rows.length - 1),
      clamp(this.cell[1] + column, this.steps.length - 1),
    ];
    this.showCell();
    this.live.textContent = this.tip.textContent;
  }

  showCell() {
    const [row, column] = this.cell;
    const { kind } = this.view.axis;
    const time = kind === "time" ? ` (${xText(kind, this.places[column])})` : "";
    this.tip.replaceChildren(
      element(
        "div",
        { class: "where" },
        cutName(this.chosen.names[row]),
        `, step ${formatStep(this.steps[column])}${time}`,
      ),
      " ",
      element("strong", {}, format(this.values[column][row])),
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
    const { steps, values, names } = this.chosen;
    return { columns: ["step", ...names], rows: steps.map((step, i) => [step, ...values[i]]) };
  }
}
