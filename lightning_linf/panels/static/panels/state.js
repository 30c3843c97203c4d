// What the user has chosen on the page. It is kept in the page's address, so that a link shows the
// same view; what is not chosen is not there.

export class State {
  // `place` has read(), which gives a Map of words by name, and write(map).
  constructor(place) {
    this.place = place;
    this.words = place.read();
  }

  get(name, otherwise = null) {
    return this.words.get(name) ?? otherwise;
  }

  set(name, word, otherwise = null) {
    if (word === null || word === otherwise) this.words.delete(name);
    else this.words.set(name, word);
    this.place.write(this.words);
  }

  getList(name) {
    return this.get(name)?.split(",").filter(Boolean).map(decodeURIComponent) ?? null;
  }

  setList(name, words) {
    this.set(name, words === null ? null : words.map(encodeURIComponent).join(","));
  }

  is(name, otherwise) {
    return this.get(name, String(otherwise)) === "true";
  }

  setIs(name, is, otherwise) {
    this.set(name, String(is), String(otherwise));
  }
}
