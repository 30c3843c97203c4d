// Puts the lines of curves on one column of x, as uPlot expects them.

import uPlot from "../vendor/uPlot.esm.js";
import { withAlpha } from "./color.js";

// `owners` gives of each line the number of its curve, and by x the values as they were measured.
export function lay(curves, log) {
  const [tables, series, bands, owners] = [[], [], [], []];
  curves.forEach((curve, number) => {
    const first = series.length + 1;
    for (const { x, values, width = 2 } of curve.lines) {
      tables.push(inOrder(x, values, log));
      series.push({
        label: curve.label,
        stroke: curve.color,
        width,
        dash: curve.dash,
        spanGaps: false, // joins steps that were not measured, not values that are not finite
        points: { show: width > 0 && hasRoom, size: 6, fill: curve.color, stroke: curve.color },
      });
      owners.push({ number, values: new Map(x.map((at, i) => [at, values[i]])) });
    }
    for (const [upper, lower, alpha] of curve.fills ?? []) {
      bands.push({ series: [first + upper, first + lower], fill: withAlpha(curve.color, alpha) });
    }
    curve.first = first;
  });
  return { data: tables.length ? uPlot.join(tables) : [[]], series, bands, owners };
}

// Values that the axis has no place for become gaps.
function inOrder(x, values, log) {
  const isShown = (value) => Number.isFinite(value) && (!log || value > 0);
  const order = [...x.keys()].sort((a, b) => x[a] - x[b]);
  return [order.map((i) => x[i]), order.map((i) => (isShown(values[i]) ? values[i] : null))];
}

// Whether measured points are so far apart that each can be marked.
export function hasRoom(u, series, from, to) {
  let count = 0;
  for (let i = from; i <= to; i++) if (u.data[series][i] !== undefined) count++;
  return count * 9 < u.bbox.width / window.devicePixelRatio;
}

// The measured point of a line that is closest to one on the axis; none outside of the line's ends.
export function nearest(u, series, at) {
  const [x, values] = [u.data[0], u.data[series]];
  if (values[at] !== undefined) return at;
  let [left, right] = [at - 1, at + 1];
  while (left >= 0 && values[left] === undefined) left--;
  while (right < x.length && values[right] === undefined) right++;
  if (left < 0 || right >= x.length) return null;
  return x[at] - x[left] <= x[right] - x[at] ? left : right;
}
