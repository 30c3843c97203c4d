// Makes and fills elements of the page, without a framework.

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function field(label, control) {
  return element("label", { class: "field" }, element("span", {}, label), control);
}

// A button that is on or off, and tells `changed` which.
export function toggle(text, isOn, changed) {
  const flip = () => {
    const is = button.getAttribute("aria-pressed") !== "true";
    press(button, is);
    changed(is);
  };
  const button = element("button", { type: "button", click: flip }, text);
  press(button, isOn);
  return button;
}

export const press = (button, isOn) => button.setAttribute("aria-pressed", String(isOn));

// A mark in the colour of what the text beside it names.
export function swatch(color) {
  const mark = element("i", { "aria-hidden": "true" });
  mark.style.background = color;
  return mark;
}

// The mark of a curve, with its dashes; as SVG, for prints leave gradients with gaps out.
export function dashedMark(color, dash) {
  const mark = element("i", { "aria-hidden": "true" });
  mark.innerHTML = '<svg width="32" height="3"><path d="M0 1.5H32" stroke-width="3" /></svg>';
  const path = mark.querySelector("path");
  path.setAttribute("stroke", color);
  path.setAttribute("stroke-dasharray", dash.join());
  return mark;
}

const SHORT = 24; // letters for which there is always room

// A long name that is cut in its middle where there is no room: its ends tell names apart.
export function cutName(text) {
  if (text.length <= SHORT) return element("span", { class: "cut" }, text);
  const parts = [text.slice(0, -SHORT / 2), text.slice(-SHORT / 2)];
  return element(
    "span",
    { class: "cut", title: text },
    ...parts.map((part) => element("span", {}, part)),
  );
}

// Fills a select with [value, text] pairs and returns its value: `chosen`, if it is among them.
export function fillSelect(select, options, chosen) {
  const is = JSON.stringify(options);
  if (select.dataset.options !== is) {
    // What is the same stays, with its open list.
    select.dataset.options = is;
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  }
  if (options.some(([value]) => value === chosen)) select.value = chosen;
  return select.value;
}

// Boxes of which one is chosen, in a frame with a name.
export function choice(legend, name, options, chosen, changed) {
  const box = ([value, text]) => {
    const attributes = { type: "radio", name, value, checked: value === chosen };
    const input = element("input", { ...attributes, change: () => changed(value) });
    return element("label", { class: "chip" }, input, text);
  };
  return element(
    "fieldset",
    { class: "chips" },
    element("legend", {}, legend),
    ...options.map(box),
  );
}

// A table that scrolls by itself; the first cell of a row is its name.
export function tableOf(label, headings, rows) {
  const cell = (text, index) => element(index ? "td" : "th", index ? {} : { scope: "row" }, text);
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    element(
      "table",
      {},
      element(
        "thead",
        {},
        element("tr", {}, ...headings.map((text) => element("th", { scope: "col" }, text))),
      ),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))),
    ),
  );
}

export function cssColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Calls `draw` again when the element's width changes; charts fill their element.
export function onWidth(node, draw) {
  let width = node.clientWidth;
  const observer = new ResizeObserver(() => {
    if (!node.isConnected) observer.disconnect();
    else if (node.clientWidth !== width && node.clientWidth > 0) {
      width = node.clientWidth;
      draw(width);
    }
  });
  observer.observe(node);
}
