// A line that offers to undo what has just been done. It stays until it is dismissed or another one takes its place.

import { $ } from "./dom.js";

// Returns what hides the line, for when it is too late.
export function offerUndo(text, undo) {
  $("undo-text").textContent = text;
  $("undo-do").onclick = () => { hide(); undo(); };
  $("undo-dismiss").onclick = hide;
  (document.querySelector("dialog:modal") ?? document.body).append($("undo")); // all else is inert beside a modal dialog
  $("undo").hidden = false;
  return hide;
}

// Keeps the line in view when the dialog closes that it is in.
export function keepUndo() {
  document.body.append($("undo"));
}

function hide() {
  $("undo").hidden = true;
}
