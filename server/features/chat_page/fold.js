// Long messages, such as pasted files, of which only the beginning is shown at first.

import { button, create } from "./dom.js";

const LONG = { characters: 2000, lines: 25 };
const SHOWN = { characters: 500, lines: 8 };

// Returns a paragraph with a text, and below it what unfolds the text if it is long.
export function foldable(text) {
  const paragraph = create("p", { className: "plain", dir: "auto" }, text);
  if (text.length <= LONG.characters && text.split("\n", LONG.lines + 1).length <= LONG.lines) return [paragraph];
  const start = `${text.slice(0, SHOWN.characters).split("\n").slice(0, SHOWN.lines).join("\n")}…`;
  const toggle = button("", () => show(toggle.getAttribute("aria-expanded") === "false"), { className: "small" });
  const show = (isWhole) => {
    paragraph.textContent = isWhole ? text : start;
    toggle.textContent = isWhole ? "Show less" : `Show all ${text.length.toLocaleString()} characters`;
    toggle.setAttribute("aria-expanded", isWhole);
  };
  show(false);
  return [paragraph, toggle];
}
