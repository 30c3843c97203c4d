// The small panels beside the geometry: the training's own curves, its noise, and how near its steps
// are to instability and to the best ones.

import { partitionLabel, partitionsIn, tagOf } from "./names.js";
import { ScalarPanel } from "./scalar_panel.js";

const all = (keys) => keys;

// A training's own curves, which go by their tags.
const own = (kind) => (run) =>
  (run.own[kind] ?? []).map((tag) => ({ key: tag, label: tag, read: one(tag) }));

const one = (tag) => (scalars) => (scalars.has(tag) ? [scalars.get(tag)] : null);

const scalar = (name, label) => ({
  key: name,
  label,
  read: (scalars) => one(tagOf(name))(scalars),
});

const both = (lower, upper) => (scalars) => {
  const ends = [scalars.get(lower), scalars.get(upper)];
  return ends.every(Boolean) ? ends : null;
};

// Of a lower end and the relative distance to the upper one, the two ends.
function edgeOf(scalars) {
  const [lower, error] = [scalars.get(tagOf("edge")), scalars.get(tagOf("edge_relative_error"))];
  if (!lower || !error) return lower ? [lower] : null;
  const errors = new Map(error.steps.map((step, i) => [step, error.values[i]]));
  const values = lower.steps.map((step, i) => lower.values[i] * (1 + (errors.get(step) ?? NaN)));
  return [lower, { ...lower, values }];
}

function noiseScales(run) {
  const bracket = (name) => ({
    key: name,
    label: partitionLabel(name),
    read: both(tagOf("noise_scale_lower", name), tagOf("noise_scale_upper", name)),
  });
  return [
    scalar("noise_scale", "all entries alike"),
    ...partitionsIn([run], ["noise_scale_lower"]).map(bracket),
  ];
}

const PANELS = [
  {
    name: "loss",
    title: "Loss",
    text: "What the training itself logs, at the steps of its loggers.",
    unit: "loss",
    log: null, // by the values
    canSmooth: true,
    quantities: [],
    find: own("loss"),
    standard: (keys) => {
      const usual = keys.filter((key) => /train|val/i.test(key));
      return (usual.length ? usual : keys).slice(0, 4);
    },
  },
  {
    name: "learning-rate",
    title: "Learning rate",
    text: "What the training logs, and up to which rate its steps would be stable.",
    unit: "learning rate",
    log: true,
    mayCoincide: true, // several groups mostly have one rate
    quantities: ["largest_stable_lr"],
    find: (run) => [
      ...own("learning_rate")(run),
      scalar("largest_stable_lr", "largest stable one"),
    ],
    standard: all,
  },
  {
    name: "edge",
    title: "Edge of stability",
    text: "Above 1, the thin line, steps with the present preconditioner diverge.",
    unit: "edge",
    reference: 1,
    log: true,
    quantities: ["edge", "edge_relative_error"],
    find: () => [{ key: "edge", label: "edge", read: edgeOf }],
    standard: all,
  },
  {
    name: "best-step",
    title: "Best multiple of the last step",
    text: "Above 1, the thin line, the step was too short; below, too long; below 0, uphill.",
    unit: "× the last step",
    reference: 1,
    log: null, // by the values
    quantities: ["best_step_multiple"],
    find: () => [scalar("best_step_multiple", "best multiple")],
    standard: all,
  },
  {
    name: "gain",
    title: "Change of the loss by the last step",
    text: "Below 0, the thin line, the step lowered the loss of the batches measured.",
    unit: "loss",
    reference: 0,
    log: null, // by the values
    quantities: ["step_gain"],
    find: () => [scalar("step_gain", "change")],
    standard: all,
  },
  {
    name: "noise",
    title: "Noise scale",
    text: "The batch size at which noise equals signal; of a geometry, for its steepest descent.",
    unit: "samples",
    log: true,
    quantities: ["noise_scale", "noise_scale_lower", "noise_scale_upper"],
    find: noiseScales,
    standard: (keys) => keys.filter((key) => key === "noise_scale" || key === "coordinate"),
  },
];

export const panelsBeside = (state) => PANELS.map((about) => new ScalarPanel(state, about));
