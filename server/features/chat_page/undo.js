// A line that offers to undo what has just been done. It stays until it is dismissed, another one takes its place, or the chat
// goes on or is left. It takes room of its own, so that it covers nothing.

import { $ } from "./dom.js";
import { isAtEnd, scrollToEnd } from "./scroll.js";

export function offerUndo(text, undo) {
  $("undo-text").textContent = text;
  $("undo-do").onclick = () => { endUndo(); undo(); };
  $("undo-dismiss").onclick = endUndo;
  const dialog = document.querySelector("dialog:modal"); // all else is inert beside it
  if (dialog) dialog.append($("undo"));
  else keepUndo();
  const wasAtEnd = isAtEnd();
  $("undo").hidden = false;
  if (wasAtEnd) scrollToEnd();
}

// Keeps the line in view when the dialog closes that it is in.
export function keepUndo() {
  $("ask").prepend($("undo"));
}

export function endUndo() {
  $("undo").hidden = true;
}
