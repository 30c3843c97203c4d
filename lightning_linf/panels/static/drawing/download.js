// Makes files, CSV and PNG, from what is on the page.

import { cssColor, element } from "./dom.js";

function save(name, blob) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// Puts an apostrophe before what a spreadsheet would otherwise run as a formula.
function plain(name) {
  return /^[=+\-@\t\r\n＝＋－＠]/.test(name) ? `'${name}` : name;
}

export function toCsv({ columns, rows }) {
  const cell = (value) => {
    const text = typeof value === "string" ? plain(value) : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

export function saveCsv(name, table) {
  save(`${name}.csv`, new Blob([toCsv(table)], { type: "text/csv" }));
}

// Draws the canvases of a panel below each other, under its title and legend.
export function toImage(title, legend, canvases) {
  const scale = window.devicePixelRatio || 1;
  const margin = 16 * scale;
  const result = element("canvas");
  const context = result.getContext("2d");
  const width = Math.max(...canvases.map((canvas) => canvas.width));
  const small = `${12 * scale}px system-ui, sans-serif`;
  context.font = small;
  const entries = flow(context, legend, width, 50 * scale);
  const numLines = 1 + Math.max(0, ...entries.map(({ line }) => line));
  const head = (36 + 20 * numLines) * scale;
  result.width = width + 2 * margin; // which also resets the context
  result.height = head + canvases.reduce((sum, canvas) => sum + canvas.height + margin, 0);
  context.fillStyle = cssColor("--card");
  context.fillRect(0, 0, result.width, result.height);
  context.fillStyle = cssColor("--text");
  context.font = `600 ${15 * scale}px system-ui, sans-serif`;
  context.fillText(title, margin, 24 * scale);
  context.font = small;
  context.fillStyle = cssColor("--muted");
  context.lineWidth = 3 * scale;
  for (const { label, color, dash = [], at, line } of entries) {
    const [x, y] = [margin + at, (39 + 20 * line) * scale];
    context.strokeStyle = color;
    context.setLineDash(dash.map((length) => length * scale));
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + 24 * scale, y);
    context.stroke();
    context.fillText(label, x + 30 * scale, y + 4 * scale, width - 30 * scale);
  }
  let y = head;
  for (const canvas of canvases) {
    context.drawImage(canvas, margin, y);
    y += canvas.height + margin;
  }
  return result;
}

// Gives each entry of a legend its line, and where on it; `extra` is room beside the label.
function flow(context, legend, width, extra) {
  let [at, line] = [0, 0];
  return legend.map((entry) => {
    const room = context.measureText(entry.label).width + extra;
    if (at > 0 && at + room > width) [at, line] = [0, line + 1];
    const placed = { ...entry, at, line };
    at += room;
    return placed;
  });
}

export function savePng(name, ...content) {
  toImage(...content).toBlob((blob) => save(`${name}.png`, blob));
}
