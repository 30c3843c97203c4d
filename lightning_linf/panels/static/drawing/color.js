// Chooses colours: those of runs and partitions, which differ in either theme, and of heat maps.

const LIGHT = [
  "#2563eb",
  "#e0570b",
  "#0b8a62",
  "#8b35d6",
  "#d0246f",
  "#0a7f9c",
  "#a16207",
  "#64748b",
];
const DARK = [
  "#6ea8fe",
  "#fb9a4b",
  "#3fd29b",
  "#c493fc",
  "#f680b8",
  "#3cd0e6",
  "#f2c744",
  "#a3b1c6",
];
const DASHES = [
  [],
  [8, 4],
  [2, 3],
  [10, 3, 2, 3],
  [18, 4],
  [10, 3, 2, 3, 2, 3],
  [2, 9],
  [10, 3, 10, 3, 2, 3],
];
// Every eighth of matplotlib's viridis (CC0).
const VIRIDIS = [
  [68, 1, 84],
  [71, 44, 122],
  [59, 81, 139],
  [44, 113, 142],
  [33, 144, 141],
  [39, 173, 129],
  [92, 200, 99],
  [170, 220, 50],
  [253, 231, 37],
];

const isDark = () => document.documentElement.dataset.theme === "dark";

// The first eight are chosen by hand; further ones go round the circle of hues by the golden angle,
// in three kinds of lightness, so that each differs from those before it.
export function paletteColor(index) {
  if (index < LIGHT.length) return (isDark() ? DARK : LIGHT)[index];
  const lightness = (isDark() ? [0.65, 0.8, 0.55] : [0.42, 0.3, 0.54])[index % 3];
  return fromHsl((342 + index * 137.508) % 360, 0.9, lightness);
}

function fromHsl(hue, saturation, lightness) {
  const size = saturation * Math.min(lightness, 1 - lightness);
  const channel = (shift) => {
    const k = (shift + hue / 30) % 12;
    const value = lightness - size * Math.max(-1, Math.min(k - 3, 9 - k, 1));
    return Math.round(255 * value)
      .toString(16)
      .padStart(2, "0");
  };
  return `#${channel(0)}${channel(8)}${channel(4)}`;
}

export const dashOf = (index) => DASHES[index % DASHES.length];

export function withAlpha(color, alpha) {
  const channels = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  return `rgba(${channels.join(", ")}, ${alpha})`;
}

// Returns the colour at a position from 0 to 1.
export function mapColor(position) {
  const at = Math.min(1, Math.max(0, position)) * (VIRIDIS.length - 1);
  const index = Math.min(VIRIDIS.length - 2, Math.floor(at));
  const mixed = VIRIDIS[index].map((low, channel) =>
    Math.round(low + (at - index) * (VIRIDIS[index + 1][channel] - low)),
  );
  return `rgb(${mixed.join(", ")})`;
}
