// A symmetric logarithmic axis for values of both signs: about linear between ± its linear width, and
// logarithmic beyond, as matplotlib's scale "asinh".

import { finiteRange, round125 } from "./numbers.js";

const FLAT = 10; // half of the values within this part of the largest cannot be read on a linear axis
const DECADES = 4; // that the axis has beyond its linear width at most
const ROOM = 24; // pixels between two numbers

// Sizes of the values that are not zero, in order.
const sizesOf = (values) =>
  values
    .map(Math.abs)
    .filter((size) => Number.isFinite(size) && size > 0)
    .sort((a, b) => a - b);

// Whether a few large values, not all of them positive, flatten the rest on a linear axis.
export function isFlattened(values) {
  const sizes = sizesOf(values);
  return finiteRange(values)[0] < 0 && sizes.at(-1) > FLAT * sizes[Math.floor(sizes.length / 2)];
}

// The power of ten below which at most a tenth of the values lie; null where none is negative, as a
// logarithmic axis has place for these.
export function linearWidth(values) {
  const sizes = sizesOf(values);
  if (!(finiteRange(values)[0] < 0)) return null;
  const exponent = (size) => Math.floor(Math.log10(size));
  const least = exponent(sizes.at(-1)) - DECADES;
  return Number(`1e${Math.max(least, exponent(sizes[Math.floor(sizes.length / 10)]))}`);
}

export const symlogScale = (width) => ({ distr: 4, asinh: width });

// The distance between two numbers of an axis for uPlot, which leaves all out where it knows none that
// fits. An axis whose numbers are chosen otherwise has one that always does.
export const wholeAxis = (u, axis, low, high) => [Math.max(5, high - low)];

// uPlot's axis: numbers at 0 and at powers of ten, as many as there is room for.
export const symlogAxis = (width) => ({
  incrs: wholeAxis,
  splits: (u, axis, low, high) => {
    const place = (value) => Math.asinh(value / width);
    const pixels = u.height / (place(high) - place(low));
    const every = Math.ceil(ROOM / (Math.LN10 * pixels));
    const most = Math.floor(Math.log10(Math.max(-low, high) / width) + 1e-9);
    const powers = Array.from({ length: most + 1 }, (_, i) => most - i);
    const sizes = powers
      .filter((power, i) => i % every === 0)
      .map((power) => Number((width * 10 ** power).toPrecision(12)))
      .filter((size) => place(size) * pixels >= ROOM);
    const all = [...sizes.map((size) => -size), 0, ...sizes.reverse()];
    return all.filter((tick) => low <= tick && tick <= high);
  },
  filter: (u, ticks) => ticks,
});

// Ends of 1, 2 or 5 times a power of ten, or 0.
export function symlogRange(low, high) {
  const end = (size) => (size > 0 ? round125(size, Math.ceil) : 0);
  const [from, to] = [-end(-low), end(high)];
  return from < to ? [from, to] : [-1, 1];
}
