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

// Returns a button with an icon, whose name is seen on hover and focus, and always on touch screens.
export function tool(iconName, name, onClick, label, kind = "") {
  const element = button("", onClick, { className: `tool ${kind}` });
  element.setAttribute("aria-label", label);
  element.append(icon(iconName), create("span", { className: "name" }, name));
  return element;
}

const icon = (name) => $("icons").content.querySelector(`.${name}`).cloneNode(true);

export function focusMessage() {
  if (matchMedia("(pointer: fine)").matches) $("text").focus(); // on a phone, focus would open the keyboard
}

// A screen reader speaks it; nothing is seen.
export function announce(text) {
  $("announcer").textContent = text;
}

export function copyButton(textOf, label) {
  const element = tool("copy", "Copy", async () => {
    const copied = await copy(textOf());
    const show = (iconName, name) => element.replaceChildren(icon(iconName), create("span", { className: "name" }, name));
    show(copied ? "check" : "copy", copied ? "Copied" : "Not copied");
    announce(element.textContent);
    setTimeout(() => show("copy", "Copy"), 1500);
  }, label);
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
