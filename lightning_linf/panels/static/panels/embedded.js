// Gives the panels the data that came with the page, in the forms of a server's answers.

import { toCurves, toMatrix } from "./server.js";

export class Embedded {
  constructor(data) {
    this.data = data;
    const curves = Object.values(data.scalars).flatMap(({ curves }) => Object.values(curves));
    this.hasTimes = curves.some(({ seconds }) => seconds);
  }

  async runs() {
    return this.data.runs;
  }

  async scalars(run) {
    return toCurves(this.data.scalars[run]);
  }

  async report(run) {
    return this.data.reports[run];
  }

  async layers(run, tag, column) {
    return toMatrix(this.data.tables[run][tag][column]);
  }

  // Quantiles come by row, and a column of single numbers as one matrix of all rows.
  async fan(run, tag, column, row) {
    const found = this.data.tables[run][tag][column];
    if (Array.isArray(found)) return toMatrix(found[row]);
    return toMatrix({ ...found, values: found.values.map((values) => [values[row]]) });
  }
}
