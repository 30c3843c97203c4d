// Puts the page together: notes at the top, runs on the left, panels on the right.

import { element } from "../drawing/dom.js";
import { Fan } from "./fan.js";
import { Bars } from "./layer_bars.js";
import { HeatMap } from "./layer_map.js";
import { LayerChoice } from "./layers.js";
import { learn } from "./names.js";
import { Picker } from "./picker.js";
import { Smoothness } from "./smoothness.js";
import { Verdict } from "./verdict.js";

const EXAMPLE = `from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor, LinfSmoothnessMonitor,
)

trainer = Trainer(
    callbacks=[
        GradientHeterogeneityMonitor(every_n_steps=50),
        LinfSmoothnessMonitor(every_n_steps=500),
    ]
)`;

export class App {
  // A source gives runs(), scalars(run), report(run), layers(run, tag, column) and
  // fan(run, tag, column, row).
  constructor(root, source) {
    this.source = source;
    this.turn = 0;
    this.read = null;
    this.picker = new Picker(() => this.update());
    const choice = new LayerChoice();
    const [heatMap, bars] = [new HeatMap(choice), new Bars(choice)];
    const [verdict, smoothness, fan] = [new Verdict(), new Smoothness(), new Fan()];
    this.panels = [verdict, smoothness, heatMap, bars, fan];
    this.notes = element("ul", {
      class: "notes",
      role: "status",
      "aria-label": "Notes",
      hidden: true,
    });
    const layers = element(
      "section",
      { class: "layers", "aria-label": "Layers" },
      choice.node,
      heatMap.node,
      bars.node,
    );
    this.main = element("main", {}, verdict.node, smoothness.node, layers, fan.node);
    this.empty = element(
      "section",
      { class: "empty", hidden: true },
      element("h2", {}, "No geometry data yet"),
      element(
        "p",
        {},
        "Add the monitors to your Trainer. Their numbers appear here at the first measured step:",
      ),
      element("pre", {}, element("code", {}, EXAMPLE)),
      element("p", { class: "muted" }, "Runs without geometry data are not listed."),
    );
    this.layout = element("div", { class: "layout", hidden: true }, this.picker.node, this.main);
    root.append(this.notes, this.empty, this.layout);
  }

  // Reads the runs anew, and draws; what is drawn stays where they cannot be read.
  async reload() {
    let runs, notes, vocabulary;
    try {
      ({ runs, notes, vocabulary } = await this.source.runs());
    } catch (error) {
      this.read = null;
      this.note([`The data cannot be read: ${error.message}`]);
      return;
    }
    const read = JSON.stringify([runs, notes]);
    if (read === this.read) return; // as it is on the page, which keeps its zoom and cursor
    this.read = read;
    learn(vocabulary);
    this.note(notes);
    this.empty.hidden = runs.length > 0;
    this.layout.hidden = runs.length === 0;
    this.picker.setRuns(runs);
    if (runs.length > 0) await this.update();
  }

  note(notes) {
    this.notes.replaceChildren(...notes.map((note) => element("li", {}, note)));
    this.notes.hidden = notes.length === 0;
  }

  async update() {
    const turn = ++this.turn;
    const view = {
      runs: this.picker.selected(),
      source: this.source,
      scalars: async (run) => (run.scalars.length ? this.source.scalars(run.name) : new Map()),
      report: async (run) =>
        run.report ? this.source.report(run.name).catch(({ message }) => ({ error: message })) : null,
      colorOf: (run) => this.picker.colorOf(run),
      isOld: () => turn !== this.turn,
    };
    this.main.setAttribute("aria-busy", "true");
    await Promise.all(this.panels.map((panel) => panel.update(view)));
    if (!view.isOld()) this.main.removeAttribute("aria-busy");
  }

  // After a change of theme: colours of canvases do not follow by themselves.
  repaint() {
    this.picker.draw();
    return this.layout.hidden ? null : this.update();
  }
}
