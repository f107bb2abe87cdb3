// Keys that work anywhere on the page. Open WebUI and llama.cpp's page have the same for what they have in common.

import { $ } from "./dom.js";

// `actions` has what the keys do: stop(), edit(), fresh(), search(), write().
export function setUpKeys(actions) {
  $("open-keys").addEventListener("click", () => $("keys").showModal());
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog:modal") || event.isComposing) return;
    const action = actionOf(event, actions);
    if (!action) return;
    event.preventDefault();
    action();
  });
}

function actionOf({ key, target, ctrlKey, metaKey, shiftKey }, { stop, edit, fresh, search, write }) {
  const isWriting = target.matches("input, textarea");
  if (ctrlKey || metaKey) return { o: shiftKey && fresh, k: !shiftKey && search }[key.toLowerCase()];
  if (key === "Escape") return shiftKey ? write : stop;
  if (key === "ArrowUp" && target === $("text") && !target.value) return edit;
  return key === "?" && !isWriting ? () => $("keys").showModal() : undefined;
}
