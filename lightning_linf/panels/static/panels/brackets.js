// The mark of brackets that had not converged when they were last measured, as in the report.

import { notConverged, tagOf } from "./names.js";

// For a bracket, or for a ratio of it to others, if one of these has not.
export function markOf(all, others = []) {
  const isOpen = (index, name) => all[index].get(tagOf("converged", name))?.values.at(-1) === 0;
  return (run, name, index) => ([name, ...others].some((one) => isOpen(index, one)) ? " *" : "");
}

// What the mark means, if any bracket has it.
export function noteOfMarks(view, partitions, mark) {
  const has = (run, index) => partitions.some((name) => mark(run, name, index));
  return view.runs.some(has) ? notConverged() : "";
}
