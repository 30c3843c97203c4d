// What a run came to: its last bracket, and whether its loss is still a number.

import { tagOf } from "./names.js";

// The last step with both ends of the advantage of a partition; null without one.
export function lastOf(scalars, name) {
  const get = (quantity) => scalars.get(tagOf(quantity, name));
  const [along, lower, upper] = ["step_advantage", "advantage_lower", "advantage_upper"].map(get);
  if (!lower || !upper) return null;
  const uppers = new Map(upper.steps.map((step, i) => [step, upper.values[i]]));
  const at = lower.steps.findLastIndex((step) => uppers.has(step)); // one end is written first
  if (at < 0) return null;
  const step = lower.steps[at];
  const own = along?.values[along.steps.lastIndexOf(step)] ?? NaN;
  return { step, along: own, lower: lower.values[at], upper: uppers.get(step) };
}

// The loss that has stopped being a finite number, and the step since which; null if none has.
export function failureOf(run, scalars) {
  const tags = [...(run.own.loss ?? []), tagOf("probe_loss")];
  const failed = tags.flatMap((tag) => {
    const since = scalars.get(tag)?.not_finite_since ?? null;
    return since === null ? [] : [{ tag, since }];
  });
  return failed.sort((a, b) => a.since - b.since)[0] ?? null;
}
