// A run's last report in the words of the package: the page shows them and makes none of its own.

import { element, tableOf } from "../drawing/dom.js";
import { formatStep } from "../drawing/numbers.js";

const lines = (kind, texts) => texts.map((text) => element("p", { class: kind }, text));

// The verdict and the shares, and what they rest on, folded.
export function reportText(report) {
  if (report.error) return lines("muted", [report.error]);
  return [
    ...lines("answer", [report.verdict]),
    ...lines("shares", [report.shares]),
    element(
      "details",
      {},
      element("summary", {}, `Report at step ${formatStep(report.step)}`),
      ...lines("text", report.header),
      tableOf("Report: table", report.headings, report.rows),
      ...lines("muted", report.legend),
    ),
  ];
}
