// Gives the panels the data of the running TensorBoard, and fetches each part once until something
// is added to that run.

import { fromJson } from "../drawing/numbers.js";

export class Server {
  hasTimes = true;

  constructor(base) {
    this.base = base;
    this.kept = new Map(); // by run, when it was last added to, and answers by address
  }

  get(route, query) {
    const url = new URL(route, this.base);
    url.search = new URLSearchParams(query);
    const answers = this.kept.get(query.run)?.answers ?? new Map();
    if (!answers.has(url.href)) {
      const answer = read(url);
      answer.catch(() => answers.delete(url.href));
      answers.set(url.href, answer);
    }
    return answers.get(url.href);
  }

  // Asks every time, as the list says of each run when something was last added to it.
  async runs() {
    const answer = await read(new URL("runs", this.base));
    const former = this.kept;
    this.kept = new Map();
    for (const run of answer.runs) {
      const known = former.get(run.name);
      const state = JSON.stringify(run);
      const isSame = known?.state === state;
      this.kept.set(run.name, isSame ? known : { state, answers: new Map() });
    }
    return answer;
  }

  async scalars(run) {
    return toCurves(await this.get("scalars", { run }));
  }

  async report(run) {
    return this.get("report", { run });
  }

  async layers(run, tag, column) {
    return toMatrix(await this.get("layers", { run, tag, column }));
  }

  async fan(run, tag, column, row) {
    return toMatrix(await this.get("fan", { run, tag, column, row }));
  }
}

async function read(url) {
  const response = await fetch(url);
  const content = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(content.error ?? `status ${response.status}`);
  return content;
}

export function toCurves({ curves }) {
  return new Map(
    Object.entries(curves).map(([tag, curve]) => [
      tag,
      { ...curve, values: curve.values.map(fromJson) },
    ]),
  );
}

export function toMatrix(data) {
  return { ...data, values: data.values.map((row) => row.map(fromJson)) };
}
