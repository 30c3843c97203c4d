// What was left out or could not be read: one line, which unfolds and can be dismissed.

import { element } from "../drawing/dom.js";

export class Notes {
  constructor() {
    this.dismissed = "";
    this.list = element("ul");
    this.first = element("span", { class: "first" });
    this.details = element("details", {}, element("summary", {}, this.first), this.list);
    const click = () => {
      this.dismissed = this.text;
      this.node.hidden = true;
    };
    const dismiss = element(
      "button",
      { type: "button", "aria-label": "Dismiss the notes", click },
      "×",
    );
    const attributes = { class: "notes", role: "status", "aria-label": "Notes", hidden: true };
    this.node = element("div", attributes, this.details, dismiss);
  }

  // Notes that were dismissed come back with the first new one.
  show(notes) {
    this.text = notes.join("\n");
    this.node.hidden = notes.length === 0 || this.text === this.dismissed;
    const count = notes.length > 1 ? `${notes.length} notes. ` : "";
    this.first.textContent = count + (notes[0] ?? "");
    this.first.title = notes[0] ?? "";
    this.list.replaceChildren(...notes.map((note) => element("li", {}, note)));
  }
}
