// The page: what its controls do.

import { ask, currentChat, isRunning, isUndecided, openChat, showError, showReading, stop, whenChanged } from "./conversation.js";
import { $, tool } from "./dom.js";
import { request } from "./server.js";
import { askForKey, loadKey, settingsForNew, showKeyProblem, showTemperature, storeKey, takeSettings } from "./settings.js";
import { setUpScroll } from "./scroll.js";
import { setUpSidebar, showChats } from "./sidebar.js";
import { findStates } from "./state_requests.js";
import { setUpStates } from "./states.js";
import { showLoad, showModel } from "./status.js";
import { findChat, openStore, openedChat, saveChat } from "./store.js";
import { newChat } from "./tree.js";
import { isSendKey } from "./turns.js";

let isBehind = false; // another tab has changed the conversation that is shown

// Sends the text; without one, asks for several answers to the last message.
function send(count = 1) {
  const text = $("text").value.trim();
  if (isRunning() || !(text || count > 1)) return;
  if (text && isUndecided()) return showError("Pick the answer to go on with first.");
  setText("");
  ask(text, count);
}

function setText(text) {
  $("text").value = text;
  fitText();
}

function fitText() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

function open(chat) {
  openChat(chat);
  $("text").focus();
}

// Another tab has changed or deleted a conversation.
function followOtherTab(id) {
  isBehind ||= id === currentChat().id;
  showChanges();
}

function showChanges() {
  showChats();
  if (!isBehind || isRunning() || document.querySelector(".editing")) return;
  isBehind = false;
  const chat = findChat(currentChat().id);
  if (chat) openChat(chat);
}

function showServer() {
  showModel();
  watch();
  findStates();
}

// Closes the dialog unless the server refuses the key in it.
async function closeSettings() {
  try {
    await request("v1/models");
  } catch (error) {
    if (error.status === 401) return askForKey();
  }
  $("settings").close();
}

function useSettings() {
  storeKey();
  takeSettings(currentChat());
  if (findChat(currentChat().id)) saveChat(currentChat());
  showServer();
}

async function watch() {
  showReading(await showLoad());
}

function listen() {
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("text").addEventListener("input", fitText);
  $("text").addEventListener("keydown", (event) => {
    if (isSendKey(event)) { event.preventDefault(); send(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog:modal")) stop();
  });
  $("send").before(tool("three", "Three answers", () => send(3), "Three answers, side by side", "idle-only"));
  $("stop").addEventListener("click", stop);
  $("fresh").addEventListener("click", () => open(newChat({ settings: settingsForNew() })));
  $("open-settings").addEventListener("click", () => { showKeyProblem(""); $("settings").showModal(); });
  $("temperature").addEventListener("input", showTemperature);
  $("settings-form").addEventListener("submit", (event) => { event.preventDefault(); closeSettings(); });
  $("settings").addEventListener("close", useSettings);
  $("welcome").addEventListener("click", (event) => {
    if (!event.target.matches("li button") || isRunning()) return;
    ask(event.target.textContent);
  });
}

await openStore(followOtherTab, showError);
loadKey();
listen();
setUpScroll();
setUpSidebar();
setUpStates();
whenChanged(showChanges);
openChat(openedChat() ?? newChat({ settings: settingsForNew() }));
showServer();
setInterval(watch, 1000);
