// Starts the panels of a report, a page that holds its own data.

import { App } from "./app.js";
import { Embedded } from "./embedded.js";
import { followTheme } from "./host.js";

const data = JSON.parse(document.getElementById("data").textContent);
const app = new App(document.getElementById("panels"), new Embedded(data));
followTheme(() => app.repaint());
app.reload();
