// A plugin of uPlot that shows the values at the cursor, beside it. While `frame` has the focus,
// keys move the cursor, and what it shows is read aloud.

import { cutName, element, swatch } from "./dom.js";
import { formatRange } from "./numbers.js";
import { xText } from "./ranges.js";

const MOST = 20; // lines beside the cursor
const LEAST = 240; // pixels that they have on a narrow page, too

export function readout(frame, curves, owners, kind) {
  const tip = element("div", { class: "tip", hidden: true });
  const live = element("div", { class: "visually-hidden", "aria-live": "polite" });
  const init = (u) => {
    u.over.append(tip);
    frame.after(live);
    frame.addEventListener("blur", () => u.setCursor({ left: -10, top: -10 }, true, true));
    frame.addEventListener("keydown", (event) => {
      if (!step(u, event.key)) return;
      event.preventDefault();
      const words = (line) => [...line.childNodes].map((node) => node.textContent).join(" ");
      live.textContent = [...tip.children].map(words).join(", ");
    });
  };
  const setCursor = (u) => {
    const { idx, left } = u.cursor;
    tip.hidden = idx === null || idx === undefined || left < 0;
    if (tip.hidden) return;
    const lines = curves
      .slice(0, MOST)
      .map((curve, number) => line(u, curve, number, owners, kind));
    const more =
      curves.length > MOST ? [element("div", {}, `and ${curves.length - MOST} more`)] : [];
    tip.replaceChildren(element("strong", {}, xText(kind, u.data[0][idx])), ...lines, ...more);
    const width = u.over.clientWidth;
    const isRight = left > width / 2;
    tip.style.maxWidth = `${Math.max(LEAST, (isRight ? left : width - left) - 14)}px`;
    tip.style.left = isRight ? "auto" : `${left + 14}px`;
    tip.style.right = isRight ? `${width - left + 14}px` : "auto";
  };
  return { hooks: { init, setCursor } };
}

// "–" before a curve's first point and after its last. Between two points the closer one is shown,
// with its place.
function line(u, { label, color, describe = range }, number, owners, kind) {
  const at = owners.flatMap((owner, i) => (owner.number === number ? [u.cursor.idxs[i + 1]] : []));
  const own = owners.filter((owner) => owner.number === number);
  const x = u.data[0][at.find((index) => index !== null)];
  const values = own.map((owner) => owner.values.get(x));
  let text = "–";
  if (x !== undefined) {
    text = values.every((value) => Number.isNaN(value ?? NaN))
      ? "not finite"
      : describe(values.map((value) => value ?? NaN));
    if (x !== u.data[0][u.cursor.idx]) text += ` (${xText(kind, x)})`;
  }
  return element("div", {}, swatch(color), cutName(label), element("b", {}, text));
}

// Of one line its value, of more the interval between the first two.
const range = ([value, other = value]) => formatRange(value, other);

// Moves the cursor by a key, and tells whether the key is one that does.
function step(u, key) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
  if (!(key in moves)) return false;
  const now = u.cursor.left >= 0 && u.cursor.idx !== null ? u.cursor.idx : -1;
  const next = Math.min(u.data[0].length - 1, Math.max(0, now + moves[key]));
  u.setCursor({ left: u.valToPos(u.data[0][next], "x"), top: 0 }, true, true);
  return true;
}
