// What the page says before anything was measured.

import { element } from "../drawing/dom.js";

const EXAMPLE = `from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor, LinfSmoothnessMonitor,
)

trainer = Trainer(
    callbacks=[
        GradientHeterogeneityMonitor(every_n_steps=50),
        LinfSmoothnessMonitor(every_n_steps=500),
    ]
)`;

export function emptyPage() {
  const how =
    "Add the monitors to your Trainer. Their numbers appear here at the first measured step:";
  return element(
    "section",
    { class: "empty", hidden: true },
    element("h2", {}, "No geometry data yet"),
    element("p", {}, how),
    element("pre", { tabindex: "0" }, element("code", {}, EXAMPLE)),
    element("p", { class: "muted" }, "Runs without geometry data are not listed."),
  );
}
