// Starts the tab: TensorBoard imports this module into an empty frame and calls render().

import { App } from "./app.js";
import { element } from "../drawing/dom.js";
import { addressPlace, colorInHost, followTheme, onReload } from "./host.js";
import { poll } from "./poll.js";
import { Server } from "./server.js";
import { State } from "./state.js";

const FILES = new URL("..", import.meta.url);

export async function render() {
  document.documentElement.lang = "en";
  document.title = "Geometry";
  const loaded = (file) =>
    new Promise((load) => {
      const href = new URL(file, FILES);
      document.head.append(element("link", { rel: "stylesheet", href, load, error: load }));
    });
  await Promise.all(["vendor/uPlot.min.css", "style.css"].map(loaded));
  document.head.append(element("meta", { name: "viewport", content: "width=device-width" }));
  const heading = element("h1", {}, document.title);
  document.body.append(element("header", { class: "visually-hidden" }, heading));
  const state = new State(addressPlace());
  const app = new App(document.body, new Server(new URL("..", FILES)), state, colorInHost);
  followTheme(() => app.repaint());
  onReload(() => app.reload());
  await app.reload();
  poll(() => app.reload());
}
