// New content comes in while somebody reads: what was typed and chosen stays, and the keyboard is
// where it was.
(() => {
  const selector = (e) => {
    const tag = e.tagName.toLowerCase();
    for (const name of ["href", "name"]) {
      const value = e.getAttribute(name);
      if (value === null) continue;
      const radio = e.type === "radio" ? `[value="${CSS.escape(e.value)}"]` : "";
      return `.lineage-page ${tag}[${name}="${CSS.escape(value)}"]${radio}`;
    }
    return null;
  };
  let focused = null;
  document.addEventListener("focusin", (event) => { focused = selector(event.target); });
  document.addEventListener("pointerdown", () => { focused = null; });
  new MutationObserver((changes) => {
    const removed = changes.flatMap((change) => [...change.removedNodes])
      .filter((node) => node.nodeType === Node.ELEMENT_NODE);
    if (!removed.length) return;
    for (const field of removed.flatMap((node) => [...node.querySelectorAll("input, select")])) {
      const now = document.querySelector(selector(field) ?? "none");
      if (!now) continue;
      if (field.type === "radio") now.checked = field.checked;
      else if (field.type !== "hidden") now.value = field.value;
    }
    if (focused && document.activeElement === document.body) {
      document.querySelector(focused)?.focus({ preventScroll: true });
    }
  }).observe(document, { childList: true, subtree: true });
})();
