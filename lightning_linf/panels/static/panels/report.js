// Entry of a report, a page that holds its own data.

import { App } from "./app.js";
import { toImage } from "../drawing/download.js";
import { Embedded } from "./embedded.js";
import { element } from "../drawing/dom.js";
import { followTheme } from "./host.js";

async function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const app = new App(document.getElementById("panels"), new Embedded(data));
  followTheme(() => app.repaint());
  await app.reload();
  if (window.location.hash === "#png") leavePictures(app.panels);
}

// For a program that loads the page: each panel as an image.
function leavePictures(panels) {
  const pictures = panels
    .filter(({ drawn }) => drawn?.canvases.length > 0)
    .map(({ name, title, drawn }) => [
      name,
      toImage(title, drawn.legend, drawn.canvases).toDataURL("image/png"),
    ]);
  const script = element("script", { type: "application/json", id: "png" });
  script.textContent = JSON.stringify(Object.fromEntries(pictures));
  document.body.append(script);
}

start();
