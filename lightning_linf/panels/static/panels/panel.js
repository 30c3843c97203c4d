// Makes the frame of a panel, with its title, explanation, controls and downloads, around the chart
// or table that it shows.

import { cutName, dashedMark, element, tableOf, toggle } from "../drawing/dom.js";
import { saveCsv, savePng } from "../drawing/download.js";
import { format, formatStep } from "../drawing/numbers.js";
import { Help } from "./help.js";

const CLOCK_ERROR = 1; // second: clocks are set a little while trainings run
const MAX_ROWS = 200; // of a table on the page; a CSV file has all
export const MOST_RUNS = 6; // that are told apart by cards and a legend

export class Panel {
  // <section class="panel" id="fan">
  //   <header><h2>title</h2> <div class="tools">?, Table, CSV and PNG</div></header>
  //   <p class="about">about</p>
  //   <div class="lead">what comes before the controls</div>
  //   <div class="controls"></div> <ul class="legend"></ul>
  //   <div class="body">the chart</div> <div class="table">the table in its place</div>
  //   <p class="footnote"></p>
  // </section>
  constructor(state, name, title, about) {
    this.state = state;
    this.name = name;
    this.title = title;
    this.drawn = null;
    this.turn = 0;
    this.showsTable = false;
    this.lead = element("div", { class: "lead" });
    this.controls = element("div", { class: "controls" });
    this.body = element("div", { class: "body" });
    this.legend = element("ul", { class: "legend" });
    this.footnote = element("p", { class: "footnote" });
    this.table = element("div", { class: "table", hidden: true });
    this.help = new Help(title);
    const tableButton = toggle("Table", false, (is) => {
      this.showsTable = is;
      this.fillTable();
    });
    const download = (kind, click) => {
      const attributes = { type: "button", "aria-label": `Download ${title} as ${kind}`, click };
      return element("button", attributes, kind);
    };
    const csv = download("CSV", () => this.saveCsv());
    const png = download("PNG", () => this.savePng());
    this.node = element(
      "section",
      { class: "panel", id: name, "aria-labelledby": `${name}-title` },
      element(
        "header",
        {},
        element("h2", { id: `${name}-title` }, title),
        element("div", { class: "tools" }, this.help.node, tableButton, csv, png),
      ),
      element("p", { class: "about" }, about),
      this.lead,
      this.controls,
      this.legend,
      this.body,
      this.table,
      this.footnote,
    );
  }

  // Panels override this: it reads what `view` has selected, draws it into `this.body` and returns
  // { table: { columns, rows }, legend, canvases, note, quantities }, or null if `view.isOld()` by
  // then. An entry of the legend that stands for a run has its name as `run`.
  async draw(view) {
    throw new Error(`${this.name} draws nothing`);
  }

  async update(view) {
    this.view = view;
    this.node.setAttribute("aria-busy", "true");
    const turn = ++this.turn;
    const isOld = () => turn !== this.turn || view.isOld();
    try {
      const drawn = await this.draw({ ...view, isOld });
      if (drawn === null) return;
      this.drawn = drawn;
      this.footnote.textContent = drawn.note ?? "";
      this.footnote.hidden = !drawn.note;
      this.help.explain(drawn.quantities ?? []);
      this.legend.replaceChildren(...this.legendItems(drawn.legend));
      this.fillTable();
    } catch (error) {
      if (isOld()) return;
      this.drawn = null;
      this.legend.replaceChildren();
      this.lead.replaceChildren();
      this.body.replaceChildren(element("p", { class: "nothing", role: "alert" }, error.message));
      this.fillTable();
    }
    this.node.removeAttribute("aria-busy");
  }

  redraw() {
    return this.update(this.view);
  }

  // The runs of a long legend are told apart by the table of verdicts and the list of runs.
  legendItems(legend) {
    const isLong = legend.filter(({ run }) => run).length > MOST_RUNS;
    return legend.filter(({ run }) => !(isLong && run)).map((item) => legendItem(item, this.view));
  }

  // Shows the zoom of the page, which has changed.
  showZoom() {
    const plot = this.body.plot;
    plot?.setData(plot.data);
  }

  // Lets the curves of a run stand out; those of none for null.
  emphasize(run) {
    this.body.plot?.emphasize(run);
  }

  // Draws a message instead of a chart.
  nothing(text) {
    this.body.plot = null;
    this.lead.replaceChildren();
    this.body.replaceChildren(element("p", { class: "nothing" }, text));
    return { table: { columns: [], rows: [] }, legend: [], canvases: [], note: "" };
  }

  // Shows the table instead of the chart, if it is asked for and there is one.
  fillTable() {
    const isShown = this.showsTable && this.drawn !== null && this.drawn.table.rows.length > 0;
    this.table.hidden = !isShown;
    this.body.classList.toggle("behind", isShown); // not hidden: the chart keeps its width
    if (!isShown) return;
    const { columns, rows } = this.drawn.table;
    const shown = (value, index) => {
      if (columns[index] === "step") return formatStep(value);
      if (columns[index] === "run") return cutName(value);
      return typeof value === "number" ? format(value) : value;
    };
    const cells = rows.slice(0, MAX_ROWS).map((row) => row.map(shown));
    this.table.replaceChildren(
      tableOf(`${this.title}: table`, columns, cells),
      element(
        "p",
        { class: "footnote", hidden: rows.length <= MAX_ROWS },
        `${formatStep(MAX_ROWS)} of ${formatStep(rows.length)} rows; the CSV file has all.`,
      ),
    );
  }

  saveCsv() {
    if (this.drawn) saveCsv(this.name, this.drawn.table);
  }

  savePng() {
    if (this.drawn && this.drawn.canvases.length) {
      savePng(this.name, this.title, this.drawn.legend, this.drawn.canvases);
    }
  }
}

function legendItem({ label, color, dash = [], run = null }, view) {
  const hover = run && {
    pointerenter: () => view.emphasize(run),
    pointerleave: () => view.emphasize(null),
  };
  return element("li", hover || {}, dashedMark(color, dash), cutName(label));
}

// Says how many of the steps of the longest curve are shown, if not all. Curves that were not
// measured are undefined.
export function thinned(curves, what = "measured steps") {
  const counts = curves.filter(Boolean).map(({ steps, num_steps: all }) => [steps.length, all]);
  const [kept, all] = counts.reduce((most, each) => (each[1] > most[1] ? each : most), [0, 0]);
  return kept < all ? `${formatStep(kept)} of ${formatStep(all)} ${what} are shown. ` : "";
}

// Says how many curves have no place on the axis of time, as their times were not recorded.
export function untimed(view, curves) {
  const isTime = view.axis.kind === "time";
  const count = isTime ? curves.filter((curve) => curve && !curve.seconds).length : 0;
  if (count < 2) return count ? "1 curve comes without times and is not shown. " : "";
  return `${formatStep(count)} curves come without times and are not shown. `;
}

// Says how many points a logarithmic axis has no place for. A lower end of 0 is drawn: its bar goes
// down to the end of the chart.
export function withoutPlace(curves, log) {
  if (!log) return "";
  const isLower = ({ bars = [] }, line) => bars.some(([, lower]) => lower === line);
  const values = curves.flatMap((curve) =>
    curve.lines.flatMap((line, i) => (isLower(curve, i) ? [] : line.values)),
  );
  const count = values.filter((value) => Number.isFinite(value) && value <= 0).length;
  if (count < 2) return count ? "1 value of at most 0 has no place on a logarithmic axis. " : "";
  return `${formatStep(count)} values of at most 0 have no place on a logarithmic axis. `;
}

// Says after which step the clock of a training was set back, of the first one on the page.
export function clockSetBack(curves) {
  const steps = curves.flatMap((curve) => {
    const { steps, seconds = [] } = curve ?? {};
    const last = seconds.findIndex((at, i) => seconds[i + 1] < at - CLOCK_ERROR);
    return last < 0 ? [] : [steps[last]];
  });
  if (!steps.length) return "";
  const first = formatStep(Math.min(...steps));
  return `A clock was set back after step ${first}: what follows has times before it. `;
}
