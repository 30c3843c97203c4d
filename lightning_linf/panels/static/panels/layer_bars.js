// Panel 5 shows one quantity of every layer at one step, as bars, and beside it another step or
// another run.

import { PALE, drawBars } from "../drawing/bars.js";
import { withAlpha } from "../drawing/color.js";
import { element, field, fillSelect } from "../drawing/dom.js";
import { formatDuration, formatStep } from "../drawing/numbers.js";
import { LayerPanel, closest } from "./layers.js";
import { rowValues } from "./layer_rows.js";
import { placeSteps } from "./times.js";

const [STEP, RUN] = ["step:", "run:"]; // what stands beside begins with

export class Bars extends LayerPanel {
  constructor(choice) {
    super(choice, "bars", "Layers at one step", "The same quantity at the step of the slider.");
    this.slider = element("input", { type: "range", min: "0", step: "1" });
    this.output = element("output");
    const control = field("Step", this.slider);
    control.classList.add("grow");
    control.append(this.output);
    this.beside = element("select", { change: ({ target }) => this.setBeside(target.value) });
    const click = () => this.setBeside(STEP + this.step());
    const pin = element("button", { type: "button", click }, "Pin this step");
    this.controls.append(control, field("Beside", this.beside), pin);
    this.slider.addEventListener("input", () =>
      choice.setStep(this.chosen.steps[Number(this.slider.value)]),
    );
  }

  setBeside(word) {
    this.state.set("layers.beside", word, "");
    return this.redraw();
  }

  step() {
    return this.chosen.steps[this.choice.indexOf(this.chosen.steps)];
  }

  // Reads what stands beside the chosen step: another one of the run, or the same one of another.
  async prepare(view, chosen) {
    const { run, tag, column, rows, data } = chosen;
    const [indices, x] = await placeSteps(view, run, data.steps);
    const isTime = view.axis.kind === "time";
    chosen.times = new Map(isTime ? indices.map((index, i) => [index, x[i]]) : []);
    const has = (other) => other.tables[tag]?.columns.some(({ name }) => name === column.name);
    const others = view.runs.filter((other) => other.name !== run.name && has(other));
    const wanted = this.state.get("layers.beside", "");
    const pinned = wanted.startsWith(STEP) ? Number(wanted.slice(STEP.length)) : null;
    const word = fillSelect(
      this.beside,
      [
        ["", "nothing"],
        ...(pinned === null ? [] : [[wanted, `step ${formatStep(pinned)}`]]),
        ...others.map((other) => [RUN + other.name, other.label]),
      ],
      wanted,
    );
    chosen.beside = null;
    if (word.startsWith(STEP)) {
      const at = closest(data.steps, pinned);
      const values = () => rowValues(rows, data.values[at]);
      chosen.beside = { label: `step ${formatStep(data.steps[at])}`, values };
    } else if (word.startsWith(RUN)) {
      chosen.beside = await this.otherRun(
        view,
        chosen,
        others.find(({ name }) => RUN + name === word),
      );
    }
  }

  async otherRun(view, { run, tag, column, rows, steps }, other) {
    const data = await view.source.layers(other.name, tag, column.name);
    const [names, theirs] = [run.tables[tag].tensors, other.tables[tag].tensors];
    const places = new Map(theirs.map((name, i) => [name, i]));
    const at = (step) => closest(data.steps, step);
    const values = (step) => {
      const read = data.values[at(step)] ?? [];
      return rowValues(
        rows,
        names.map((name) => read[places.get(name)] ?? NaN),
      );
    };
    const color = view.colorOf(other.name);
    const label = (step) => `${other.label}, step ${formatStep(data.steps[at(step)] ?? 0)}`;
    return {
      color,
      values,
      label: label(steps[this.choice.indexOf(steps)]),
    };
  }

  legendOf({ run, column, beside }) {
    if (!beside) return null;
    const color = this.view.colorOf(run.name);
    return [
      { label: `${run.label} · ${column.label}, step ${formatStep(this.step())}`, color },
      { label: beside.label, color: withAlpha(beside.color ?? color, PALE) },
    ];
  }

  paint() {
    const { steps, times, values, labels, rows, column, beside } = this.chosen;
    const index = this.choice.indexOf(steps);
    this.slider.max = String(steps.length - 1);
    this.slider.value = String(index);
    const time = times.has(index) ? ` (${formatDuration(times.get(index))})` : "";
    const step = formatStep(steps[index]) + time;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.output.textContent = step;
    const other = beside?.values(steps[index]) ?? null;
    const color = this.view.colorOf(this.chosen.run.name);
    const canvas = drawBars({
      names: labels,
      values: values[index],
      other,
      log: this.choice.log,
      range: this.choice.position([...values.flat(), ...(other ?? [])]),
      width: Math.max(240, this.body.clientWidth),
      color,
      otherColor: beside?.color ?? color,
      caption: `step ${step}`,
      label: `${column.label} of ${rows.length} layers at step ${step}`,
    });
    this.body.replaceChildren(canvas);
    return [canvas];
  }

  showStep() {
    if (!this.drawn?.canvases.length) return;
    if (this.chosen.beside) return void this.redraw();
    this.drawn.canvases = this.paint();
    this.drawn.table = this.rows();
    this.fillTable();
  }

  rows() {
    const { steps, values, names, beside } = this.chosen;
    const index = this.choice.indexOf(steps);
    const other = beside?.values(steps[index]);
    return {
      columns: ["layer", `step ${formatStep(steps[index])}`, ...(other ? [beside.label] : [])],
      rows: names.map((name, i) => [name, values[index][i], ...(other ? [other[i]] : [])]),
    };
  }
}
