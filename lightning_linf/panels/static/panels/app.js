// Puts the page together: notes at the top, runs on the left, panels on the right.

import { element } from "../drawing/dom.js";
import { panelsBeside } from "./beside.js";
import { emptyPage } from "./empty.js";
import { Fan } from "./fan.js";
import { Bars } from "./layer_bars.js";
import { LayerCurves } from "./layer_curves.js";
import { HeatMap } from "./layer_map.js";
import { LayerChoice } from "./layers.js";
import { isKnown, learn } from "./names.js";
import { Notes } from "./notes.js";
import { Picker } from "./picker.js";
import { Smoothness } from "./smoothness.js";
import { Toolbar } from "./toolbar.js";
import { Verdict } from "./verdict.js";

export class App {
  // A source gives runs(), scalars(run), report(run), layers(run, tag, column) and
  // fan(run, tag, column, row), and says by hasTimes whether curves have times. A state keeps what
  // the user chooses. `colorInHost` gives the colour that a run has elsewhere, or null.
  constructor(root, source, state, colorInHost = () => null) {
    this.source = source;
    this.colorInHost = colorInHost;
    this.turn = 0;
    this.read = null;
    this.picker = new Picker(
      state,
      () => this.update(),
      (run) => this.emphasize(run),
    );
    this.toolbar = new Toolbar(
      state,
      source.hasTimes,
      () => this.showZoom(),
      () => this.update(),
    );
    const choice = new LayerChoice(state);
    const [verdict, smoothness, fan] = [new Verdict(state), new Smoothness(state), new Fan(state)];
    const [heatMap, bars, layer] = [new HeatMap(choice), new Bars(choice), new LayerCurves(choice)];
    const beside = panelsBeside(state);
    this.panels = [verdict, ...beside, smoothness, heatMap, bars, layer, fan];
    this.notes = new Notes();
    const nodes = (panels) => panels.map(({ node }) => node);
    const layers = element(
      "section",
      { class: "layers", "aria-label": "Layers" },
      choice.node,
      ...nodes([heatMap, bars, layer]),
    );
    this.main = element(
      "main",
      {},
      this.toolbar.node,
      verdict.node,
      element("section", { class: "beside", "aria-label": "The training" }, ...nodes(beside)),
      smoothness.node,
      layers,
      fan.node,
    );
    this.empty = emptyPage();
    this.layout = element("div", { class: "layout", hidden: true }, this.picker.node, this.main);
    root.append(this.notes.node, this.empty, this.layout);
  }

  // Reads the runs anew, and draws; what is drawn stays where they cannot be read.
  async reload() {
    let listed;
    try {
      listed = await this.source.runs();
    } catch (error) {
      this.read = null;
      this.notes.show([`The data cannot be read: ${error.message}`]);
      return;
    }
    const { runs, layouts, notes, vocabulary } = listed;
    const colors = new Map(runs.map(({ name }) => [name, this.colorInHost(name)]));
    const read = JSON.stringify([runs, notes, ...colors]);
    if (read === this.read) return; // as it is on the page
    this.read = read;
    learn(vocabulary);
    this.notes.show(notes);
    this.empty.hidden = runs.length > 0;
    this.layout.hidden = runs.length === 0;
    const table = ([tag, number]) => [tag, layouts[number]];
    const whole = (run) => ({
      ...run,
      tables: Object.fromEntries(Object.entries(run.tables).map(table)),
    });
    this.picker.setRuns(runs.map(whole), colors);
    if (runs.length > 0) await this.update();
  }

  async update() {
    const turn = ++this.turn;
    const view = {
      runs: this.picker.selected(),
      source: this.source,
      axis: {
        kind: this.toolbar.kind,
        zoom: () => this.toolbar.zoom(),
        setZoom: (range) => this.toolbar.setZoom(range),
      },
      isKnown,
      scalars: async (run) =>
        run.scalars.length || Object.values(run.own).flat().length
          ? this.source.scalars(run.name)
          : new Map(),
      report: async (run) =>
        run.report
          ? this.source.report(run.name).catch(({ message }) => ({ error: message }))
          : null,
      colorOf: (run) => this.picker.colorOf(run),
      emphasize: (run) => this.emphasize(run),
      isOld: () => turn !== this.turn,
    };
    this.main.setAttribute("aria-busy", "true");
    await Promise.all(this.panels.map((panel) => panel.update(view)));
    if (!view.isOld()) this.main.removeAttribute("aria-busy");
  }

  showZoom() {
    for (const panel of this.panels) panel.showZoom();
  }

  // Lets the curves of one run stand out in all charts, at the next frame; those of none for null.
  emphasize(run) {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      for (const panel of this.panels) panel.emphasize(run);
    });
  }

  // After a change of theme: colours of canvases do not follow by themselves.
  repaint() {
    this.picker.draw();
    return this.layout.hidden ? null : this.update();
  }
}
