// Draws a heat map with a row for each layer and a column for each measured step.

import { mapColor } from "./color.js";
import { cssColor, element } from "./dom.js";
import { format } from "./numbers.js";
import { xLabels } from "./ranges.js";

const ROW = 14; // pixels; less where there are many rows
const MAX_HEIGHT = 620;
export const AXIS_HEIGHT = 34;
export const KEY_HEIGHT = 30; // above the rows
const KEY_WIDTH = 160; // less where there is no room

export function rowHeight(numRows) {
  return Math.max(1, Math.min(ROW, MAX_HEIGHT / Math.max(1, numRows)));
}

export function makeCanvas(width, height, label) {
  const scale = window.devicePixelRatio || 1;
  const canvas = element("canvas", { role: "img", "aria-label": label });
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = "11px system-ui, sans-serif";
  return [canvas, context];
}

// Returns the room that the longest name needs, within limits.
export function gutterFor(context, names, width) {
  const longest = Math.max(...names.map((name) => context.measureText(name).width));
  return Math.min(longest + 10, 240, width * 0.4);
}

// Whether there is room for the text of a row: for one in so many.
export const hasText = (row, height) => row % Math.ceil(12 / height) === 0;

// Draws names on the left, as many as there is room for.
export function drawNames(context, names, height, width) {
  context.fillStyle = cssColor("--muted");
  context.textAlign = "right";
  context.textBaseline = "middle";
  const rows = [...names.keys()].filter((row) => hasText(row, height));
  const shown = rows.map((row) => names[row]);
  shorten(context, shown, width - 8).forEach((name, i) =>
    context.fillText(name, width - 6, (rows[i] + 0.5) * height),
  );
}

// Where names are too long, words of them become letters, the longest first and the same in all
// names, but for the last word of each. What is still too long is cut in its middle.
function shorten(context, names, width) {
  const isLong = (words) => context.measureText(words.join(".")).width > width;
  const split = names.map((name) => name.split("."));
  for (;;) {
    const inside = split.filter(isLong).flatMap((words) => words.slice(0, -1));
    const usable = inside.filter((word) => /^[a-z_]./i.test(word));
    if (!usable.length) break;
    const longest = usable.reduce((most, word) => (word.length > most.length ? word : most));
    for (const words of split) {
      const last = words.length - 1;
      words.forEach((word, i) => i < last && word === longest && (words[i] = word[0]));
    }
  }
  return split.map((words) => cut(context, words.join("."), width));
}

function cut(context, name, width) {
  if (context.measureText(name).width <= width) return name;
  let keep = Math.min(name.length, 60);
  while (
    keep > 2 &&
    context.measureText(`${name.slice(0, keep / 3)}…${name.slice(-keep * (2 / 3))}`).width > width
  )
    keep--;
  return `${name.slice(0, keep / 3)}…${name.slice(-keep * (2 / 3))}`;
}

// Puts the edges of columns half way between their neighbouring places, which are in order.
export function edges(places, left, right) {
  if (places.length === 1) return [left, right];
  const middle = places.slice(1).map((place, i) => (place + places[i]) / 2);
  const all = [
    places[0] - (middle[0] - places[0]),
    ...middle,
    places.at(-1) + (places.at(-1) - middle.at(-1)),
  ];
  const scale = (right - left) / (all.at(-1) - all[0] || 1);
  return all.map((at) => left + (at - all[0]) * scale);
}

// `position` maps a value to [0, 1]; cells without a value show the background.
// `values` are by column and row.
export function drawCells(context, values, borders, height, position) {
  values.forEach((cells, column) => {
    const [from, to] = [Math.floor(borders[column]), Math.floor(borders[column + 1])];
    cells.forEach((value, index) => {
      const at = position(value);
      if (Number.isNaN(at)) return;
      context.fillStyle = mapColor(at);
      const top = Math.floor(index * height);
      context.fillRect(from, top, Math.max(1, to - from), Math.floor((index + 1) * height) - top);
    });
  });
}

// `places` are those of the columns on an axis of steps or of time.
export function drawPlaces(context, kind, places, borders, bottom) {
  const { label, text } = xLabels(kind);
  context.fillStyle = cssColor("--muted");
  context.textBaseline = "top";
  const centers = places.map((_, i) => (borders[i] + borders[i + 1]) / 2);
  const count = Math.max(
    2,
    Math.min(places.length, Math.floor((centers.at(-1) - centers[0]) / 90)),
  );
  const shown = new Set(
    Array.from({ length: count }, (_, i) => Math.round((i * (places.length - 1)) / (count - 1))),
  );
  for (const index of shown) {
    context.textAlign =
      index === 0 && places.length > 1 ? "left" : index === places.length - 1 ? "right" : "center";
    const x =
      index === 0 ? borders[0] : index === places.length - 1 ? borders.at(-1) : centers[index];
    context.fillText(text(places[index]), x, bottom + 5);
  }
  context.textAlign = "center";
  context.fillText(label, (borders[0] + borders.at(-1)) / 2, bottom + 20);
}

// Draws what the colours mean: from `left` on where there is room for it, else further left.
export function drawKey(context, low, high, isLog, left, width) {
  const [first, last] = [format(low), `${format(high)}   ${isLog ? "log scale" : "linear scale"}`];
  const texts = context.measureText(first).width + context.measureText(last).width + 18;
  const keyWidth = Math.floor(Math.min(KEY_WIDTH, width - texts));
  left = Math.min(left, width - texts - keyWidth);
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillStyle = cssColor("--muted");
  const start = left + context.measureText(first).width + 8;
  context.fillText(first, left, 8);
  context.fillText(last, start + keyWidth + 8, 8);
  for (let x = 0; x < keyWidth; x++) {
    context.fillStyle = mapColor(x / (keyWidth - 1));
    context.fillRect(start + x, 3, 1, 10);
  }
}
