// Files that the browser makes from what is on the page.

import { cssColor, element } from "./dom.js";

function save(name, blob) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function toCsv({ columns, rows }) {
  const cell = (value) => {
    const text = String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

export function saveCsv(name, table) {
  save(`${name}.csv`, new Blob([toCsv(table)], { type: "text/csv" }));
}

// The canvases of a panel below each other, under its title and legend.
export function toImage(title, legend, canvases) {
  const scale = window.devicePixelRatio || 1;
  const [margin, head] = [16 * scale, 56 * scale];
  const result = element("canvas");
  result.width = Math.max(...canvases.map((canvas) => canvas.width)) + 2 * margin;
  result.height = head + canvases.reduce((sum, canvas) => sum + canvas.height + margin, 0);
  const context = result.getContext("2d");
  context.fillStyle = cssColor("--card");
  context.fillRect(0, 0, result.width, result.height);
  context.fillStyle = cssColor("--text");
  context.font = `600 ${15 * scale}px system-ui, sans-serif`;
  context.fillText(title, margin, 24 * scale);
  context.font = `${12 * scale}px system-ui, sans-serif`;
  let x = margin;
  context.fillStyle = cssColor("--muted");
  context.lineWidth = 3 * scale;
  for (const { label, color, dash = [] } of legend) {
    context.strokeStyle = color;
    context.setLineDash(dash.map((length) => length * scale));
    context.beginPath();
    context.moveTo(x, 39 * scale);
    context.lineTo(x + 24 * scale, 39 * scale);
    context.stroke();
    context.fillText(label, x + 30 * scale, 43 * scale);
    x += context.measureText(label).width + 50 * scale;
  }
  let y = head;
  for (const canvas of canvases) {
    context.drawImage(canvas, margin, y);
    y += canvas.height + margin;
  }
  return result;
}

export function savePng(name, ...content) {
  toImage(...content).toBlob((blob) => save(`${name}.png`, blob));
}
