// Reads the runs again and again while the page is seen, so that it grows with the trainings:
// TensorBoard's own page does not reload unless one tells it to.

const PAUSE = 5000; // milliseconds, as long as TensorBoard waits before it reads files again
const SHARE = 10; // of the time for one reading the pause is at least this multiple

export function poll(reload) {
  const next = async () => {
    const begin = performance.now();
    if (isSeen()) await reload();
    setTimeout(next, Math.max(PAUSE, SHARE * (performance.now() - begin)));
  };
  setTimeout(next, PAUSE);
}

// A frame of a tab that TensorBoard hides has no width.
const isSeen = () => document.visibilityState === "visible" && window.innerWidth > 0;
