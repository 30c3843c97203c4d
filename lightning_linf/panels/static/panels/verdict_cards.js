// A card for each of a few runs: its verdict, the steps of each geometry on one axis, what was
// measured, and the last report.

import { cutName, element, swatch } from "../drawing/dom.js";
import { format, formatRange, formatStep } from "../drawing/numbers.js";
import { styleOf } from "./curves.js";
import { partitionLabel, shortLabel } from "./names.js";
import { failureText, reportText } from "./report_text.js";

export class Cards {
  constructor() {
    this.unfolded = new Set(); // names of runs whose report is open
  }

  draw(view, told) {
    const place = placeOf(told);
    const cards = told.map((each) => this.card(view, each, place));
    return element("div", { class: "verdicts" }, ...cards);
  }

  card(view, { run, report, failure, ends, mark }, place) {
    const head = element("h3", {}, swatch(view.colorOf(run.name)), cutName(run.label));
    const last = ends.get("coordinate");
    const at = last && element("p", { class: "muted" }, `at step ${formatStep(last.step)}`);
    const partitions = [...ends.keys()];
    const rows = partitions.flatMap((name) =>
      bracketRow(name, mark(name), ends.get(name), place, styleOf(view, run, partitions, name)),
    );
    const status = failure
      ? `not finite since step ${formatStep(failure.since)}`
      : report.verdict_status;
    return element(
      "article",
      {
        class: failure ? "verdict failed" : "verdict",
        pointerenter: () => view.emphasize(run.name),
        pointerleave: () => view.emphasize(null),
      },
      head,
      status && element("p", { class: "figure" }, element("b", {}, status)),
      at,
      failure ? null : element("dl", { class: "brackets" }, ...rows),
      ...(failure ? failureText(failure, last) : []),
      ...reportText(run.label, report, failure !== null, this.unfolding(run.name)),
    );
  }

  unfolding(name) {
    return {
      open: this.unfolded.has(name),
      toggle: ({ target }) => this.unfolded[target.open ? "add" : "delete"](name),
    };
  }
}

// Puts a number on the axis that all cards share, in per cent of its length.
function placeOf(told) {
  const numbers = told.flatMap(({ ends }) =>
    [...ends.values()].flatMap((end) => (end ? [end.along, end.lower, end.upper] : [])),
  );
  const shown = numbers.filter((value) => Number.isFinite(value) && value > 0);
  const [low, high] = [Math.min(0.8, ...shown) / 1.1, Math.max(1.25, ...shown) * 1.1];
  return (value) =>
    value > 0 ? 100 * Math.min(1, Math.log(value / low) / Math.log(high / low)) : 0;
}

function bracketRow(name, mark, end, place, { color }) {
  if (!end) return [];
  const bar = element("i", { class: "bar" });
  const [from, to] = [place(end.lower), place(end.upper)];
  bar.style.left = `${from}%`;
  bar.style.width = `max(4px, ${to - from}%)`;
  bar.style.background = color;
  const one = element("i", { class: "one", title: "1: as SGD" });
  one.style.left = `${place(1)}%`;
  const dot = element("i", { class: "dot", hidden: Number.isNaN(end.along) });
  dot.style.left = `${place(end.along)}%`;
  dot.style.background = color;
  return [
    element("dt", { title: partitionLabel(name) }, shortLabel(name) + mark),
    element(
      "dd",
      {},
      element("span", { class: "track" }, one, bar, dot),
      element("b", { class: "along" }, format(end.along)),
      element("span", { class: "range" }, formatRange(end.lower, end.upper)),
    ),
  ];
}
