// Starts the panels of a report, a page that holds its own data.

import { App } from "./app.js";
import { Embedded } from "./embedded.js";
import { addressPlace, followTheme } from "./host.js";
import { drawForPaper } from "./paper.js";
import { State } from "./state.js";

const data = JSON.parse(document.getElementById("data").textContent);
const state = new State(addressPlace(window));
const app = new App(document.getElementById("panels"), new Embedded(data), state);
followTheme(() => app.repaint());
drawForPaper(app);
app.reload();
