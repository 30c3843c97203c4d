// Gives the panels the data of the running TensorBoard, and fetches each part once until something
// is added to a run.

import { fromJson } from "../drawing/numbers.js";

export class Server {
  constructor(base) {
    this.base = base;
    this.kept = new Map();
    this.listed = "";
  }

  get(route, query) {
    const url = new URL(route, this.base);
    url.search = new URLSearchParams(query);
    if (!this.kept.has(url.href)) {
      const answer = read(url);
      answer.catch(() => this.kept.delete(url.href));
      this.kept.set(url.href, answer);
    }
    return this.kept.get(url.href);
  }

  // Asks every time, as the list says of each run when something was last added to it.
  async runs() {
    const answer = await read(new URL("runs", this.base));
    const listed = JSON.stringify(answer);
    if (listed !== this.listed) this.kept.clear();
    this.listed = listed;
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
