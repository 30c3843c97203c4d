// The "?" of a panel: what each quantity that it shows is, in the words of the package.

import { element } from "../drawing/dom.js";
import { meaningOf, unitOf } from "./names.js";

export class Help {
  constructor(title) {
    this.list = element("dl");
    const summary = element("summary", { "aria-label": `What is shown: ${title}` }, "?");
    const close = (event) => {
      if (event.key !== "Escape" || !this.node.open) return;
      this.node.open = false;
      summary.focus();
    };
    this.node = element("details", { class: "help", keydown: close }, summary, this.list);
  }

  explain(quantities) {
    this.node.hidden = quantities.length === 0;
    this.list.replaceChildren(
      ...quantities.flatMap((name) => [
        element("dt", {}, name, unitOf(name) && element("small", {}, ` in ${unitOf(name)}`)),
        element("dd", {}, meaningOf(name)),
      ]),
    );
  }
}
