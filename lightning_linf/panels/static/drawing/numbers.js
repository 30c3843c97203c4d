// Reads numbers from JSON, writes them for readers, and smooths curves.

// JSON has no NaN and no infinity: "NaN", "Infinity" and "-Infinity" stand for them.
export const fromJson = Number;

export function format(value) {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e5)) {
    const [digits, power] = value.toExponential(2).split("e");
    return `${Number(digits)}e${Number(power)}`.replaceAll("-", "−");
  }
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

// What is known of a number between two ends, of which NaN and an infinite one tell nothing. An
// interval that starts at 0 is one of sizes, of which all are at least 0.
export function formatRange(lower, upper) {
  const [from, to] = [format(lower), format(upper)];
  if (from === to) return from;
  const [isFrom, isTo] = [lower, upper].map(Number.isFinite);
  if (isFrom && isTo) return `${from} to ${to}`;
  if (isFrom && lower !== 0) return `at least ${from}`;
  return isTo ? `at most ${to}` : "not known";
}

export function formatStep(step) {
  return step.toLocaleString("en");
}

// "2 d 3 h", "1 h 5 min", "2 min 30 s", "4.5 s": the two largest units.
export function formatDuration(seconds) {
  if (seconds < 60) return `${Number(seconds.toFixed(seconds < 10 ? 1 : 0))} s`;
  const units = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const first = units.findIndex(([, size]) => seconds >= size);
  const [[large, most], [small, least]] = units.slice(first, first + 2);
  const rounded = Math.round(seconds / least) * least;
  if (rounded !== seconds) return formatDuration(rounded); // which may reach the next unit
  const rest = (seconds % most) / least;
  return `${Math.floor(seconds / most)} ${large}${rest ? ` ${rest} ${small}` : ""}`;
}

// Exponential moving average as TensorBoard's, without its bias at the start.
export function smooth(values, weight) {
  if (weight === 0) return values;
  let last = 0;
  let mass = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    last = weight * last + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return last / mass;
  });
}

// The middle one of the finite values; NaN without any.
export function median(values) {
  const finite = values.filter(Number.isFinite).sort((a, b) => a - b);
  const half = finite.length / 2;
  return finite.length ? (finite[Math.floor(half)] + finite[Math.ceil(half) - 1]) / 2 : NaN;
}

export function finiteRange(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// Rounds to the next of 1, 2 and 5 times a power of ten, so that an axis of less than a decade has
// two numbers; uPlot's rangeLog would always end it at a whole decade.
export function round125(value, direction) {
  const [digits, power] = value.toExponential(11).split("e").map(Number);
  const ends = [1, 2, 5, 10];
  const digit =
    direction === Math.floor ? ends.findLast((d) => d <= digits) : ends.find((d) => d >= digits);
  const rounded = Number(`${digit}e${power}`);
  return Math.min(Number.MAX_VALUE, Math.max(Number.MIN_VALUE, rounded));
}
