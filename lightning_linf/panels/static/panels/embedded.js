// Gives the panels the data that came with the page, in the forms of a server's answers.

import { toCurves, toMatrix } from "./server.js";

export class Embedded {
  constructor(data) {
    this.data = data;
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

  async fan(run, tag, column, row) {
    return toMatrix(this.data.tables[run][tag][column][row]);
  }
}
