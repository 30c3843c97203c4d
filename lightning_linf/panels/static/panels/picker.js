// Lets the user choose which runs are shown, by a search field and a box for each run.

import { paletteColor } from "../drawing/color.js";
import { element, swatch } from "../drawing/dom.js";
import { shorten } from "./names.js";

const FIRST_SHOWN = 6; // of many runs; more are shown on demand

export class Picker {
  constructor(changed) {
    this.changed = changed;
    this.runs = [];
    this.shown = new Set();
    this.known = new Set();
    this.search = element("input", {
      type: "search",
      placeholder: "Search runs",
      "aria-label": "Search runs",
      input: () => this.draw(),
    });
    this.list = element("ul", { class: "runs" });
    this.count = element("p", { class: "count", "aria-live": "polite" });
    const button = (text, is) =>
      element("button", { type: "button", click: () => this.setAll(is) }, text);
    this.node = element(
      "nav",
      { class: "picker", "aria-label": "Runs" },
      element(
        "details",
        { open: true },
        element("summary", {}, "Runs"),
        this.search,
        element("div", { class: "tools" }, button("All", true), button("None", false)),
        this.list,
        this.count,
      ),
    );
  }

  // Runs that were not there before start as shown, up to a number that a chart can hold.
  setRuns(runs) {
    const labels = shorten(runs.map(({ name }) => name));
    this.runs = runs.map((run, index) => ({ ...run, label: labels[index] }));
    for (const { name } of runs) {
      if (!this.known.has(name) && this.shown.size < FIRST_SHOWN) this.shown.add(name);
      this.known.add(name);
    }
    this.draw();
  }

  selected() {
    return this.runs.filter(({ name }) => this.shown.has(name));
  }

  colorOf(run) {
    return paletteColor(this.runs.findIndex(({ name }) => name === run));
  }

  found() {
    const words = this.search.value.toLowerCase().split(/\s+/);
    return this.runs.filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)));
  }

  setAll(is) {
    for (const { name } of this.found()) this.shown[is ? "add" : "delete"](name);
    this.draw();
    this.changed();
  }

  toggle(name, is) {
    this.shown[is ? "add" : "delete"](name);
    this.count.textContent = this.summary();
    this.changed();
  }

  summary() {
    return `${this.selected().length} of ${this.runs.length} shown`;
  }

  draw() {
    this.list.replaceChildren(
      ...this.found().map(({ name, label }) => {
        const box = element("input", {
          type: "checkbox",
          checked: this.shown.has(name),
          change: (event) => this.toggle(name, event.target.checked),
        });
        box.style.accentColor = this.colorOf(name);
        const text = element("span", {}, label);
        return element(
          "li",
          {},
          element("label", { title: name }, box, swatch(this.colorOf(name)), text),
        );
      }),
    );
    this.count.textContent = this.summary();
  }
}
