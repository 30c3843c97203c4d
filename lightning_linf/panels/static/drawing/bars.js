// Draws horizontal bars, one for each layer, in rows as high as those of the heat map.

import { cssColor } from "./dom.js";
import { AXIS_HEIGHT, drawNames, gutterFor, hasText, makeCanvas, rowHeight } from "./heatmap.js";
import { format } from "./numbers.js";

export const PALE = 0.5; // alpha of bars to compare with
const VALUE_WIDTH = 52; // room for the number behind a bar
const HEAD = 6; // pixels above the first row, whose name is higher than a thin row

// `about` is { names, values, other, log, range, width, color, otherColor, caption, label }. The axis
// spans all steps, so that bars can be compared while the slider moves. `other` are values to compare
// with: pale bars in `otherColor` below the others, or null. `caption` stands at the foot.
export function drawBars(about) {
  const { names, values, other, log, range, width, color, otherColor, caption, label } = about;
  const height = rowHeight(names.length);
  const [canvas, context] = makeCanvas(width, HEAD + names.length * height + AXIS_HEIGHT, label);
  context.translate(0, HEAD);
  const gutter = gutterFor(context, names, width);
  const room = width - gutter - VALUE_WIDTH;
  const [from, to] = axis(range, log);
  const map = log ? Math.log : (value) => value;
  const place = (value) => gutter + (room * (map(value) - map(from))) / (map(to) - map(from) || 1);
  drawNames(context, names, height, gutter);
  drawGrid(context, [from, to], place, names.length * height, log);
  context.fillText(caption, gutter + room / 2, names.length * height + 20);
  context.textAlign = "left";
  context.textBaseline = "middle";
  const thick = Math.max(1, height - (height > 5 ? 3 : 1));
  const zero = place(log ? from : Math.min(Math.max(0, from), to));
  const boxOf = (value, top, share) => {
    if (!Number.isFinite(value) || (log && !(value > 0))) return null;
    const end = place(value);
    return [Math.min(zero, end), top, Math.max(1, Math.abs(end - zero)), share * thick];
  };
  values.forEach((value, row) => {
    const y = row * height;
    const top = y + (height - thick) / 2;
    const box = boxOf(value, top, other ? 0.55 : 1);
    context.fillStyle = color;
    if (box) context.fillRect(...box);
    const second = other && boxOf(other[row], top + 0.6 * thick, 0.4);
    if (second) {
      context.fillStyle = otherColor;
      context.globalAlpha = PALE;
      context.fillRect(...second);
      context.globalAlpha = 1;
    }
    if (height >= 9 && hasText(row, height)) {
      context.fillStyle = cssColor("--muted");
      context.fillText(
        format(value),
        5 + Math.max(gutter, ...[box, second].filter(Boolean).map(([x, , length]) => x + length)),
        y + height / 2,
      );
    }
  });
  return canvas;
}

function axis({ low, high }, log) {
  if (!Number.isFinite(low)) return log ? [0.1, 1] : [0, 1];
  if (log) return [low / 1.2, high];
  return [Math.min(0, low), Math.max(0, high) || 1];
}

function drawGrid(context, [from, to], place, bottom, log) {
  const ticks = log ? [from, Math.sqrt(from * to), to] : [from, (from + to) / 2, to];
  context.textBaseline = "top";
  context.textAlign = "center";
  for (const tick of ticks) {
    const x = Math.round(place(tick)) + 0.5;
    context.strokeStyle = cssColor("--grid");
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, bottom);
    context.stroke();
    context.fillStyle = cssColor("--muted");
    context.fillText(format(tick), x, bottom + 5);
  }
}
