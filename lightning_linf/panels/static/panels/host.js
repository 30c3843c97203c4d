// Asks TensorBoard, in whose frame the page may stand, when data were reloaded and for the theme.

const HELLO = "experimental.bootstrap";
const RELOADED = "experimental.DataReloaded";

// Calls `reload` whenever TensorBoard has read its data anew: after its button, and by itself.
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

// Returns the body of the page around this one, or null without one or if it has another origin,
// whose pages a browser does not let scripts look into.
function hostBody() {
  try {
    return window.parent === window ? null : window.parent.document.body;
  } catch {
    return null;
  }
}

// Follows the theme that TensorBoard marks its body with, or the system's for a page by itself.
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
