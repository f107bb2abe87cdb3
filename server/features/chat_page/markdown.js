// Markdown of an answer as elements. A model's output is untrusted: HTML in it is shown as text, and the result passes
// a sanitizer that knows only the tags that Markdown makes.

import { Marked } from "./vendor/marked.esm.js";
import { colour } from "./code.js";
import { copyButton, create } from "./dom.js";
import { formulaRules, mayHaveFormulas, showFormula } from "./formulas.js";
import { blocksOf } from "./lexer.js";
import { LANGUAGE, cleanMarkdown } from "./sanitizer.js";

const MAX_LENGTH = 200_000; // longer text is shown as it is, so that no answer keeps the browser busy

const escape = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const OPTIONS = {
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escape(text.trim()).replaceAll("\n", "<br>")}</p>` : escape(text)),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`, // nothing loads by itself
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
};

const plain = new Marked(OPTIONS);
const withFormulas = new Marked(OPTIONS, { extensions: formulaRules });

// Shows growing text in an element. Blocks that have not changed keep their elements, and with them a reader's selection.
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.blocks = [];
    this.links = "";
  }

  show(text) {
    try {
      if (text.length > MAX_LENGTH) throw new RangeError("too long");
      const parser = mayHaveFormulas(text) ? withFormulas : plain;
      this.showBlocks(blocksOf(text, parser), parser);
    } catch { // too long, or too deeply nested for the parser
      this.element.replaceChildren(create("p", { className: "plain", dir: "auto" }, text));
      this.blocks = [];
    }
  }

  showBlocks(tokens, parser) {
    const links = JSON.stringify(tokens.links); // a definition at the end changes references before it
    const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    let same = 0;
    if (links === this.links) while (same < blocks.length && blocks[same].raw === this.blocks[same]) same += 1;
    const added = blocks.slice(same).map((token) => create("div", {}, rendered(parser.parser([token]))));
    for (const old of [...this.element.children].slice(same)) old.remove();
    this.element.append(...added);
    this.blocks = blocks.map((token) => token.raw);
    this.links = links;
  }
}

function rendered(html) {
  const fragment = cleanMarkdown(html);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const block of fragment.children) block.dir = "auto"; // Arabic and Hebrew run from the right
  for (const code of fragment.querySelectorAll("pre")) frameCode(code);
  for (const code of fragment.querySelectorAll(":not(pre) > .language-formula")) showFormula(code, false);
  for (const code of fragment.querySelectorAll(":not(pre) > .language-display-formula")) frameFormula(code);
  for (const table of fragment.querySelectorAll("table")) frameTable(table);
  return fragment;
}

function frameCode(code) {
  const language = LANGUAGE.exec(code.firstElementChild?.className ?? "")?.[1] ?? "";
  const frame = create("div", { className: "frame code", dir: "ltr" });
  code.replaceWith(frame);
  frame.append(
    create("div", { className: "frame-head" }, create("span", {}, language), copyButton(() => code.textContent, "Copy code")),
    code,
  );
  makeScrollable(code, language ? `Code, ${language}` : "Code");
  if (language) colour(code.firstElementChild, language);
}

function frameFormula(code) {
  const frame = create("span", { className: "display-formula" });
  code.replaceWith(frame);
  frame.append(code);
  makeScrollable(frame, "Formula");
  showFormula(code, true);
}

function frameTable(table) {
  const frame = create("div", { className: "frame" });
  table.replaceWith(frame);
  frame.append(table);
  makeScrollable(frame, "Table");
}

// Wide content scrolls by the keyboard, too.
function makeScrollable(element, label) {
  element.tabIndex = 0;
  element.setAttribute("role", "group"); // no region: of these, each would need a name of its own
  element.setAttribute("aria-label", label);
}
