// Markdown of an answer as elements. A model's output is untrusted: HTML in it is shown as text, and the result passes
// a sanitizer that knows only the tags that Markdown makes.

import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";
import { copyButton, create } from "./dom.js";

const MAX_LENGTH = 200_000; // longer text is shown as it is, so that no answer keeps the browser busy

const escape = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escape(text.trim()).replaceAll("\n", "<br>")}</p>` : escape(text)),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`, // nothing loads by itself
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const SANITIZER = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

const LANGUAGE = /^language-([\w+#.-]{1,30})$/;

// The only class is the language of a code block.
DOMPurify.addHook("uponSanitizeAttribute", (element, attribute) => {
  if (attribute.attrName === "class") attribute.keepAttr = element.nodeName === "CODE" && LANGUAGE.test(attribute.attrValue);
});

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
      this.showBlocks(marked.lexer(text));
    } catch { // too long, or too deeply nested for the parser
      this.element.replaceChildren(create("p", { className: "plain" }, text));
      this.blocks = [];
    }
  }

  showBlocks(tokens) {
    const links = JSON.stringify(tokens.links); // a definition at the end changes references before it
    const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    let same = 0;
    if (links === this.links) while (same < blocks.length && blocks[same].raw === this.blocks[same]) same += 1;
    const added = blocks.slice(same).map((token) => create("div", {}, rendered(token)));
    for (const old of [...this.element.children].slice(same)) old.remove();
    this.element.append(...added);
    this.blocks = blocks.map((token) => token.raw);
    this.links = links;
  }
}

function rendered(token) {
  const fragment = DOMPurify.sanitize(marked.parser([token]), SANITIZER);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const code of fragment.querySelectorAll("pre")) frameCode(code);
  for (const table of fragment.querySelectorAll("table")) frameTable(table);
  return fragment;
}

function frameCode(code) {
  const language = LANGUAGE.exec(code.firstElementChild?.className ?? "")?.[1] ?? "";
  const frame = create("div", { className: "frame code" });
  code.replaceWith(frame);
  frame.append(
    create("div", { className: "frame-head" }, create("span", {}, language), copyButton(() => code.textContent, "Copy code")),
    code,
  );
  makeScrollable(code, language ? `Code, ${language}` : "Code");
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
  element.setAttribute("role", "region");
  element.setAttribute("aria-label", label);
}
