// Lets the user choose which runs are shown, by a search field and a box for each run.

import { paletteColor } from "../drawing/color.js";
import { cutName, element, swatch } from "../drawing/dom.js";
import { shorten } from "./names.js";

const FIRST_SHOWN = 6; // of many runs; more are shown on demand

export class Picker {
  // `changed` is called after a choice, `pointed` with the run under the pointer, or with null.
  constructor(state, changed, pointed) {
    Object.assign(this, { state, changed, pointed });
    this.runs = [];
    this.chosen = state.getList("runs"); // by the user
    this.shown = new Set(this.chosen);
    this.numbers = new Map(); // of runs, as they were found: a run keeps its colour
    this.colors = new Map(); // of runs that have theirs from elsewhere
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

  // Runs that were not there before start as shown, up to a number that a chart can hold. Of the
  // given colours each is for one run: TensorBoard begins anew after seven.
  setRuns(runs, colors) {
    const owners = new Map([...colors].reverse().map(([name, color]) => [color, name]));
    this.colors = new Map(
      [...colors].filter(([name, color]) => color && owners.get(color) === name),
    );
    const labels = shorten(runs.map(({ name }) => name));
    this.runs = runs.map((run, index) => ({ ...run, label: labels[index] }));
    for (const { name } of runs) {
      if (this.numbers.has(name)) continue;
      this.numbers.set(name, this.numbers.size);
      if (!this.chosen && this.shown.size < FIRST_SHOWN) this.shown.add(name);
    }
    this.draw();
  }

  selected() {
    return this.runs.filter(({ name }) => this.shown.has(name));
  }

  colorOf(run) {
    return this.colors.get(run) ?? paletteColor(this.numbers.get(run));
  }

  found() {
    const words = this.search.value.toLowerCase().split(/\s+/);
    return this.runs.filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)));
  }

  setAll(is) {
    for (const { name } of this.found()) this.shown[is ? "add" : "delete"](name);
    this.keep();
    this.draw();
  }

  toggle(name, is) {
    this.shown[is ? "add" : "delete"](name);
    this.count.textContent = this.summary();
    this.keep();
  }

  keep() {
    this.chosen = this.selected().map(({ name }) => name);
    this.state.setList("runs", this.chosen);
    this.changed();
  }

  summary() {
    return `${this.selected().length} of ${this.runs.length} shown`;
  }

  draw() {
    const focused = this.list.contains(document.activeElement) && document.activeElement.value;
    this.list.replaceChildren(
      ...this.found().map(({ name, label }) => {
        const box = element("input", {
          type: "checkbox",
          value: name,
          checked: this.shown.has(name),
          change: (event) => this.toggle(name, event.target.checked),
        });
        box.style.accentColor = this.colorOf(name);
        const point = {
          pointerenter: () => this.pointed(name),
          pointerleave: () => this.pointed(null),
        };
        return element(
          "li",
          point,
          element("label", { title: name }, box, swatch(this.colorOf(name)), cutName(label)),
        );
      }),
    );
    if (focused) this.list.querySelector(`[value="${CSS.escape(focused)}"]`)?.focus();
    this.count.textContent = this.summary();
  }
}
