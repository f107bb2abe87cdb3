// The place in the conversation that is in view.

import { $ } from "./dom.js";

export function scrollToEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
  showWayToEnd();
}

export function isAtEnd() {
  const scroll = $("scroll");
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
}

// Shows the button that leads to the end while that is out of view.
export function showWayToEnd() {
  $("to-end").hidden = isAtEnd();
}

export function setUpScroll() {
  $("scroll").addEventListener("scroll", showWayToEnd);
  $("to-end").addEventListener("click", () => { scrollToEnd(); $("text").focus(); });
}
