// The settings of the chat that is shown, and the API key, which only the tab keeps.

import { $ } from "./dom.js";

const NUMBERS = ["temperature", "top-p", "top-k", "min-p", "presence-penalty", "frequency-penalty", "repetition-penalty", "seed"];
const EMPTY = Object.fromEntries([...NUMBERS, "system", "stop-strings", "max-tokens"].map((id) => [id, ""]));
const DEFAULTS = { ...EMPTY, temperature: "0.7" };
const KEY = "roost";
const FOR_NEW = "roost-settings"; // not "roost": earlier versions stored a default limit of 512 there

// Returns the settings that a new chat begins with.
export function settingsForNew() {
  let stored = {};
  try { stored = JSON.parse(localStorage.getItem(FOR_NEW)) || {}; } catch { /* broken or forbidden: the defaults */ }
  return { ...DEFAULTS, ...stored };
}

export function showSettings(chat) {
  const settings = { ...settingsForNew(), ...chat.settings };
  for (const id of Object.keys(DEFAULTS)) $(id).value = settings[id];
  showTemperature();
  $("more-settings").open = [...$("more-settings").querySelectorAll("input, textarea")].some(({ value }) => value);
}

// Gives a chat the settings that are shown and valid, and new chats, too, if that is wanted.
export function takeSettings(chat) {
  for (const id of Object.keys(DEFAULTS)) if (!$(id).validity.valid) $(id).value = chat.settings[id] ?? DEFAULTS[id];
  chat.settings = Object.fromEntries(Object.keys(DEFAULTS).map((id) => [id, $(id).value]));
  if (!$("for-new").checked) return;
  $("for-new").checked = false;
  try { localStorage.setItem(FOR_NEW, JSON.stringify(chat.settings)); } catch { /* forbidden */ }
}

export function showTemperature() {
  const value = Number($("temperature").value);
  $("temperature-now").value = value === 0 ? "0, always the likeliest" : value.toFixed(2);
}

// Fields of a chat completion request. An empty setting is left out, so that the server's default applies.
export function requestFields(messages) {
  const system = $("system").value.trim();
  const stop = $("stop-strings").value.split("\n").filter(Boolean);
  const numbers = NUMBERS.filter((id) => $(id).value).map((id) => [id.replaceAll("-", "_"), Number($(id).value)]);
  return {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    max_tokens: Number($("max-tokens").value || $("max-tokens").placeholder),
    ...Object.fromEntries(numbers),
    ...(stop.length ? { stop } : {}),
  };
}

// Takes the server's limit of an answer, if it has one, in place of the page's own.
export function showTokenLimit(limit) {
  if (limit) $("max-tokens").placeholder = limit;
}

export const apiKey = () => $("key").value.trim();

export function loadKey() {
  try { $("key").value = sessionStorage.getItem(KEY) || ""; } catch { /* forbidden */ }
}

export function storeKey() {
  try { sessionStorage.setItem(KEY, $("key").value); } catch { /* forbidden: it lasts as long as the page */ }
}

// Says in the dialog what is wrong with the key.
export function showKeyProblem(problem) {
  $("key-problem").textContent = problem;
  $("key-problem").hidden = !problem;
  $("key").setAttribute("aria-invalid", Boolean(problem));
}

export function askForKey() {
  showKeyProblem(apiKey() ? "The server refuses this key." : "The server wants a key.");
  if (!$("settings").open) $("settings").showModal();
  $("key").focus();
}
