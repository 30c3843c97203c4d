// Which rows the panels of layers have: layers in some order, or blocks of them that unfold.

import { median } from "../drawing/numbers.js";

export const ORDERS = [
  ["depth", "depth"],
  ["value", "value"],
  ["name", "name"],
];

// Of "transformer.h.3.mlp.weight" the block is "transformer.h.3"; without a number, the first word.
export function blockOf(name) {
  const parts = name.split(".");
  const number = parts.findIndex((part) => /^\d+$/.test(part));
  return parts.slice(0, number < 0 ? 1 : number + 1).join(".");
}

// The words, with their points, that all names begin with; each name keeps one word at least.
export function sharedPrefix(names) {
  const words = names.map((name) => name.split(".").slice(0, -1));
  const first = words[0] ?? [];
  const end = first.findIndex((word, i) => words.some((other) => other[i] !== word));
  const shared = end < 0 ? first : first.slice(0, end);
  return shared.map((word) => `${word}.`).join("");
}

// Gives the rows as { name, label, layers, block }: `label` is the name without what all names begin
// with, `layers` are the numbers of those that a row stands for, and `block` is the name of the block
// that the row folds or unfolds, or null. `valueOf` maps a layer to the value that the order "value"
// goes by, the largest first.
export function arrange(names, { words, order, grouped, unfolded, valueOf }) {
  const prefix = sharedPrefix(names);
  const short = (name) => name.slice(prefix.length);
  const row = (name, layers, block = null) => ({ name, label: short(name), layers, block });
  const kept = [...names.keys()].filter((layer) =>
    words.every((word) => names[layer].toLowerCase().includes(word)),
  );
  if (!grouped)
    return sorted(
      kept.map((layer) => row(names[layer], [layer])),
      order,
      valueOf,
    );
  const blocks = new Map();
  for (const layer of kept) {
    const block = prefix + blockOf(short(names[layer]));
    blocks.set(block, [...(blocks.get(block) ?? []), layer]);
  }
  const rows = [...blocks].map(([block, layers]) =>
    layers.length > 1 ? row(block, layers, block) : row(names[layers[0]], layers),
  );
  return sorted(rows, order, valueOf).flatMap((each) => {
    if (each.block === null) return [each];
    const isOpen = unfolded.includes(each.block);
    const mark = (text) => `${isOpen ? "▾" : "▸"} ${text} (${each.layers.length})`;
    const head = { ...each, name: mark(each.name), label: mark(each.label) };
    const inside = each.layers.map((layer) => row(names[layer], [layer]));
    return isOpen ? [head, ...sorted(inside, order, valueOf)] : [head];
  });
}

function sorted(rows, order, valueOf) {
  if (order === "depth") return rows;
  if (order === "name")
    return rows.toSorted((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const value = (each) => median(each.layers.map(valueOf));
  const rank = new Map(rows.map((each) => [each, value(each)]));
  const finite = (each) => (Number.isFinite(rank.get(each)) ? rank.get(each) : -Infinity);
  return rows.toSorted((a, b) => finite(b) - finite(a) || 0);
}

// The numbers of the rows at one step: a block has the median of its layers.
export const rowValues = (rows, values) =>
  rows.map(({ layers }) =>
    layers.length === 1 ? values[layers[0]] : median(layers.map((layer) => values[layer])),
  );
