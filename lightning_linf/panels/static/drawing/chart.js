// Draws curves and intervals with uPlot, and shows their values at the cursor. The charts of a page
// share the cursor, which uPlot synchronizes, and the zoom, which the page keeps.

import uPlot from "../vendor/uPlot.esm.js";
import { cssColor, element, onWidth } from "./dom.js";
import { lay, nearest } from "./lines.js";
import { intervals, referenceLine } from "./marks.js";
import { format } from "./numbers.js";
import { logAxis, rightOf, xAxis, xRange, yRange } from "./ranges.js";
import { readout } from "./readout.js";
import { symlogAxis, symlogScale } from "./symlog.js";

const HEIGHT = 300;
const FAINT = 0.15; // of curves beside the one that is emphasized

// Fills `parent` with a chart and returns uPlot's object. A curve is { run, label, color, dash,
// lines, fills, bars, describe }. `lines` are { x, values, width }; `fills` are areas between two of
// them, [upper, lower, alpha]; `bars` are pairs [upper, lower] that are the ends of an interval.
// `describe` turns the lines' values at a point into the text that the cursor shows; without it that
// is their range. `axis` is { kind, zoom(), setZoom(range) } of the page. `linear` is the linear width
// of a symmetric logarithmic axis, or null for another.
export function drawChart(
  parent,
  { curves, axis, log, linear = null, label, unit, reference = null, height = HEIGHT },
) {
  const { data, series, bands, owners } = lay(curves, log);
  const hadFocus = parent.contains(document.activeElement);
  const at = parent.plot?.cursor.left ?? -10;
  parent.plot?.destroy();
  const frame = element("div", {
    class: "chart",
    tabindex: "0",
    role: "group",
    "aria-label": `${label}. Arrow keys read values.`,
  });
  parent.replaceChildren(frame);
  const plot = new uPlot(
    {
      width: Math.max(frame.clientWidth, 200),
      height,
      series: [{}, ...series],
      bands,
      scales: {
        x: { time: false, range: xRange(axis.zoom) },
        y: { ...scaleOf(log, linear), range: yRange(log, linear, reference) },
      },
      axes: axes(axis.kind, unit, log, linear),
      padding: [null, rightOf(axis.kind), null, null],
      legend: { show: false },
      cursor: cursor(axis),
      hooks: { setSelect: [(u) => zoomIn(u, axis)] },
      plugins: [
        readout(frame, curves, owners, axis.kind),
        referenceLine(reference),
        intervals(curves, owners),
      ],
    },
    data,
    frame,
  );
  parent.plot = plot;
  plot.emphasize = (run) => {
    curves.forEach((curve) => {
      const alpha = run === null || curve.run === run ? 1 : FAINT;
      curve.lines.forEach((_, i) => (plot.series[curve.first + i].alpha = alpha));
    });
    plot.redraw(false);
  };
  onWidth(frame, (width) => plot.setSize({ width, height }));
  if (hadFocus) frame.focus({ preventScroll: true });
  if (at >= 0) plot.setCursor({ left: at, top: 0 }, true, false);
  return plot;
}

const scaleOf = (log, linear) =>
  linear !== null ? symlogScale(linear) : { distr: log ? 3 : 1 };

function axes(kind, unit, log, linear) {
  const symlog = linear === null ? "" : `, symlog ±${format(linear)}`;
  const grid = { stroke: cssColor("--grid"), width: 1 };
  const font = "12px system-ui, sans-serif";
  const both = {
    stroke: cssColor("--muted"),
    grid,
    ticks: grid,
    font,
    labelFont: font,
    labelSize: 18,
    labelGap: 0,
  };
  return [
    { ...both, size: 28, ...xAxis(kind) },
    {
      ...both,
      ...(log ? logAxis : linear === null ? {} : symlogAxis(linear)),
      label: unit + (log ? ", log scale" : symlog),
      size: (u, texts) => Math.max(52, 18 + 8 * longest(texts ?? [])),
      values: (u, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))),
    },
  ];
}

const longest = (texts) => Math.max(0, ...texts.map(({ length }) => length));

function cursor({ kind, setZoom }) {
  const moved = (type) => type !== "mousedown" && type !== "mouseup";
  return {
    points: { size: 7 },
    y: false,
    move: toPoint,
    dataIdx: (u, series, at) => (series === 0 ? at : nearest(u, series, at)),
    drag: { x: true, y: false, setScale: false },
    bind: { dblclick: () => () => setZoom(null) },
    sync: { key: kind, scales: ["x", null], filters: { pub: moved, sub: moved } },
  };
}

// What was selected by dragging becomes the zoom of all charts.
function zoomIn(u, { setZoom }) {
  const { left, width } = u.select;
  if (width < 5) return;
  u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  setZoom([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
}

// Moves the cursor to the closest measured point.
function toPoint(u, left, top) {
  if (left < 0 || u.data[0].length === 0) return [left, top];
  return [u.valToPos(u.data[0][u.posToIdx(left)], "x"), top];
}
