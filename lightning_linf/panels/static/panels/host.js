// Speaks with TensorBoard, in whose frame the page may stand: about reloads, theme, address and
// colours.

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

// Returns the page around this one, or null without one or if it has another origin, whose pages a
// browser does not let scripts look into.
function hostPage() {
  try {
    return window.parent === window ? null : window.parent.document && window.parent;
  } catch {
    return null;
  }
}

// The part of the address after "#": TensorBoard's begins with the name of the tab, and keeps words
// for a plugin under names that begin with "p.geometry."; a page by itself has it for its own.
export function addressPlace(owner = hostPage() ?? window) {
  const prefix = owner === window ? "" : "p.geometry.";
  const split = () => owner.location.hash.slice(1).split("&").filter(Boolean);
  const isOurs = (part) => part.startsWith(prefix) && part.includes("=");
  return {
    read: () =>
      new Map(
        split()
          .filter(isOurs)
          .map((part) => part.slice(prefix.length).split("=", 2).map(decodeURIComponent)),
      ),
    write: (words) => {
      const ours = [...words].map((pair) => prefix + pair.map(encodeURIComponent).join("="));
      const hash = [...split().filter((part) => !isOurs(part)), ...ours].join("&");
      try {
        // The page may have a base, so "#" alone would be another address.
        const { pathname, search } = owner.location;
        owner.history.replaceState(owner.history.state, "", `${pathname}${search}#${hash}`);
      } catch {
        // A page that was written into a frame has no address of its own.
      }
    },
  };
}

let colorScale; // of the page around this one

// The colour of a run in TensorBoard's tab SCALARS, or null where its page does not tell. (The tab
// TIME SERIES has others, which stand nowhere but in its rows, while they are shown.)
export function colorInHost(run) {
  try {
    colorScale ??= hostPage()?.document.createElement("tf-color-scale").runsColorScale;
    const color = colorScale?.(run);
    return /^#[0-9a-f]{6}$/i.test(color) ? color.toLowerCase() : null;
  } catch {
    return null; // it has not read this run yet
  }
}

// Follows the theme that TensorBoard marks its body with, or the system's for a page by itself.
export function followTheme(changed) {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const host = hostPage()?.document.body;
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
