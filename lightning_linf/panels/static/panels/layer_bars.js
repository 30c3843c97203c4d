// Panel 5 shows one quantity of every layer at one step, as bars.

import { drawBars } from "../drawing/bars.js";
import { element, field } from "../drawing/dom.js";
import { LayerPanel } from "./layers.js";
import { formatStep } from "../drawing/numbers.js";

export class Bars extends LayerPanel {
  constructor(choice) {
    super(choice, "bars", "Layers at one step", "The same quantity at the step of the slider.");
    this.slider = element("input", { type: "range", min: "0", step: "1" });
    this.output = element("output");
    const control = field("Step", this.slider);
    control.classList.add("grow");
    control.append(this.output);
    this.controls.append(control);
    this.slider.addEventListener("input", () =>
      choice.setStep(this.chosen.data.steps[Number(this.slider.value)]),
    );
  }

  paint() {
    const { data, names, rows, column } = this.chosen;
    const index = this.choice.indexOf(data.steps);
    this.slider.max = String(data.steps.length - 1);
    this.slider.value = String(index);
    this.slider.setAttribute("aria-valuetext", `step ${formatStep(data.steps[index])}`);
    this.output.textContent = formatStep(data.steps[index]);
    const everything = data.values.flatMap((values) => rows.map((row) => values[row]));
    const canvas = drawBars({
      names,
      values: rows.map((row) => data.values[index][row]),
      log: this.choice.log,
      range: this.choice.position(everything),
      width: Math.max(240, this.body.clientWidth),
      color: this.view.colorOf(this.chosen.run.name),
      label: `${column.label} of ${rows.length} layers at step ${formatStep(data.steps[index])}`,
    });
    this.body.replaceChildren(canvas);
    return [canvas];
  }

  showStep() {
    if (!this.drawn?.canvases.length) return;
    this.drawn.canvases = this.paint();
    this.drawn.table = this.rows();
    this.fillTable();
  }

  rows() {
    const { data, names, rows } = this.chosen;
    const index = this.choice.indexOf(data.steps);
    return {
      columns: ["layer", `step ${formatStep(data.steps[index])}`],
      rows: names.map((name, i) => [name, data.values[index][rows[i]]]),
    };
  }
}
