// What the frame learns from TensorBoard around it: when data were reloaded, and the theme.

const HELLO = "experimental.bootstrap";
const RELOADED = "experimental.DataReloaded";

// TensorBoard says so after its reload button, and as often as its auto-reload.
export function onReload(reload) {
  if (window.parent === window) return;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const { type, id, isReply } = JSON.parse(data);
    if (type === RELOADED) reload();
    if (!isReply)
      port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
  };
  window.parent.postMessage(HELLO, window.location.origin, [port2]);
}

// Null for a page alone, or in a frame of another origin, which lets nobody look.
function hostBody() {
  try {
    return window.parent === window ? null : window.parent.document.body;
  } catch {
    return null;
  }
}

// TensorBoard marks its own body; alone, the page follows the system.
export function followTheme(changed) {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const host = hostBody();
  const apply = () => {
    const dark = host ? host.classList.contains("dark-mode") : system.matches;
    const theme = dark ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    changed();
  };
  if (host) new MutationObserver(apply).observe(host, { attributeFilter: ["class"] });
  else system.addEventListener("change", apply);
  apply();
}
