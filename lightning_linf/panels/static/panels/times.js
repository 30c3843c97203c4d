// Where on the page's axis the steps of a table lie, whose numbers come without times.

// Gives [indices, x]: the steps that have a place, and where. On the axis of time these are the steps
// at which a curve of the run was logged, too.
export async function placeSteps(view, run, steps) {
  if (view.axis.kind !== "time") return [[...steps.keys()], steps];
  const seconds = new Map();
  for (const curve of (await view.scalars(run)).values()) {
    curve.steps.forEach((step, i) => curve.seconds && seconds.set(step, curve.seconds[i]));
  }
  const placed = [...steps.keys()].filter((i) => seconds.has(steps[i]));
  return [placed, placed.map((i) => seconds.get(steps[i]))];
}
