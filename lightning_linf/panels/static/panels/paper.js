// A report on paper: canvases do not follow a print style, so they are drawn anew, in light colours and
// as wide as the page.

export function drawForPaper(app) {
  const root = document.documentElement;
  let theme;
  // All that is drawn of data in the page comes in microtasks, which end before the browser prints.
  window.addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    root.classList.add("paper");
    app.repaint();
  });
  window.addEventListener("afterprint", () => {
    root.dataset.theme = theme;
    root.classList.remove("paper");
    app.repaint();
  });
}
