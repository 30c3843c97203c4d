// A run's last report in the words of the package: the page shows them and makes none of its own.

import { element, tableOf } from "../drawing/dom.js";
import { formatStep } from "../drawing/numbers.js";

const lines = (kind, texts) => texts.map((text) => element("p", { class: kind }, text));

// Verdict and shares, with what was measured, and what they rest on, folded: all that has not been
// said above it. `unfolding` holds what the fold starts with.
export function reportText(run, report, hasFailed, unfolding) {
  if (report.error) return lines("muted", [report.error]);
  return [
    ...(hasFailed ? [] : lines("answer", [report.verdict])),
    ...(hasFailed ? [] : lines("shares", [report.shares])),
    ...lines("muted settings", [report.settings]),
    element(
      "details",
      unfolding,
      element("summary", {}, `Report at step ${formatStep(report.step)}`),
      ...lines(
        "text",
        report.header.filter((line) => line !== report.settings),
      ),
      tableOf(`Report of ${run}: table`, report.headings, report.rows),
      ...lines("muted", report.legend),
    ),
  ];
}

// What stands beside a label where a run was measured in other coordinates than its parameters'.
// The card has the map in full.
export function coordinatesOf(report) {
  const coordinates = report?.coordinates ?? "the parameters";
  if (coordinates === "the parameters") return "";
  return coordinates.startsWith("the optimizer")
    ? " in the optimizer's coordinates"
    : ` in ${coordinates}`;
}

export function failureText({ tag, since }, last) {
  const what = `${tag} is not a finite number since step ${formatStep(since)}, so there is no verdict.`;
  const before = last ? ` What is measured is of step ${formatStep(last.step)}.` : "";
  return lines("answer", [what + before]);
}
