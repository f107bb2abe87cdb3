// The settings: the browser keeps them, except for the API key, which only the tab keeps.

import { $ } from "./dom.js";

const DEFAULTS = { system: "", temperature: "0.7", "top-p": "", seed: "", "max-tokens": "512" };
const STORED = "roost";

export function loadSettings() {
  let stored = {};
  try { stored = JSON.parse(localStorage.getItem(STORED)) || {}; } catch { /* broken or forbidden: the defaults */ }
  for (const [id, value] of Object.entries({ ...DEFAULTS, ...stored })) if (id in DEFAULTS) $(id).value = value;
  try { $("key").value = sessionStorage.getItem(STORED) || ""; } catch { /* forbidden */ }
  showTemperature();
}

export function storeSettings() {
  const values = Object.fromEntries(Object.keys(DEFAULTS).map((id) => [id, $(id).value]));
  try {
    localStorage.setItem(STORED, JSON.stringify(values));
    sessionStorage.setItem(STORED, $("key").value);
  } catch { /* forbidden: they last as long as the page */ }
}

export function showTemperature() {
  const value = Number($("temperature").value);
  $("temperature-now").value = value === 0 ? "0, always the likeliest" : value.toFixed(2);
}

export const apiKey = () => $("key").value.trim();

// Fields of a chat completion request. An empty setting is left out, so that the server's default applies.
export function requestFields(messages) {
  const system = $("system").value.trim();
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: Number($("temperature").value),
    top_p: number("top-p"),
    seed: number("seed"),
    max_tokens: number("max-tokens") ?? null,
  };
}
