// Colours of code, by highlight.js, which is loaded with the first code block whose language is named.

import { cleanColours } from "./sanitizer.js";

const MAX_LENGTH = 20_000; // longer code stays as it is, so that no answer keeps the browser busy

let loading;

export async function colour(code, language) {
  if (code.textContent.length > MAX_LENGTH) return;
  loading ??= import("./vendor/highlight.min.js");
  const { default: highlighter } = await loading.catch(() => ({}));
  if (!highlighter?.getLanguage(language)) return;
  const { value } = highlighter.highlight(code.textContent, { language, ignoreIllegals: true });
  code.replaceChildren(cleanColours(value));
}
