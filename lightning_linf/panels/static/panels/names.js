// What the writer's names mean: partitions, from fine to coarse, and tags.

const GEOMETRY = "geometry/";
const ORDER = ["coordinate", "row", "column", "head", "tensor", "module"];
const WORDS = { coordinate: "Adam (coordinate)", global: "SGD (global)" };

export const tagOf = (quantity, partition = null) =>
  GEOMETRY + quantity + (partition === null ? "" : `/${partition}`);

export function partitionLabel(partition) {
  return WORDS[partition] ?? `blockwise (${partition})`;
}

// All partitions with a curve of one of the quantities in any of the runs' scalars.
export function partitionsIn(runs, quantities) {
  const found = new Set();
  for (const run of runs) {
    for (const tag of run.scalars) {
      for (const quantity of quantities) {
        const start = tagOf(quantity, "");
        if (tag.startsWith(start)) found.add(tag.slice(start.length));
      }
    }
  }
  const rank = (name) => {
    if (name === "global") return ORDER.length + 1;
    return ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length;
  };
  return [...found].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

// "geometry/heterogeneity_per_tensor/optimizer0": the optimizer, where there are several.
export function optimizerOf(tag) {
  return tag.slice(GEOMETRY.length).split("/").slice(1).join("/");
}

// Names of runs without the folders that all of them share.
export function shorten(runs) {
  if (runs.length < 2) return runs;
  const folders = runs.map((run) => run.split("/").slice(0, -1));
  const count = folders[0].findIndex((folder, i) => folders.some((other) => other[i] !== folder));
  const shared = count < 0 ? folders[0].length : count;
  return runs.map((run) => run.split("/").slice(shared).join("/"));
}
