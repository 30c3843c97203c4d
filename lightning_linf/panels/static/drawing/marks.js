// Plugins of uPlot that draw what is no line: a reference value, and intervals as bars.

import { cssColor } from "./dom.js";
import { hasRoom } from "./lines.js";

// A thin line at a value, or nothing for null.
export function referenceLine(value) {
  const drawClear = ({ ctx, bbox, valToPos }) => {
    if (value === null) return;
    ctx.save();
    ctx.fillStyle = cssColor("--text");
    ctx.globalAlpha = 0.55;
    const thick = window.devicePixelRatio;
    ctx.fillRect(bbox.left, Math.round(valToPos(value, "y", true)) - thick / 2, bbox.width, thick);
    ctx.restore();
  };
  return { hooks: { drawClear } };
}

// At each measured x a bar from the lower end to the upper one: only there is the interval known.
// Where bars would touch each other, the area between the two lines stands for them. An upper end of
// infinity, or a lower one below a logarithmic axis, is the end of the chart.
export function intervals(curves, owners) {
  const draw = (u) => {
    const [from, to] = u.series[0].idxs ?? [];
    if (from === undefined || from === null) return;
    const scale = window.devicePixelRatio;
    u.ctx.save();
    u.ctx.beginPath();
    u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    u.ctx.clip();
    for (const { color, first, bars = [] } of curves) {
      for (const [upper, lower] of bars) {
        if (!hasRoom(u, first + lower, from, to)) continue;
        u.ctx.fillStyle = color;
        u.ctx.globalAlpha = 0.75 * (u.series[first + lower].alpha ?? 1);
        const ends = [owners[first + upper - 1].values, owners[first + lower - 1].values];
        for (let i = from; i <= to; i++) drawBar(u, u.data[0][i], ends, scale);
      }
    }
    u.ctx.restore();
  };
  return { hooks: { draw } };
}

function drawBar(u, at, [uppers, lowers], scale) {
  const [high, low] = [uppers.get(at), lowers.get(at)];
  if (!(high >= low)) return; // not measured here, or not a number
  const x = Math.round(u.valToPos(at, "x", true));
  const { top, height } = u.bbox;
  const place = (value) => {
    const y = u.valToPos(value, "y", true);
    return Number.isFinite(y) ? y : value === Infinity ? top : top + height;
  };
  const [from, to] = [place(high), place(low)];
  const thick = to - from > 4 * scale ? 2 : 5; // a short one is a dot
  u.ctx.fillRect(x - (thick / 2) * scale, from, thick * scale, Math.max(4 * scale, to - from));
  const caps = [high === Infinity ? [] : [from], low > 0 || u.scales.y.distr !== 3 ? [to] : []];
  for (const y of caps.flat()) u.ctx.fillRect(x - 4 * scale, y - scale / 2, 8 * scale, scale);
}
