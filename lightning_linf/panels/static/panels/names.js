// Names of quantities and partitions. What is known of them comes with the data, from the lists in
// quantities.py and partition_names.py.

const known = { prefix: "", quantities: {}, partitions: [], not_converged: "" };

export function learn(vocabulary) {
  Object.assign(known, vocabulary);
}

function quantityOf(name) {
  const quantity = known.quantities[name];
  if (!quantity) throw new Error(`No quantity is called ${name}.`);
  return quantity;
}

// What the mark * beside a bracket means, in the words of the report.
export const notConverged = () => known.not_converged;

// A column of a later version, or of a user's own monitor, goes by its name alone.
export const isKnown = (name) => name in known.quantities;

// What a quantity is, in the sentence of the registry.
export const meaningOf = (name) => quantityOf(name).meaning;

export const unitOf = (name) => quantityOf(name).unit;

export const monitorOf = (name) => quantityOf(name).monitor;

// The tag of a quantity, or of a quantity of one partition.
export function tagOf(name, partition = null) {
  if (quantityOf(name).by_partition !== (partition !== null))
    throw new Error(`Only a quantity by partition has a tag for each partition: ${name}.`);
  return known.prefix + name + (partition === null ? "" : `/${partition}`);
}

// "geometry/secant/row" is shown as "secant/row".
export const withoutPrefix = (tag) => tag.slice(known.prefix.length);

const numberOf = (partition) => known.partitions.findIndex(({ name }) => name === partition);

// Whose geometry a partition is. One that is not built in is of blockwise Adam, too.
const optimizerOf = (partition) => known.partitions[numberOf(partition)]?.optimizer ?? "blockwise";

// "Adam (coordinate)" or "blockwise (row)".
export const partitionLabel = (partition) => `${optimizerOf(partition)} (${partition})`;

// "Adam" or "row".
export function shortLabel(partition) {
  const optimizer = optimizerOf(partition);
  return optimizer === "blockwise" ? partition : optimizer;
}

// All partitions, from fine to coarse, for which any of the runs has one of the quantities.
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
  const coarsest = numberOf("global"); // what is not built in has more blocks
  const rank = (name) => (numberOf(name) < 0 ? coarsest - 0.5 : numberOf(name));
  return [...found].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

// Of "geometry/heterogeneity_per_tensor/optimizer0" the end, which tells several tables apart.
export function tableSuffix(tag) {
  return withoutPrefix(tag).split("/").slice(1).join("/");
}

// Names of runs without the folders that all of them share.
export function shorten(runs) {
  if (runs.length < 2) return runs;
  const folders = runs.map((run) => run.split("/").slice(0, -1));
  const count = folders[0].findIndex((folder, i) => folders.some((other) => other[i] !== folder));
  const shared = count < 0 ? folders[0].length : count;
  return runs.map((run) => run.split("/").slice(shared).join("/"));
}
