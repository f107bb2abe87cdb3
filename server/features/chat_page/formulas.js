// Formulas in TeX as MathML, by Temml, which is loaded with the first formula.

import { create } from "./dom.js";

const MAX_LENGTH = 2000;
const OPTIONS = { throwOnError: true, maxExpand: 200, maxSize: [20, 20] };
const DELIMITERS = { "$$": "$$", "\\[": "\\]", "\\(": "\\)" };
const NEAR = 5000; // characters in which a formula may begin, so that a search costs little in a long text

// Returns whether a text may have formulas.
export const mayHaveFormulas = (text) => /\$|\\[([]/.test(text);

// Rules for marked. A formula becomes code with a class of its own, which is shown as it is until Temml is there.
export const formulaRules = [
  {
    name: "blockFormula",
    level: "block",
    start: (text) => found(text.slice(0, NEAR).search(/\n(?:\$\$|\\\[)/)),
    tokenizer: (text) => {
      const token = delimited(text, "blockFormula", ["$$", "\\["]);
      return token && /^[ \t]*(?:\n|$)/.test(text.slice(token.raw.length)) ? token : undefined;
    },
    renderer: ({ tex }) => `<p>${codeOf(tex, "display-formula")}</p>`,
  },
  {
    name: "formula",
    level: "inline",
    start: (text) => found(text.slice(0, NEAR).search(/\$|\\[([]/)),
    tokenizer: (text) => delimited(text, "formula", ["$$", "\\[", "\\("]) ?? inDollars(text),
    renderer: ({ tex, isDisplay }) => codeOf(tex, isDisplay ? "display-formula" : "formula"),
  },
];

const found = (place) => (place < 0 ? undefined : place);

const codeOf = (tex, kind) => `<code class="language-${kind}">${tex.replace(/[&<>]/g, (c) => `&#${c.charCodeAt(0)};`)}</code>`;

function delimited(text, type, beginnings) {
  const begin = beginnings.find((each) => text.startsWith(each));
  if (!begin) return undefined;
  const end = text.slice(0, MAX_LENGTH).indexOf(DELIMITERS[begin], 2);
  const tex = text.slice(2, end);
  return end > 2 && tex.trim() ? { type, raw: text.slice(0, end + 2), tex, isDisplay: begin !== "\\(" } : undefined;
}

// Prices are no formula: no space follows the first dollar or precedes the second, no digit follows that, and no code begins
// between them.
function inDollars(text) {
  const match = /^\$(?![\s$])((?:\\.|[^\\$`\n]){1,300})\$(?!\d)/.exec(text);
  return match && !/\s$/.test(match[1]) ? { type: "formula", raw: match[0], tex: match[1], isDisplay: false } : undefined;
}

let loading;

function load() {
  document.head.append(create("link", { rel: "stylesheet", href: new URL("./vendor/Temml-Local.css", import.meta.url).href }));
  return import("./vendor/temml.mjs");
}

// Replaces the TeX in an element by its formula; what is no TeX stays.
export async function showFormula(element, displayMode) {
  loading ??= load();
  const { default: temml } = await loading.catch(() => ({}));
  const formula = create("span", {});
  try {
    temml.render(element.textContent, formula, { ...OPTIONS, displayMode });
  } catch { return; }
  for (const part of formula.querySelectorAll("[id], [href]")) { // of \label and \ref, which are the model's words
    part.removeAttribute("id");
    part.removeAttribute("href");
  }
  element.replaceWith(formula);
}
