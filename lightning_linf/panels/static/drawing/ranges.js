// Chooses the ends and the numbers of a chart's axes.

import uPlot from "../vendor/uPlot.esm.js";
import { formatDuration, formatStep, round125 } from "./numbers.js";
import { symlogRange } from "./symlog.js";

// Steps between numbers of the x axis: steps are whole, and seconds go by clocks.
const POWERS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
const INCREMENTS = {
  step: POWERS.flatMap((power) => [power, 2 * power, 5 * power]),
  time: [
    ...[1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800],
    ...[5, 10, 20, 50, 100].map((days) => 86400 * days),
  ],
};

export function xAxis(kind) {
  const { label, text } = xLabels(kind);
  return {
    label,
    incrs: INCREMENTS[kind],
    values: (u, ticks) => ticks.map((tick) => (tick < 0 ? "" : text(tick))),
  };
}

// What stands below an axis, and how its numbers are written.
export const xLabels = (kind) =>
  kind === "time"
    ? { label: "time since the run's start", text: formatDuration }
    : { label: "optimizer step", text: formatStep };

export const xText = (kind, value) =>
  kind === "time" ? formatDuration(value) : `step ${formatStep(value)}`;

// The zoom, or all that was measured; one point alone stands in the middle.
export function xRange(zoom) {
  return (u) => {
    if (zoom()) return zoom();
    const [low, high] = [u.data[0][0], u.data[0].at(-1)];
    if (low === undefined) return [0, 1];
    return low === high ? [low - 1, high + 1] : [low, high];
  };
}

// `linear` is the linear width of a symmetric logarithmic axis, or null for another.
export function yRange(log, linear, reference) {
  return (u, low, high) => {
    if (low === null || high === null) return log ? [0.1, 10] : [0, 1];
    const isShown = reference !== null && (!log || reference > 0);
    if (isShown) [low, high] = [Math.min(low, reference), Math.max(high, reference)];
    if (linear !== null) return symlogRange(low, high);
    if (log) {
      const [from, to] = [round125(low, Math.floor), round125(high, Math.ceil)];
      return from < to ? [from, to] : [from / 2, to * 2];
    }
    return uPlot.rangeNum(low, high, 0.08, true);
  };
}
