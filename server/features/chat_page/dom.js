// Small helpers for the document.

export const $ = (id) => document.getElementById(id);

export function create(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function button(text, onClick, properties = {}) {
  const element = create("button", { type: "button", ...properties }, text);
  element.addEventListener("click", onClick);
  return element;
}

// A screen reader speaks it; nothing is seen.
export function announce(text) {
  $("announcer").textContent = text;
}

export function copyButton(textOf, label) {
  const element = button("Copy", async () => {
    const copied = await copy(textOf());
    element.textContent = copied ? "Copied" : "Not copied";
    announce(element.textContent);
    setTimeout(() => { element.textContent = "Copy"; }, 1500);
  }, { className: "small" });
  element.setAttribute("aria-label", label);
  return element;
}

async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* not permitted: the old way */ }
  }
  // Over plain HTTP, browsers have no clipboard except on localhost.
  const focused = document.activeElement;
  const area = create("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
