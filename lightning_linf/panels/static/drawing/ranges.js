// Chooses the ends and the numbers of a chart's axes.

import uPlot from "../vendor/uPlot.esm.js";
import { formatDuration, formatStep, round125 } from "./numbers.js";
import { symlogRange, wholeAxis } from "./symlog.js";

// Steps between numbers of the x axis: steps are whole, and seconds go by clocks.
const POWERS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
const INCREMENTS = {
  step: POWERS.flatMap((power) => [power, 2 * power, 5 * power]),
  time: [
    ...[1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800],
    ...[5, 10, 20, 50, 100].map((days) => 86400 * days),
  ],
};

const LETTER = 7; // pixels of a letter of these numbers

export function xAxis(kind) {
  const { label, text } = xLabels(kind);
  return {
    label,
    incrs: INCREMENTS[kind],
    space: (u, axis, low, high) => Math.max(50, LETTER * (letters(kind, high) + 1)),
    values: (u, ticks) => ticks.map((tick) => (tick < 0 ? "" : text(tick))),
  };
}

// How many letters a number of the axis has at most: those of "1 min 30 s", or of the last step.
const letters = (kind, high) =>
  kind === "time" ? (high < 60 ? 4 : 10) : formatStep(Math.round(high)).length;

// The room to the right of a chart, into which half of the last number may reach.
export const rightOf = (kind) => (u) =>
  Math.max(25, (LETTER * letters(kind, u.scales.x?.max ?? 0)) / 2);

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

const Y_ROOM = 24; // pixels between two numbers
const DIGITS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1]];

// uPlot's logarithmic axis: as many numbers as there is room for. (uPlot's own way to choose them
// never ends where they begin below about 1e-32.)
export const logAxis = {
  incrs: wholeAxis,
  splits: (u, axis, low, high) => {
    const decades = Math.log10(high) - Math.log10(low);
    const pixels = u.bbox.height / window.devicePixelRatio / decades;
    const gap = (digits) => Math.log10(10 / digits.at(-1));
    const digits = DIGITS.find((each) => pixels * gap(each) >= Y_ROOM) ?? [1];
    const every = Math.ceil(Y_ROOM / pixels);
    const [first, last] = [low, high].map((end) => Math.floor(Math.log10(end)));
    const powers = Array.from({ length: last - first + 1 }, (_, i) => first + i);
    return powers
      .filter((power) => power % every === 0)
      .flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)))
      .filter((tick) => low <= tick && tick <= high);
  },
  filter: (u, ticks) => ticks,
};

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
    if (low === 0 && high === 0) return [-1, 1];
    return uPlot.rangeNum(low, high, 0.08, true);
  };
}
