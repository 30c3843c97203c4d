// The verdicts of many runs as a table: a row for each, which lets its curves stand out.

import { cutName, element, swatch } from "../drawing/dom.js";
import { format, formatRange, formatStep } from "../drawing/numbers.js";

const HEADINGS = ["run", "verdict", "step", "Adam's step, along g", "at worst", "measured in"];

export function verdictTable(view, told) {
  const row = ({ run, report, failure, ends }) => {
    const last = ends.get("coordinate");
    const status = failure
      ? `not finite since step ${formatStep(failure.since)}`
      : (report.verdict_status ?? "–");
    const numbers =
      failure || !last ? ["–", "–"] : [format(last.along), formatRange(last.lower, last.upper)];
    const cells = [
      status,
      last ? formatStep(last.step) : "–",
      ...numbers,
      report.coordinates ?? "–",
    ];
    return element(
      "tr",
      {
        pointerenter: () => view.emphasize(run.name),
        pointerleave: () => view.emphasize(null),
      },
      element("th", { scope: "row" }, swatch(view.colorOf(run.name)), cutName(run.label)),
      ...cells.map((cell, index) => element("td", { class: index ? "" : "status" }, cell)),
    );
  };
  const head = HEADINGS.map((text) => element("th", { scope: "col" }, text));
  return element(
    "div",
    { class: "scroll many", tabindex: "0", role: "region", "aria-label": "Verdicts" },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...told.map(row)),
    ),
  );
}
