// Draws curves and brackets over optimizer steps with uPlot, and shows their values at the cursor.
// The charts of a page share cursor and zoom: uPlot synchronizes those of one key.

import uPlot from "../vendor/uPlot.esm.js";
import { withAlpha } from "./color.js";
import { cssColor, element, onWidth, swatch } from "./dom.js";
import { finiteRange, format, formatRange, formatStep } from "./numbers.js";

const HEIGHT = 300;
const SYNC = { key: "steps", scales: ["x", null] };
const NEAREST = { skip: [null], prox: 1e9 }; // the closest measured step, however far it is

// Fills `parent` with a chart and returns uPlot's object. A curve is { label, color, dash, lines,
// fills, describe }. `lines` are { steps, values, width }, and `fills` are areas between two of
// them, [upper, lower, alpha]. `describe` turns the lines' values at a step, NaN where there is
// none, into the text that the cursor shows; without it that is their range.
export function drawChart(parent, { curves, log, label, unit, reference = null }) {
  const { data, series, bands, owners } = lay(curves, log);
  const hadFocus = parent.contains(document.activeElement);
  parent.plot?.destroy();
  const frame = element("div", {
    class: "chart",
    tabindex: "0",
    role: "group",
    "aria-label": `${label}. Arrow keys read values.`,
  });
  parent.replaceChildren(frame);
  const grid = { stroke: cssColor("--grid"), width: 1 };
  const axis = {
    stroke: cssColor("--muted"),
    grid,
    ticks: grid,
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    labelSize: 18,
    labelGap: 0,
  };
  parent.plot = new uPlot(
    {
      width: Math.max(frame.clientWidth, 200),
      height: HEIGHT,
      series: [{}, ...series],
      bands,
      scales: {
        x: { time: false },
        y: { distr: log ? 3 : 1, range: yRange(log, reference) },
      },
      axes: [
        { ...axis, label: "optimizer step", size: 28, values: (u, ticks) => ticks.map(formatStep) },
        {
          ...axis,
          label: unit,
          size: 48,
          values: (u, ticks) => ticks.map((t) => (t === null ? "" : format(t))),
        },
      ],
      legend: { show: false },
      cursor: { points: { size: 7 }, y: false, move: toStep, hover: NEAREST, sync: SYNC },
      plugins: [readout(frame, curves, owners), referenceLine(reference)],
    },
    data,
    frame,
  );
  onWidth(frame, (width) => parent.plot.setSize({ width, height: HEIGHT }));
  if (hadFocus) frame.focus({ preventScroll: true });
  return parent.plot;
}

// Puts all lines on one column of steps, as uPlot expects them; `owners` gives each line's curve.
// Values that the axis has no place for become gaps.
function lay(curves, log) {
  const [tables, series, bands, owners] = [[], [], [], []];
  curves.forEach((curve, number) => {
    const first = series.length + 1;
    for (const { steps, values, width = 2 } of curve.lines) {
      const isShown = (value) => Number.isFinite(value) && (!log || value > 0);
      tables.push([steps, values.map((value) => (isShown(value) ? value : null))]);
      const isAlone = steps.length < 2; // a line through one point is not seen
      series.push({
        label: curve.label,
        stroke: curve.color,
        width,
        dash: curve.dash,
        spanGaps: true,
        points: {
          show: isAlone || (curve.lines.length === 1 && steps.length < 40),
          size: 5,
          fill: curve.color,
        },
      });
      owners.push(number);
    }
    for (const [upper, lower, alpha] of curve.fills ?? []) {
      bands.push({ series: [first + upper, first + lower], fill: withAlpha(curve.color, alpha) });
    }
  });
  return { data: tables.length ? uPlot.join(tables) : [[]], series, bands, owners };
}

function yRange(log, reference) {
  return (u, low, high) => {
    if (low === null || high === null) return log ? [0.1, 10] : [0, 1];
    if (reference !== null) [low, high] = [Math.min(low, reference), Math.max(high, reference)];
    if (log) {
      const [from, to] = [round125(low, Math.floor), round125(high, Math.ceil)];
      return from < to ? [from, to] : [from / 2, to * 2];
    }
    return uPlot.rangeNum(low, high, 0.08, true);
  };
}

// Rounds to the next of 1, 2 and 5 times a power of ten, so that an axis of less than a decade has
// two numbers; uPlot's rangeLog would always end it at a whole decade.
function round125(value, direction) {
  const power = 10 ** Math.floor(Math.log10(value));
  const digits = [1, 2, 5, 10];
  const ratio = Number((value / power).toPrecision(12));
  const digit =
    direction === Math.floor ? digits.findLast((d) => d <= ratio) : digits.find((d) => d >= ratio);
  return Number((digit * power).toPrecision(12));
}

// A plugin of uPlot that draws a thin line at a value, or nothing for null.
function referenceLine(value) {
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

// Moves the cursor to the closest measured step.
function toStep(u, left, top) {
  if (left < 0 || u.data[0].length === 0) return [left, top];
  return [u.valToPos(u.data[0][u.posToIdx(left)], "x"), top];
}

// A plugin of uPlot that shows the values at the cursor, beside it. While `frame` has the focus,
// keys move the cursor, and what it shows is read aloud.
function readout(frame, curves, owners) {
  const tip = element("div", { class: "tip", hidden: true });
  const live = element("div", { class: "visually-hidden", "aria-live": "polite" });
  const init = (u) => {
    u.over.append(tip);
    frame.after(live);
    frame.addEventListener("blur", () => u.setCursor({ left: -10, top: -10 }, true, true));
    frame.addEventListener("keydown", (event) => {
      if (!step(u, event.key)) return;
      event.preventDefault();
      const words = (line) => [...line.childNodes].map((node) => node.textContent).join(" ");
      live.textContent = [...tip.children].map(words).join(", ");
    });
  };
  const setCursor = (u) => {
    const { idx, idxs, left } = u.cursor;
    tip.hidden = idx === null || left < 0;
    if (tip.hidden) return;
    const lines = curves.map(({ label, color, describe = range }, number) => {
      const values = owners.flatMap((owner, line) => {
        return owner === number ? [u.data[line + 1][idxs[line + 1]] ?? NaN] : [];
      });
      const text = values.some(Number.isFinite) ? describe(values) : "–";
      return element("div", {}, swatch(color), element("span", {}, label), element("b", {}, text));
    });
    tip.replaceChildren(element("strong", {}, `step ${formatStep(u.data[0][idx])}`), ...lines);
    const isRight = left > u.over.clientWidth / 2;
    tip.style.left = isRight ? "auto" : `${left + 14}px`;
    tip.style.right = isRight ? `${u.over.clientWidth - left + 14}px` : "auto";
  };
  return { hooks: { init, setCursor } };
}

const range = (values) => formatRange(...finiteRange(values));

// Moves the cursor by a key, and tells whether the key is one that does.
function step(u, key) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
  if (!(key in moves)) return false;
  const now = u.cursor.left >= 0 && u.cursor.idx !== null ? u.cursor.idx : -1;
  const next = Math.min(u.data[0].length - 1, Math.max(0, now + moves[key]));
  u.setCursor({ left: u.valToPos(u.data[0][next], "x"), top: 0 }, true, true);
  return true;
}
