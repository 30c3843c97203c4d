// What holds for all charts of the page: what their x axis is, and its zoom, with a way back.

import { choice, element } from "../drawing/dom.js";
import { xText } from "../drawing/ranges.js";

export class Toolbar {
  // `zoomed` is called with the range, or with null for all of it; `turned` when the axis is another.
  constructor(state, hasTimes, zoomed, turned) {
    Object.assign(this, { state, zoomed });
    const kinds = [
      ["step", "steps"],
      ["time", "time"],
    ];
    const isTime = hasTimes && state.get("x") === "time";
    this.kind = isTime ? "time" : "step";
    const axis = choice("X axis", "x-axis", kinds, this.kind, (kind) => {
      this.kind = kind;
      state.set("x", kind, "step");
      state.set("zoom", null);
      this.show();
      turned();
    });
    axis.hidden = !hasTimes;
    this.range = element("span", { class: "muted" });
    this.reset = element(
      "button",
      { type: "button", click: () => this.setZoom(null) },
      "Reset zoom",
    );
    const hint =
      "Steps count from 1; event files and geometry.jsonl count from 0. Drag in a chart to zoom.";
    this.node = element(
      "div",
      { class: "toolbar", role: "group", "aria-label": "All charts" },
      axis,
      this.range,
      this.reset,
      element("span", { class: "muted hint" }, hint),
    );
    this.show();
  }

  zoom() {
    const ends = this.state.get("zoom")?.split("to").map(Number) ?? [];
    return ends.length === 2 && ends.every(Number.isFinite) && ends[0] < ends[1] ? ends : null;
  }

  setZoom(range) {
    const digits = this.kind === "step" ? Math.round : (value) => Number(value.toFixed(1));
    const ends = range?.map(digits);
    this.state.set("zoom", ends && ends[0] < ends[1] ? ends.join("to") : null);
    this.show();
    this.zoomed();
  }

  show() {
    const zoom = this.zoom();
    this.reset.hidden = this.range.hidden = zoom === null;
    if (zoom) this.range.textContent = zoom.map((end) => xText(this.kind, end)).join(" to ");
  }
}
