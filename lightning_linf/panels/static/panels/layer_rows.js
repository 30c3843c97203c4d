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

// Gives the rows as { name, layers, block }: `layers` are the numbers of those that a row stands for,
// and `block` is the name of the block that the row folds or unfolds, or null. `valueOf` maps a
// layer to the value that the order "value" goes by, the largest first.
export function arrange(names, { words, order, grouped, unfolded, valueOf }) {
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
    const block = blockOf(names[layer]);
    blocks.set(block, [...(blocks.get(block) ?? []), layer]);
  }
  const rows = [...blocks].map(([block, layers]) =>
    layers.length > 1 ? row(block, layers, block) : row(names[layers[0]], layers),
  );
  return sorted(rows, order, valueOf).flatMap((each) => {
    if (each.block === null) return [each];
    const isOpen = unfolded.includes(each.block);
    const head = { ...each, name: `${isOpen ? "▾" : "▸"} ${each.block} (${each.layers.length})` };
    const inside = each.layers.map((layer) => row(names[layer], [layer]));
    return isOpen ? [head, ...sorted(inside, order, valueOf)] : [head];
  });
}

const row = (name, layers, block = null) => ({ name, layers, block });

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
