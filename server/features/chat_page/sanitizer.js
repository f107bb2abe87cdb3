// HTML that libraries made of a model's output, which is untrusted: only tags and attributes that they need come through.

import "./vendor/purify.min.js";

const COMMON = { ALLOW_ARIA_ATTR: false, ALLOW_DATA_ATTR: false, RETURN_DOM_FRAGMENT: true };

const MARKDOWN = {
  ...COMMON,
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};

const COLOURS = { ...COMMON, ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] };

export const LANGUAGE = /^language-([\w+#.-]{1,30})$/;

// The only classes are the language of a code block, and the kinds of its words.
const CLASSES = { CODE: LANGUAGE, SPAN: /^(?:hljs-[\w-]+|\w+_| )+$/ };

DOMPurify.addHook("uponSanitizeAttribute", (element, attribute) => {
  if (attribute.attrName === "class") attribute.keepAttr = Boolean(CLASSES[element.nodeName]?.test(attribute.attrValue));
});

export const cleanMarkdown = (html) => DOMPurify.sanitize(html, MARKDOWN);
export const cleanColours = (html) => DOMPurify.sanitize(html, COLOURS);
